"""Processes of PyTorch that hold rows of DTensors find what one process finds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import run

pytest.importorskip("torch")
pytest.importorskip("torch.distributed.tensor")
pytest.importorskip("torch.distributed.fsdp")
PROGRAM = Path(__file__).with_name("torch_groups.py")
EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_rows.py"
Reports = list[dict[str, Any]]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: Any) -> dict[str, Reports]:
    """What each process of each group reports."""
    folder = tmp_path_factory.mktemp("groups")
    run(sys.executable, str(PROGRAM), str(folder))
    found: dict[str, Reports] = {}
    for path in sorted(folder.glob("*.json")):
        found.setdefault(path.stem.partition(".")[0], []).append(json.loads(path.read_text()))
    return found


@pytest.fixture(params=[2, 4])
def reports(request: pytest.FixtureRequest, groups: dict[str, Reports]) -> Reports:
    """Those of processes that hold rows."""
    found = groups[f"rows, {request.param}"]
    assert len(found) == request.param
    return found


@pytest.fixture
def of_networks(groups: dict[str, Reports]) -> Reports:
    """Those of two processes that hold samples of a network."""
    first, second = groups["networks, 2"]
    return [first, second]


def test_every_function_finds_what_one_process_finds(reports: Reports) -> None:
    for report in reports:
        assert len(report["functions"]) > 30
        for name, apart in report["functions"].items():
            assert isinstance(apart, float), (name, apart)
            assert apart < 1e-10, name


def test_other_placements_and_dtypes(reports: Reports) -> None:
    for report in reports:
        for name, apart in report["others"].items():
            assert apart < (1e-5 if name == "single" else 1e-10), name


def test_products_get_the_rows_of_their_process(reports: Reports) -> None:
    for report in reports:
        assert report["declared"] == 80
        assert report["seen"] == [[40 // len(reports), 3]]


def test_no_seed_is_one_seed_for_all(reports: Reports) -> None:
    assert len({report["no seed"] for report in reports}) == 1


def test_what_does_not_fit_is_told_to_all(reports: Reports) -> None:
    for report in reports:
        told = report["told"]
        assert "generators differ" in told["seeds"]
        assert "by rows along one axis of the mesh" in told["columns"]
        assert "square matrix" in told["wide"]
        assert "got one of int64" in told["integers"]
        assert "returned a DTensor" in told["undeclared"]
        assert "takes and returns DTensors" in told["plain"]


def test_no_seed_is_refused_where_vectors_are_whole(reports: Reports) -> None:
    for report in reports:
        assert f"each of {len(reports)} processes" in report["told"]["no seed"]


def values(printed: str) -> list[float]:
    return [float(line.split(":")[1].split("+-")[0]) for line in printed.splitlines()]


def test_the_example_finds_what_one_process_finds(groups: dict[str, Reports]) -> None:
    (alone,) = groups["example, 1"]
    printed = run(
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", "0", "--rdzv-endpoint", "localhost:0", "--rdzv-backend", "c10d",
        str(EXAMPLE),
    )  # fmt: skip
    assert len(values(alone["printed"])) == 3
    assert values(printed) == pytest.approx(values(alone["printed"]), rel=1e-10)


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    ["mesh", "sum callback", "replicated", "DDP", "DDP called", "FSDP by its remedy", "kernel"],
)
def test_networks_are_those_of_all_samples(of_networks: Reports, how: str) -> None:
    for report in of_networks:
        for name, apart in report[how].items():
            assert apart < 1e-10, name


def test_sharded_modules_are_refused(of_networks: Reports) -> None:
    """They put their own parameters in the place of those that f is called with."""
    for report in of_networks:
        assert len(report["sharded"]) == 8
        for error in report["sharded"]:
            assert "is sharded (FSDP)" in error
            assert "pass the module without fully_shard" in error
        assert "a DTensor is among the parameters" in report["parts"]


def test_what_fails_in_a_process_is_told_to_all(of_networks: Reports) -> None:
    for rank, report in enumerate(of_networks):
        assert report["large sums"]
        told = report["told"]
        assert "process 1 has other parameters than process 0" in told["parameters"]
        assert "by rows along one axis of the mesh" in told["placements"]
        failure = "NaN or infinity" if rank else "process 1 failed"
        assert failure in told["a failure"]
