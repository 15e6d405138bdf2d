"""Traces of functions to a tolerance: kept, resumed bit for bit, with nothing lost on the way."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse.csgraph
from numpy.typing import NDArray

import tracekit as tk

N, RUNS = 200, 10
SPECTRUM = 1 / np.arange(1.0, N + 1) + 0.05
FLAT = np.linspace(1.0, 2.0, N)


def graph() -> NDArray[np.float64]:
    """A ring whose nodes know their second neighbours, and some chords."""
    W = np.triu(np.random.default_rng(0).random((N, N)) < 0.003, 1).astype(float)
    W += np.eye(N, k=1) + np.eye(N, k=2)
    return np.asarray(np.minimum(W + W.T, 1.0))


def kernel() -> NDArray[np.float64]:
    x = np.random.default_rng(1).random((N, 2))
    return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 0.1) + 0.1 * np.eye(N)


def matrix_of(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(tk.testing.known_spectrum(x) @ np.eye(N))


def entropy(s: NDArray[np.float64]) -> float:
    p = s / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def of_eigenvalues(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda A: f(np.linalg.eigvalsh(A))


def of_singular_values(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda A: f(np.linalg.svd(A)[1])


class Row(NamedTuple):
    name: str
    call: Callable[..., tk.Estimate]
    A: NDArray[np.float64]
    exact: Callable[[Any], Any]
    tolerance: dict[str, float]


def laplacian() -> NDArray[np.float64]:
    return np.asarray(scipy.sparse.csgraph.laplacian(graph())) + 0.5 * np.eye(N)


def rectangle() -> NDArray[np.float64]:
    return np.random.default_rng(2).standard_normal((N + 50, N))


ROOT = partial(tk.trace_function, f=tk.functions.sqrt)
RIDGE = 0.1
ROWS = [
    Row("logdet of a decay", tk.logdet, matrix_of(SPECTRUM),
        of_eigenvalues(lambda x: np.log(x).sum()), {"atol": 10.0}),
    Row("logdet of a Laplacian", tk.logdet, laplacian(),
        of_eigenvalues(lambda x: np.log(x).sum()), {"atol": 14.0}),
    Row("trace_inverse", tk.trace_inverse, matrix_of(SPECTRUM),
        of_eigenvalues(lambda x: (1 / x).sum()), {"rtol": 0.1}),
    Row("effective_dimension", partial(tk.effective_dimension, ridge=RIDGE), kernel(),
        of_eigenvalues(lambda x: (x / (x + RIDGE)).sum()), {"rtol": 0.1}),
    Row("sqrt", ROOT, laplacian(), of_eigenvalues(lambda x: np.sqrt(x).sum()), {"rtol": 0.05}),
    Row("estrada_index", tk.estrada_index, graph(),
        of_eigenvalues(lambda x: np.exp(x).sum()), {"rtol": 0.3}),
    Row("nuclear_norm", tk.nuclear_norm, rectangle(),
        of_singular_values(lambda s: s.sum()), {"rtol": 0.1}),
    Row("schatten_norm", partial(tk.schatten_norm, p=3), rectangle(),
        of_singular_values(lambda s: (s**3).sum() ** (1 / 3)), {"rtol": 0.05}),
    Row("entropy_rank", partial(tk.entropy_rank, hermitian=True), matrix_of(SPECTRUM),
        of_singular_values(entropy), {"rtol": 0.05}),
]  # fmt: skip
rows = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


@rows
def test_the_tolerance_is_kept(row: Row) -> None:
    exact, cost = float(row.exact(row.A)), min(row.A.shape)
    A, counter = tk.counted(tk.as_operator(row.A))
    inside, cheap = 0, 0
    for seed in range(RUNS):
        before = counter.total
        found = row.call(A, rng=seed, **row.tolerance)
        assert found.converged
        assert found.num_matvecs == counter.total - before
        allowed = row.tolerance.get("atol", 0) + row.tolerance.get("rtol", 0) * abs(found.value)
        inside += abs(found.value - exact) <= allowed
        cheap += found.num_matvecs < cost
    assert inside == RUNS
    assert cheap >= 0.9 * RUNS  # not by all eigenvalues


class Calls:
    """An operator whose products stop at a call."""

    def __init__(self, A: NDArray[np.float64], last: float, error: BaseException) -> None:
        self.A, self.last, self.error, self.calls = A, last, error, 0

    def _counted(self, M: NDArray[np.float64], X: Any) -> Any:
        self.calls += 1
        if self.calls > self.last:
            raise self.error
        return M @ X

    def operator(self) -> tk.LinearOperator:
        return tk.LinearOperator(
            self.A.shape,
            lambda X: self._counted(self.A, X),
            lambda X: self._counted(self.A.T, X),
            dtype=self.A.dtype,
        )


def same(a: tk.Estimate, b: tk.Estimate) -> bool:
    parts = "value", "standard_error", "num_matvecs", "converged", "reason"
    return all(getattr(a, name) == getattr(b, name) for name in parts)


WAYS = [
    *ROWS,
    Row("a determinant", partial(tk.logdet, hermitian=False), laplacian() + np.eye(N, k=1), np.sum,
        {"atol": 20.0}),
    Row("Arnoldi", partial(tk.trace_function, f=tk.functions.exp, hermitian=False),
        np.eye(N, k=1) + np.eye(N), np.sum, {"rtol": 0.2}),
    Row("moments", partial(ROOT, quadrature=tk.quadrature.chebyshev((0.9, 2.1))), matrix_of(FLAT),
        np.sum, {"rtol": 0.02}),
    Row("without bases", partial(ROOT, quadrature=tk.quadrature.lanczos(reorthogonalise=False)),
        matrix_of(FLAT), np.sum, {"rtol": 0.02}),
    Row("blocks", partial(ROOT, block=2), matrix_of(FLAT), np.sum, {"rtol": 0.005}),
    Row("orthogonal probes", partial(ROOT, probes=tk.probes.orthogonal), matrix_of(FLAT), np.sum,
        {"rtol": 0.02}),
    Row("a given depth", partial(ROOT, depth=7), matrix_of(FLAT), np.sum, {"rtol": 0.02}),
]  # fmt: skip
ways = pytest.mark.parametrize("row", WAYS, ids=[row.name for row in WAYS])


@ways
def test_a_run_killed_again_and_again_ends_with_the_same_bits(row: Row, tmp_path: Path) -> None:
    whole = row.call(row.A, rng=3, **row.tolerance)
    path, killed = tmp_path / "run.npz", 0
    while True:
        calls = Calls(row.A, 12 + killed, KeyboardInterrupt())
        try:
            found = row.call(calls.operator(), rng=3, checkpoint=path, **row.tolerance)
            break
        except KeyboardInterrupt:
            killed += 1
            assert killed < 40
    assert killed > 0
    assert same(found, whole), (found, whole)


@ways
def test_what_ends_a_run_carries_what_was_paid_for(row: Row) -> None:
    whole = row.call(row.A, rng=3, **row.tolerance)
    for last in (5, 10):
        with pytest.raises(MemoryError) as caught:
            row.call(Calls(row.A, last, MemoryError()).operator(), rng=3, **row.tolerance)
        paid = caught.value.estimate  # type: ignore[attr-defined]
        assert not paid.converged
        assert paid.num_matvecs <= whole.num_matvecs
        A, counter = tk.counted(tk.as_operator(row.A))
        found = tk.resume(A, paid, **({"rtol": 0.0} | row.tolerance))
        assert found.converged
        assert found.num_matvecs == paid.num_matvecs + counter.total  # no product twice


def test_runs_are_pickled_without_their_operator() -> None:
    row = ROWS[0]
    rough = row.call(row.A, rng=0, atol=30.0)
    A, counter = tk.counted(tk.as_operator(row.A))
    fine = tk.resume(A, pickle.loads(pickle.dumps(rough)), rtol=0.0, atol=10.0)
    assert fine.converged
    assert counter.total == fine.num_matvecs - rough.num_matvecs
    assert fine.standard_error < rough.standard_error


@pytest.mark.parametrize("budget", [1, 7, 8, 20, 61, 150])
@rows
def test_a_budget_is_a_ceiling(row: Row, budget: int) -> None:
    A, counter = tk.counted(tk.as_operator(row.A))
    found = row.call(A, num_matvecs=budget, rng=0, rtol=1e-9)
    assert found.num_matvecs == counter.total <= budget
    assert not found.converged
    assert "the budget is spent" in found.reason


def test_more_than_a_budget_is_spent_by_resuming() -> None:
    row = ROWS[0]
    some = row.call(row.A, num_matvecs=60, rng=0, rtol=1e-9)
    A, counter = tk.counted(tk.as_operator(row.A))
    more = tk.resume(A, some, rtol=0.0, num_matvecs=160)
    assert more.num_matvecs <= 160
    assert counter.total == more.num_matvecs - some.num_matvecs > 60


def test_a_step_that_has_not_settled_is_never_within_a_tolerance() -> None:
    middle = float(np.median(SPECTRUM))
    found = tk.trace_function(
        matrix_of(SPECTRUM), lambda x: (x > middle) * 1.0, 150, rng=0, rtol=50.0
    )
    assert not found.converged
    assert found.standard_error == np.inf
    assert "has not settled" in found.reason


def test_a_tolerance_that_cannot_be_met_ends_with_all_eigenvalues() -> None:
    A, counter = tk.counted(matrix_of(SPECTRUM))
    found = tk.logdet(A, rng=0, rtol=1e-12)
    assert found.value == pytest.approx(np.log(SPECTRUM).sum())
    assert found.standard_error == 0
    assert N < found.num_matvecs == counter.total < 2 * N


def looks(**options: Any) -> Iterator[tk.Estimate]:
    seen: list[tk.Estimate] = []
    tk.logdet(matrix_of(SPECTRUM), 150, rng=0, callback=seen.append, **options)
    yield from seen


def test_a_callback_sees_every_look() -> None:
    assert [x.num_matvecs for x in looks()] == sorted({x.num_matvecs for x in looks()})
    for x in looks():
        low, high = x.confidence_interval(0.999)
        assert low < np.log(SPECTRUM).sum() < high


@pytest.mark.parametrize("options", [{"deflate": 10}, {"bounds": (0.01, 2.0)}])
def test_what_is_of_a_budget_spent_at_once_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="spent at once"):
        tk.logdet(matrix_of(SPECTRUM), rng=0, rtol=0.1, **options)


def test_one_of_budget_and_tolerance_is_needed() -> None:
    with pytest.raises(ValueError, match="or a tolerance such as"):
        tk.logdet(matrix_of(SPECTRUM), rng=0)
    with pytest.raises(ValueError, match="one interval"):
        tk.logdet(matrix_of(SPECTRUM), rng=0, rtol=0.1, quadrature=tk.quadrature.chebyshev())


def test_a_singular_value_that_would_not_be_seen_is_allowed_for() -> None:
    x = np.concat([[1e-12], FLAT[1:]])
    found = tk.logdet(np.diag(x), 60, rng=0, atol=5.0, hermitian=False)
    low, high = found.confidence_interval()
    assert low < np.log(x).sum() < high
