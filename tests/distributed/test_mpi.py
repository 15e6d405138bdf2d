"""Several processes of MPI agree on every digit, or are told why not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import run

import tracekit as tk

pytest.importorskip("mpi4py")
ROOT = Path(__file__).parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")

UNLIKE = """
import numpy as np, tracekit as tk
from mpi4py import MPI
try:
    tk.hutchinson(np.eye(3), 2)
except ValueError as error:
    print(str(error))
print(float(tk.hutchinson(np.eye(3), 2, rng=np.random.default_rng())))
"""


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")


def values(example: str, count: str) -> list[float]:
    told = run(str(MPIEXEC), "-n", count, sys.executable, str(ROOT / "examples" / example))
    return [float(line.split(":")[1].split("+-")[0]) for line in told.splitlines()]


@pytest.mark.skipif(not MPIEXEC.exists(), reason="mpiexec is not installed beside Python")
def test_processes_that_hold_whole_vectors_agree(examples):
    import mpi

    alone = values("mpi.py", "1")
    np.testing.assert_allclose(values("mpi.py", "3"), alone, rtol=1e-10)
    A = mpi.kernel(slice(0, mpi.N))
    w = np.linalg.eigvalsh(A)
    np.testing.assert_allclose(alone, (np.sum(w), np.sum(1 / w), np.sum(np.log(w))), rtol=0.03)
    np.testing.assert_allclose(alone[0], float(tk.hutchpp(A, 90, rng=0)), rtol=1e-10)


@pytest.mark.skipif(not MPIEXEC.exists(), reason="mpiexec is not installed beside Python")
def test_processes_that_hold_rows_agree(examples):
    import mpi_rows

    alone = values("mpi_rows.py", "1")
    np.testing.assert_allclose(values("mpi_rows.py", "3"), alone, rtol=1e-10)
    w = np.linalg.svd(mpi_rows.features(slice(0, mpi_rows.N)), compute_uv=False) ** 2
    exact = np.sum(w), np.sum(w / (w + mpi_rows.NOISE)), np.sum(np.log1p(w / mpi_rows.NOISE))
    np.testing.assert_allclose(alone[:3], exact, rtol=1e-3)


@pytest.mark.skipif(not MPIEXEC.exists(), reason="mpiexec is not installed beside Python")
def test_processes_without_a_seed_are_refused():
    told = run(str(MPIEXEC), "-n", "2", sys.executable, "-c", UNLIKE)
    assert told.count("each of 2 processes") == told.count("3.0") == 2
