"""Runs that are taken apart, pickled, resumed and shown."""

from __future__ import annotations

import io
import json
import logging
import pickle
import sys
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

import tracekit as tk
from tracekit import probes
from tracekit._runs.records import put_together, taken_apart

N = 120
LAWS = (probes.rademacher, probes.orthogonal, probes.hadamard,
        probes.tiled(probes.orthogonal, 2))  # fmt: skip


def matrix(seed: int = 0) -> np.ndarray:
    return tk.testing.known_spectrum(np.arange(1.0, N + 1) ** -0.5, rng=seed)


def watched(M: np.ndarray, *, fails: BaseException | None = None, at: int = 3) -> Any:
    """An operator whose columns are kept, and which fails at a call."""
    columns: list[np.ndarray] = []
    calls = 0

    def product(X: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == at and fails is not None:
            raise fails
        columns.append(X.copy())
        return M @ X

    return tk.LinearOperator(M.shape, product), columns


class Strange(NamedTuple):
    """A record of no package."""

    x: int


# Records --------------------------------------------------------------------------------------


def test_records_come_back_from_plain_values() -> None:
    A = tk.as_operator(matrix())
    record = {"a": [1, 2.5, None, True, "x"], "b": (np.eye(2), A), "c": float("inf"), "d": int}
    record |= {"e": tk.Estimate(np.float64(1.0), np.float64(0.5), 3)}
    record.pop("d")
    arrays, told = taken_apart(record, (A,))
    again = put_together(arrays, json.loads(json.dumps(told)), (A,))
    assert again["a"] == record["a"]
    assert again["b"][1] is A
    assert again["c"] == np.inf
    np.testing.assert_array_equal(again["b"][0], np.eye(2))
    assert (again["e"].value, again["e"].num_matvecs) == (1.0, 3)


def test_records_of_other_packages_are_neither_kept_nor_made() -> None:
    with pytest.raises(TypeError, match="a run cannot be kept with a function"):
        taken_apart([lambda x: x])
    with pytest.raises(TypeError, match="made on the way"):
        taken_apart([tk.as_operator(matrix())])
    arrays, told = taken_apart(Strange(3))
    with pytest.raises(ValueError, match="no record of this package"):
        put_together(arrays, told)
    for name in ("os:system", "tracekit._runs.run:log", "tracekit.io:np.load"):
        with pytest.raises(ValueError, match="no record of this package"):
            put_together({}, {"record": name, "fields": {}})


# Going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_blocks_of_dependent_probes_go_on(law: Any) -> None:
    """Resumed, they are the columns of one block: the same ones as without the interruption."""
    A, whole = watched(matrix())
    straight = tk.hutchinson(A, rtol=1e-9, num_matvecs=50, rng=3, probes=law)
    A, parts = watched(matrix())
    estimate = tk.hutchinson(A, rtol=0.5, num_matvecs=50, rng=3, probes=law)
    assert estimate.num_matvecs < 50
    if law in LAWS[:3]:  # at hand in a module
        estimate = pickle.loads(pickle.dumps(estimate))
    resumed = tk.resume(A, estimate, rtol=1e-9, num_matvecs=50)
    assert float(resumed) == float(straight)
    np.testing.assert_array_equal(np.hstack(parts), np.hstack(whole))


def test_more_columns_of_a_hadamard_block_than_were_planned_are_refused() -> None:
    estimate = tk.hutchinson(matrix(), 16, rng=0, probes=probes.hadamard)
    with pytest.raises(ValueError, match=r"block of 16 dependent probes.*merge"):
        tk.resume(matrix(), estimate, rtol=0.0, num_matvecs=20)


@pytest.mark.parametrize("at", [2, 3, 5])
@pytest.mark.parametrize("estimator", [tk.hutchinson, tk.hutchpp, tk.nahutchpp, tk.xtrace])
def test_a_failed_step_leaves_the_run_where_it_stood(estimator: Any, at: int) -> None:
    straight = estimator(matrix(), 64, rtol=1e-12, rng=1)
    A, _ = watched(matrix(), fails=OSError("the disk is gone"), at=at)
    with pytest.raises(OSError, match="gone") as caught:
        estimator(A, 64, rtol=1e-12, rng=1)
    paid = getattr(caught.value, "estimate", None)
    if paid is None:
        assert at <= 3  # within the first step
        return
    assert "ended by OSError (the disk is gone)" in paid.reason
    resumed = tk.resume(matrix(), paid, rtol=1e-12, num_matvecs=64)
    assert float(resumed) == float(straight)


def test_a_plain_budget_goes_on_where_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    A, columns = watched(matrix())
    estimate = tk.hutchinson(A, 20, rng=0)
    more = tk.resume(A, estimate, rtol=0.0, num_matvecs=30)
    assert more.num_matvecs == sum(X.shape[1] for X in columns) == 30
    assert float(more) == pytest.approx(float(tk.hutchinson(matrix(), 30, rng=0)))
    assert tk.resume(A, more, rtol=0.0, num_matvecs=10).num_matvecs == 30
    monkeypatch.setattr("tracekit._runs.run.KEPT", 100)
    estimate = tk.xtrace(matrix(), 20, rng=0)
    with pytest.raises(ValueError, match="keeps no products to go on from"):
        tk.resume(A, estimate)


def test_arguments_that_cannot_be_pickled_are_told() -> None:
    def law(source: Any, n: int, m: int) -> Any:
        return source.signs((n, m))

    estimate = tk.hutchinson(matrix(), rtol=0.5, num_matvecs=50, rng=3, probes=law)
    assert tk.resume(matrix(), estimate, rtol=1e-9, num_matvecs=50).num_matvecs == 50
    again = pickle.loads(pickle.dumps(estimate))
    assert float(again) == float(estimate)
    with pytest.raises(ValueError, match="pickled without probes"):
        tk.resume(matrix(), again)


def test_a_checkpoint_of_another_call_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "run.npz"
    tk.hutchinson(matrix(), 16, rng=0, checkpoint=path)
    for call in (
        lambda: tk.xtrace(matrix(), 16, rng=0, checkpoint=path),
        lambda: tk.hutchinson(matrix(), 16, rng=1, checkpoint=path),
        lambda: tk.hutchinson(matrix(), 16, rng=0, probes=probes.sphere, checkpoint=path),
        lambda: tk.hutchinson(matrix()[:99, :99], 16, rng=0, checkpoint=path),
    ):
        with pytest.raises(ValueError, match="is of a run with"):
            call()
    with pytest.raises(ValueError, match="folder that does not exist"):
        tk.hutchinson(matrix(), 16, rng=0, checkpoint=tmp_path / "no" / "run.npz")


def test_a_tolerance_without_end_needs_a_ceiling() -> None:
    with pytest.raises(ValueError, match="or a tolerance such as"):
        tk.hutchinson(matrix())
    zero = tk.LinearOperator((N, N), lambda X: 0 * X)
    assert float(tk.hutchinson(zero, rtol=1e-2, rng=0)) == 0
    odd = tk.LinearOperator((N, N), lambda X: X[::-1])  # of trace 0
    estimate = tk.hutchinson(odd, 40, rtol=1e-2, rng=0)
    assert (estimate.num_matvecs, estimate.converged) == (40, False)
    assert "the budget is spent" in estimate.reason
    assert tk.hutchinson(odd, rtol=1e-2, rng=0).method == "exact_trace"


# What is shown --------------------------------------------------------------------------------


def test_progress_writes_lines() -> None:
    lines: list[str] = []
    estimate = tk.xtrace(matrix(), rtol=0.1, rng=0, callback=tk.progress(lines.append))
    assert estimate.converged
    assert f"after {estimate.num_matvecs} products" in lines[-1]
    assert lines[-1].startswith(f"{float(estimate):.6g} +- ")


def test_progress_on_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tk.hutchinson(matrix(), 32, rng=0, callback=tk.progress())
    assert capsys.readouterr().err.count("products") == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Bar:
    """As of tqdm."""

    made: tuple[Any, ...] = ()

    def __init__(self, **options: Any) -> None:
        self.n, self.lines, self.closed = 0, list[str](), False
        Bar.made += (self,)

    def set_description_str(self, line: str, *, refresh: bool) -> None:
        self.lines.append(line)

    def update(self, more: int) -> None:
        self.n += more

    def close(self) -> None:
        self.closed = True


def test_progress_by_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tqdm")
    module.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm", module)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    tk.hutchinson(matrix(), 32, rng=0, callback=tk.progress())
    (bar,) = Bar.made
    assert (bar.n, len(bar.lines), bar.closed) == (32, 3, True)


def test_decisions_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tracekit"):
        tk.hutchinson(matrix(), rtol=0.3, rng=0)
    assert "within the tolerance" in caplog.text
