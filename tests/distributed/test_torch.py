"""Processes of PyTorch that hold rows of DTensors find what one process finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import of_torch

pytest.importorskip("torch")
pytest.importorskip("torch.distributed.tensor")
PROGRAM = Path(__file__).with_name("torch_process.py")
EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_rows.py"


@pytest.fixture(scope="module", params=[2, 4])
def reports(request: pytest.FixtureRequest, tmp_path_factory: Any) -> list[dict[str, Any]]:
    """What each process printed."""
    return of_torch(PROGRAM, request.param, tmp_path_factory.mktemp("torch"))


def test_every_function_finds_what_one_process_finds(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert len(report["functions"]) > 30
        for name, apart in report["functions"].items():
            assert isinstance(apart, float), (name, apart)
            assert apart < 1e-10, name


def test_other_placements_and_dtypes(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        for name, apart in report["others"].items():
            assert apart < (1e-5 if name == "single" else 1e-10), name


def test_products_get_the_rows_of_their_process(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["declared"] == 80
        assert report["seen"] == [[40 // len(reports), 3]]


def test_no_seed_is_one_seed_for_all(reports: list[dict[str, Any]]) -> None:
    assert len({report["no seed"] for report in reports}) == 1


def test_what_does_not_fit_is_told_to_all(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        told = report["told"]
        assert "generators differ" in told["seeds"]
        assert "by rows along one axis of the mesh" in told["columns"]
        assert "square matrix" in told["wide"]
        assert "got one of int64" in told["integers"]
        assert "returned a DTensor" in told["undeclared"]
        assert "takes and returns DTensors" in told["plain"]


def test_the_example_finds_what_one_process_finds() -> None:
    def values(count: str) -> list[float]:
        told = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", count,
             "--master-port", "0", "--rdzv-endpoint", "localhost:0", "--rdzv-backend", "c10d",
             str(EXAMPLE)],
            capture_output=True, text=True, timeout=300, check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return [float(line.split(":")[1].split("+-")[0]) for line in told.stdout.splitlines()]

    alone = values("1")
    assert len(alone) == 3
    assert values("2") == pytest.approx(alone, rel=1e-10)
