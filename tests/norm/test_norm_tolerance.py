"""Laws of norms to a tolerance: kept, not dear, honest; resumed is uninterrupted, bit for bit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import matrix

import tracekit as tk
from tracekit.testing import benchmark_spectra, known_spectrum

N = 100
Y = np.arange(1.0, N + 1) ** -0.5


class Killed(BaseException):
    """Ends a run where nothing may catch it."""


def both_ways(M: np.ndarray) -> tk.LinearOperator:
    return tk.LinearOperator(M.shape, lambda X: M @ X, lambda X: M.conj().T @ X, dtype=M.dtype)


def low_rank(n: int = N) -> np.ndarray:
    """Twelve large directions, and noise under them."""
    return known_spectrum(np.concatenate([np.ones(12), np.full(n - 12, 1e-3)]))


@cache
def dense(name: str) -> np.ndarray:
    if name == "low rank":
        return low_rank()
    if name == "complex":
        return matrix("complex", N) * np.arange(1, N + 1.0) ** -1
    return known_spectrum(benchmark_spectra(N)[name])


def cosine(A: np.ndarray, B: np.ndarray) -> complex:
    return complex(np.vdot(A, B)) / float(np.linalg.norm(A) * np.linalg.norm(B))


class Row(NamedTuple):
    """A function of one matrix, the exact value, and whether it is of two operators."""

    call: Callable[..., Any]
    truth: Callable[[np.ndarray], list[complex]]
    pair: bool = False
    factor: bool = False  # of L where the matrix is L L^H
    not_for: tuple[str, ...] = ()

    def operators(self, M: np.ndarray, made: Callable[[np.ndarray], Any]) -> Any:
        """What the function is of."""
        return (made(M), made(dense("i^-2"))) if self.pair else made(M)

    def is_for(self, case: str) -> bool:
        return case not in self.not_for and not (self.factor and case in ("gram", "complex"))

    def run(self, given: Any, *args: Any, **options: Any) -> Any:
        given = given if isinstance(given, tuple) else (given,)
        return self.call(*given, *args, **options)


def norm(A: np.ndarray) -> float:
    return float(np.linalg.norm(A))


def all_three(A: np.ndarray) -> list[complex]:
    t = complex(np.trace(A))
    return [t, norm(A), abs(t) ** 2 / norm(A) ** 2]


FUNCTIONS: dict[str, Row] = {
    "frobenius_norm": Row(tk.frobenius_norm, lambda A: [norm(A)]),
    "spectral_summary": Row(tk.spectral_summary, all_three, not_for=("complex",)),
    "effective_rank": Row(tk.effective_rank, lambda A: all_three(A)[2:], not_for=("complex",)),
    "inner": Row(tk.inner, lambda A: [complex(np.vdot(A, dense("i^-2")))], pair=True),
    "alignment": Row(tk.alignment, lambda A: [cosine(A, dense("i^-2"))], pair=True),
    "target_alignment": Row(
        lambda K, *m, **more: tk.target_alignment(K, Y, *m, **more),
        lambda A: [cosine(np.outer(Y, Y), A).real],
        not_for=("complex",),
    ),
    "one_sided_summary": Row(tk.one_sided_summary, lambda L: all_three(L @ L.T), factor=True),
    "one_sided_alignment": Row(
        tk.one_sided_alignment,
        lambda L: [cosine(L @ L.T, dense("i^-2") @ dense("i^-2"))],
        pair=True,
        factor=True,
    ),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)
TOLERANCE = {
    "inner": {"rtol": 0.05, "atol": 0.05},
    "alignment": {"atol": 0.03},
    "one_sided_alignment": {"atol": 0.05},
}
CASES = ["i^-2", "1+U", "low rank", "complex", "gram"]


def every(found: Any) -> list[tk.Estimate]:
    return [found] if isinstance(found, tk.Estimate) else list(found)


def operator_of(case: str) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    if case == "gram":
        return dense("i^-0.5"), lambda M: tk.gram(np.linalg.cholesky(M))
    return dense(case), both_ways


def is_outside(found: Any, truth: list[complex], rtol: float = 0.0, atol: float = 0.0) -> bool:
    pairs = zip(every(found), truth, strict=True)
    return any(abs(complex(e.value) - x) > atol + rtol * abs(x) for e, x in pairs)


# Kept, and not dear ---------------------------------------------------------------------------


@functions
@pytest.mark.parametrize("case", CASES)
def test_tolerances_are_kept(name: str, case: str) -> None:
    """Of 20 runs on fixed seeds at most one outside; three times what had been enough at most."""
    row = FUNCTIONS[name]
    if not row.is_for(case):
        pytest.skip("is of a real L, of a Hermitian kernel, or of a trace that is not near zero")
    M, made = operator_of(case)
    tolerance = TOLERANCE.get(name, {"rtol": 0.1 if case == "1+U" else 0.05})
    given, truth = row.operators(M, made), row.truth(M)
    runs = [row.run(given, rng=seed, **tolerance) for seed in range(20)]
    assert all(e.converged for run in runs for e in every(run))
    assert sum(is_outside(run, truth, **tolerance) for run in runs) <= 1
    spent = float(np.median([every(run)[0].num_matvecs for run in runs]))
    first = every(row.run(given, rng=0, rtol=1e9))[0].num_matvecs
    for enough in (first, 2 * first, 4 * first, 8 * first):
        at_once = [row.run(given, enough, rng=seed) for seed in range(20)]
        if sum(is_outside(run, truth, **tolerance) for run in at_once) <= 1:
            break
    assert spent <= 3 * enough


@functions
def test_spent_is_claimed_and_a_budget_a_ceiling(name: str) -> None:
    row = FUNCTIONS[name]
    for made in (both_ways, lambda M: tk.gram(np.linalg.cholesky(M))):
        for tolerance in ({"rtol": 1e-9}, {"rtol": 0.3}, {"atol": 0.5}):
            for budget in (8, 13, 40, 99, 230, None):
                given = row.operators(dense("i^-0.5"), made)
                both = given if isinstance(given, tuple) else (given,)
                counted, counters = zip(*map(tk.counted, both), strict=True)
                found = row.run(counted, budget, rng=0, **tolerance)
                spent = sum(counter.total for counter in counters)
                ceiling = np.inf if budget is None else budget
                for e in every(found):
                    assert e.num_matvecs == spent <= ceiling, (budget, tolerance)
                if budget is None:
                    assert all(e.converged for e in every(found))


@functions
def test_none_wants_a_tolerance_and_tolerances_are_numbers(name: str) -> None:
    row = FUNCTIONS[name]
    given = row.operators(dense("i^-2"), both_ways)
    with pytest.raises(ValueError, match="`num_matvecs` must be a positive integer, got None"):
        row.run(given, rng=0)
    with pytest.raises((ValueError, TypeError), match="`rtol`"):
        row.run(given, 40, rng=0, rtol=-1.0)
    with pytest.raises(TypeError, match="`callback`"):
        row.run(given, 40, rng=0, callback=3)


@functions
def test_a_budget_that_is_too_small_says_so(name: str) -> None:
    row = FUNCTIONS[name]
    given = row.operators(dense("1+U"), both_ways)
    short = every(row.run(given, 40, rng=0, rtol=1e-9))
    assert not any(e.converged for e in short)
    assert "not converged" in repr(short[0])
    told = list[Any]()
    ended = row.run(given, 90, rng=0, callback=lambda found: told.append(found) or True)
    assert "ended by the callback" in every(ended)[0].reason
    assert len(told) == 1


@functions
def test_plain_budgets_are_spent_at_once(name: str) -> None:
    """The operator is called no more often than a plain budget needs, with all the columns."""
    row, calls = FUNCTIONS[name], list[int]()
    M = dense("i^-2")

    def product(X: np.ndarray) -> np.ndarray:
        calls.append(X.shape[1])
        return M @ X

    A = tk.LinearOperator(M.shape, product, product)
    given = (A, A) if row.pair else A
    row.run(given, 60, rng=0)
    assert len(calls) <= 4


# Resumed is uninterrupted ---------------------------------------------------------------------


def dying(M: np.ndarray, at: int, ends: Any = Killed, *, factor: bool = False) -> Any:
    """An operator that ends its run at call number `at`; 0 for never."""
    calls = 0

    def product(M: np.ndarray, X: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == at:
            if ends is np.nan:
                return M @ X * np.nan
            raise ends
        return M @ X

    L = tk.LinearOperator(M.shape, partial(product, M), partial(product, M.conj().T), dtype=M.dtype)
    return tk.gram(L) if factor else L


KINDS: dict[str, tuple[Callable[[], np.ndarray], bool]] = {
    "symmetric": (lambda: dense("i^-0.5"), False),
    "general": (lambda: matrix("real", N), False),
    "gram": (lambda: np.linalg.cholesky(dense("i^-0.5")), True),
}
BEYOND = {"rtol": 1e-9, "num_matvecs": 48}


def bits(found: Any) -> list[tuple[str, str, int, str]]:
    return [
        (repr(complex(e.value)), float(e.standard_error).hex(), e.num_matvecs, repr(e))
        for e in every(found)
    ]


def given_to(row: Row, kind: str, at: int, ends: Any = Killed) -> Any:
    made, factor = KINDS[kind]
    A = dying(made(), at, ends, factor=factor)
    if not row.pair:
        return A
    return A, (tk.gram(dense("i^-2")) if factor else both_ways(dense("i^-2")))


@functions
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_every_call(name: str, kind: str, tmp_path: Path) -> None:
    row = FUNCTIONS[name]
    whole, calls = row.run(given_to(row, kind, 0), rng=3, **BEYOND), 0
    while True:
        path, died = tmp_path / f"{calls}.npz", False
        try:
            end = row.run(given_to(row, kind, calls + 1), rng=3, checkpoint=path, **BEYOND)
        except Killed:
            died = True
            end = row.run(given_to(row, kind, 0), rng=3, checkpoint=path, **BEYOND)
        assert bits(end) == bits(whole)
        if not died:
            break
        calls += 1
    assert calls >= 3


@functions
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ends", [KeyboardInterrupt(), MemoryError("no room"), ValueError("a solver"), np.nan], ids=repr
)
def test_what_ends_a_run_carries_what_was_paid_for(name: str, kind: str, ends: Any) -> None:
    """And `resume` goes on to where the run would have ended."""
    row = FUNCTIONS[name]
    whole = row.run(given_to(row, kind, 0), rng=3, **BEYOND)
    wanted = tk.NotFiniteError if ends is np.nan else type(ends)
    late = 3 if row.factor else 5 if name == "target_alignment" else 4
    with pytest.raises(wanted) as caught:
        row.run(given_to(row, kind, late, ends), rng=3, **BEYOND)
    paid = caught.value.estimate  # type: ignore[attr-defined]
    assert paid is not None
    first = every(paid)[0]
    assert not first.converged
    assert 0 < first.num_matvecs < every(whole)[0].num_matvecs
    assert "ended by" in first.reason
    further = tk.resume(given_to(row, kind, 0), pickle.loads(pickle.dumps(paid)), **BEYOND)
    assert [e.num_matvecs for e in every(further)] == [e.num_matvecs for e in every(whole)]
    for e, x in zip(every(further), every(whole), strict=True):
        assert complex(e.value) == pytest.approx(complex(x.value), rel=1e-9, abs=1e-12)
        assert float(e.standard_error) == pytest.approx(float(x.standard_error), rel=1e-6)


@functions
@pytest.mark.parametrize("kind", KINDS)
def test_plain_estimates_go_on(name: str, kind: str) -> None:
    row = FUNCTIONS[name]
    given = given_to(row, kind, 0)
    for budget in (8, 24, 40):
        found = row.run(given, budget, rng=2)
        spent = every(found)[0].num_matvecs
        more = every(tk.resume(given, found, rtol=0.0, num_matvecs=76))[0]
        assert spent < more.num_matvecs <= 76
        assert more.num_matvecs >= 70


def test_resume_of_two_operators_wants_two() -> None:
    A, B = dense("i^-2"), dense("1+U")
    rough = tk.alignment(A, B, 24, rng=0)
    with pytest.raises(ValueError, match="alignment is of 2 operators, got 1"):
        tk.resume(A, rough)
    with pytest.raises(ValueError, match="shape"):
        tk.resume((np.eye(3), np.eye(3)), rough)


def test_a_thin_factor_is_no_dead_end() -> None:
    """A sketch has no more columns than the thinner factor: another kind is taken at once."""
    G = np.random.default_rng(0).standard_normal((N, 130))
    for thin in (2, 3, 10):
        A, B = tk.gram(G[:, :thin]), tk.gram(G[:, -90:])
        found = tk.alignment(A, B, atol=1e-3, rng=0)
        truth = cosine(G[:, :thin] @ G[:, :thin].T, G[:, -90:] @ G[:, -90:].T).real
        assert found.converged
        assert float(found) == pytest.approx(truth, abs=1e-3)


def test_the_decision_is_kept_with_the_sketch(tmp_path: Path) -> None:
    """Whether A is Hermitian is seen once, by the first probes."""
    M = np.zeros((N, N))
    M[:8, :8] = dense("i^-2")[:8, :8]
    M += 1e-12 * matrix("real", N)
    found = tk.frobenius_norm(both_ways(M), 60, rng=0, rtol=1e-12, checkpoint=tmp_path / "run.npz")
    assert float(found) == pytest.approx(norm(M), rel=1e-6)
