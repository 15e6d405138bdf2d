"""JAX on four devices of one process: what one device gives, and no tall array gathered."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks

import tracekit as tk

PROGRAM = Path(__file__).with_name("jax_program.py")
M = 24  # as there
ENVIRONMENT = ranks.ENVIRONMENT | {"JAX_PLATFORMS": "cpu"}
DEVICES = "--xla_force_host_platform_device_count"


def printed(program: Path) -> dict[str, Any]:
    """What a program of one process with four devices told."""
    four = ENVIRONMENT | {"XLA_FLAGS": f"{DEVICES}=4"}
    return ranks.printed(program, 1, lambda rank: [], four)[0]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return printed(PROGRAM)


def test_every_function_finds_what_numpy_finds() -> None:
    found = printed(PROGRAM.with_name("jax_functions.py"))
    assert len(found) > 30
    for name, apart in found.items():
        assert apart < 1e-10, name


def test_programs_hold_a_part_of_each_tall_array_and_gather_none(report: dict[str, Any]) -> None:
    for name, found in report["compiled"].items():
        assert found["error"] < 1e-10, name
        assert found["memory"] < 0.35, name
        assert found["gathered"] <= 4 * M**2, name


def test_eager_calls_give_what_one_device_gives_and_draw_by_rows(report: dict[str, Any]) -> None:
    for name, found in report["eager"].items():
        assert found["error"] < 1e-10, name
        assert found["seen"] == [16], name  # four devices, of a fourth of the rows each
        assert found["drawn"] == (512 if "int" in name and "exact" not in name else 0), name
    for name, found in report["complex"].items():
        assert found["error"] < 1e-10, name
        assert found["seen"] == [16], name
        assert found["drawn"] == (1024 if name == "0" else 0), name  # pairs


def test_keys_are_mapped_over(report: dict[str, Any]) -> None:
    for name, error in report["mapped"].items():
        assert error < 1e-10, name


def test_layouts_are_read_off_matrices_and_carried_on(report: dict[str, Any]) -> None:
    parts = iter((2, 2, 2, 2, 4, 4, 4, 4, 1, 1))
    for name, found in report["dense"].items():
        assert found["error"] < 1e-10, name
        assert found["parts"] == next(parts), name
        assert found["carried"], name


@pytest.mark.parametrize("how", ["eager, condition", "jit, condition", "eager, rank", "jit, rank"])
def test_blocks_of_rows_are_factorised_where_they_lie(report: dict[str, Any], how: str) -> None:
    found = report["factorised"][how]
    assert found["orthogonality"] < 1e-14
    assert found["residual"] < 1e-14
    assert found["parts"] == 4


def test_long_sums_in_single_precision_stay_on_their_devices(report: dict[str, Any]) -> None:
    for found in report["summed"].values():
        assert found["error"] == 0
        assert found["gathered"] <= 8


def test_two_processes_find_what_one_finds() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    program = PROGRAM.with_name("jax_process.py")
    one = ENVIRONMENT | {"XLA_FLAGS": f"{DEVICES}=1"}
    for report in ranks.printed(program, 2, lambda rank: [str(rank), address], one):
        for name, apart in report.items():
            assert abs(apart) < 1e-10, name


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("divides", "must cut 10 rows into equal blocks, got one of 4.* up to 12"),
        ("otherwise", "matmat returned an array that lies as .* on 1 devices, where layout="),
        ("axes", "must be for arrays of two axes"),
        ("explicit", "must be cut along Auto axes of a mesh"),
    ],
)
def test_what_does_not_fit_is_refused(report: dict[str, Any], case: str, said: str) -> None:
    assert re.search(said, report["refused"][case]), report["refused"][case]


def test_layouts_that_cannot_be_are_told() -> None:
    jax = pytest.importorskip("jax")
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    A = tk.LinearOperator((4, 4), lambda X: 2 * X, xp=jax.numpy, layout=whole)
    assert (3 * A).layout is (A @ A).layout is A.layout
    assert A.layout.parts == 1
    assert float(tk.hutchinson(A, 2, rng=0)) == 8
    with pytest.raises(TypeError, match=r"must be a jax\.sharding\.Sharding.*got tuple"):
        tk.LinearOperator((4, 4), lambda X: X, xp=jax.numpy, layout=(1, 3))
    with pytest.raises(TypeError, match=r"xp=jax\.numpy"):
        tk.LinearOperator((4, 4), lambda X: X, xp=np, layout=whole)
