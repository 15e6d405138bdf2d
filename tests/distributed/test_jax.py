"""Rows over four devices of JAX: one device's digits, a quarter of the memory, nothing gathered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit as tk

jax = pytest.importorskip("jax")
N, M = 4096, 8


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the program of its own process prints: device counts are fixed when JAX begins."""
    program = Path(__file__).with_name("four_devices.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, str(program), str(N), str(M)],
        capture_output=True, text=True, timeout=600, env=environment, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    result: dict[str, Any] = json.loads(told.stdout)
    return result


def test_values_are_those_of_one_device(found):
    assert len(found["runs"]) > 8
    for name, record in found["runs"].items():
        assert record["compiled"] < 1e-10, name
        assert record.get("eager", 0) < 1e-10, name


def test_each_device_holds_its_part_and_sends_small_matrices(found):
    for name, record in found["runs"].items():
        assert record["memory"] <= 0.35, name
        assert record["gathered"] <= 4 * M * M, name
        assert record.get("places", 4) == 4, name
    assert sum("places" in record for record in found["runs"].values()) == 3


def test_tall_skinny_qr_is_orthonormal_whatever_the_rank(found):
    assert len(found["qr"]) == 8
    for off, error in found["qr"]:
        assert off < 1e-14
        assert error < 1e-13


def test_vmap_coordinates_and_explicit_axes(found):
    for name, off in found["other"]["differences"].items():
        assert off < 1e-10, name
    assert found["other"]["places"] == 4


def test_layouts_that_cannot_be_are_told():
    from jax import numpy as jnp
    from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
    from jax.sharding import PartitionSpec as P

    whole = SingleDeviceSharding(jax.devices()[0])
    A = tk.LinearOperator((4, 4), lambda X: 2 * X, xp=jnp, layout=whole)
    assert (3 * A).layout is whole
    assert (A @ A).layout is whole
    assert float(tk.hutchinson(A, 2, rng=0)) == 8
    with pytest.raises(TypeError, match="Sharding"):
        tk.LinearOperator((4, 4), lambda X: X, xp=jnp, layout=(1, 3))
    with pytest.raises(TypeError, match=r"xp=jax\.numpy"):
        tk.LinearOperator((4, 4), lambda X: X, xp=np, layout=whole)
    if len(jax.devices()) > 1:
        rows = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("rows",)), P("rows"))
        with pytest.raises(ValueError, match="pad the operator to 6"):
            tk.LinearOperator((5, 5), lambda X: X, xp=jnp, layout=rows)
