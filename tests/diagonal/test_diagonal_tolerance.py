"""Laws of tolerances of arrays: kept, ceilings, runs that go on, and factors whose range grows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import installed, matrix

import tracekit as tk
from tracekit import probes
from tracekit.testing import known_spectrum

N = 48
DIMS = (4, 12)


class Killed(BaseException):
    """Ends a run where nothing may catch it."""


class Function:
    """An estimator of an array, what it is of, and its budget for so many products."""

    def __init__(
        self, call: Callable[..., Any], truth: Callable[[np.ndarray], np.ndarray], per: int = 1
    ) -> None:
        self.call, self.truth, self.per = call, truth, per

    def __call__(self, A: Any, most: int | None = None, **options: Any) -> tk.Estimate:
        return self.call(A, most and most // self.per, **options)


def traced(A: np.ndarray, axis: int = 1) -> np.ndarray:
    blocks = A.reshape(*DIMS, *DIMS)
    return np.einsum("ikjk->ij", blocks) if axis == 1 else np.einsum("kikj->ij", blocks)


def over_axes(function: Any) -> Callable[..., Any]:
    return lambda A, most, **options: function(A, DIMS, 1, most, **options)


FUNCTIONS = {
    "diagonal": Function(tk.diagonal, np.diag),
    "xdiag": Function(tk.xdiag, np.diag),
    "xnysdiag": Function(tk.xnysdiag, np.diag),
    "block_traces": Function(over_axes(tk.block_traces), lambda A: np.diag(traced(A))),
    "partial_trace": Function(over_axes(tk.partial_trace), traced, per=DIMS[0]),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)
forms = pytest.mark.parametrize("form", ["plain", "factor"])


def dense(power: float = -1.0, n: int = N) -> np.ndarray:
    return known_spectrum(np.arange(1.0, n + 1) ** power)


def formed(A: np.ndarray, form: str) -> Any:
    return tk.gram(np.linalg.cholesky(A)) if form == "factor" else tk.as_operator(A)


def most_of(name: str, form: str, most: int = 40) -> int:
    """A budget of so many products, in the unit of the function."""
    return most * FUNCTIONS[name].per if form == "factor" else most


def watched(A: Any, at: int = 0, error: Any = Killed, spoil: Any = None) -> tuple[Any, list[int]]:
    """An operator whose product number `at` raises, or is spoilt; and the columns of each."""
    calls = list[int]()

    def watch(product: Any) -> Any:
        def watching(X: Any) -> Any:
            calls.append(X.shape[1])
            if len(calls) != at:
                return product(X)
            if spoil is None:
                raise error
            return product(X) * spoil

        return watching

    of = A if A.factor is None else A.factor
    made = tk.LinearOperator(
        of.shape, watch(of.matmat), rmatmat=watch(of.rmatmat), dtype=of.dtype, xp=of.xp
    )
    return (made if A.factor is None else tk.gram(made)), calls


def same_bits(one: tk.Estimate, other: tk.Estimate) -> bool:
    return (
        np.asarray(one.value).tobytes() == np.asarray(other.value).tobytes()
        and np.asarray(one.standard_error).tobytes() == np.asarray(other.standard_error).tobytes()
        and (one.num_matvecs, repr(one)) == (other.num_matvecs, repr(other))
    )


# Within the tolerance -------------------------------------------------------------------------


@functions
@forms
@pytest.mark.parametrize("power", [-2.0, -0.3])
def test_runs_are_within_the_tolerance(name: str, form: str, power: float) -> None:
    """Of 40 runs on fixed seeds at most two outside, by the norm that was asked for."""
    A = dense(power)
    truth, operator = FUNCTIONS[name].truth(A), formed(A, form)
    for entrywise, size in ((False, np.linalg.norm), (True, lambda X: np.max(np.abs(X)))):
        off = []
        for seed in range(40):
            found = FUNCTIONS[name](operator, rng=seed, rtol=0.25, entrywise=entrywise)
            assert found.converged
            off.append(size(found.value - truth) > 0.25 * size(truth))
        assert sum(off) <= 2


@functions
@forms
def test_looser_tolerances_cost_less(name: str, form: str) -> None:
    A = formed(dense(-0.3, N), form)
    spent = [FUNCTIONS[name](A, rng=0, rtol=rtol).num_matvecs for rtol in (2.0, 0.5, 1e-9)]
    assert spent == sorted(spent)
    assert spent[0] < spent[2]
    exact = FUNCTIONS[name](A, rng=0, rtol=1e-9)
    assert float(np.max(exact.standard_error)) == 0.0
    assert exact.converged


def test_the_largest_entry_and_the_norm_are_different_tolerances() -> None:
    """Entries alike: the norm of all errors is within what each single one is not."""
    A = dense(-0.3, 400)
    by_norm = tk.diagonal(A, 300, rng=0, rtol=0.15)
    by_entry = tk.diagonal(A, 300, rng=0, rtol=0.15, entrywise=True)
    assert by_norm.converged
    assert by_norm.num_matvecs < by_entry.num_matvecs


# What is spent --------------------------------------------------------------------------------


@functions
@forms
def test_spent_is_claimed_and_budgets_are_ceilings(name: str, form: str) -> None:
    A, cost = formed(dense(-0.3), form), N
    for most in (*range(1, 40), N - 1, N, 2 * N, 500):
        units = most_of(name, form, most)
        counted, counter = tk.counted(A)
        found = FUNCTIONS[name](counted, max(units, FUNCTIONS[name].per), rng=0, rtol=1e-9)
        per = FUNCTIONS[name].per if form == "plain" else 1
        assert found.num_matvecs == counter.total <= max(most, per)
        assert found.num_matvecs <= 2 * cost
    counted, counter = tk.counted(A)
    assert FUNCTIONS[name](counted, rng=0, rtol=0.1).num_matvecs == counter.total


@functions
@forms
def test_without_a_budget_there_is_the_exact_value_or_the_tolerance(name: str, form: str) -> None:
    A, truth = dense(), FUNCTIONS[name].truth(dense())
    if not name.startswith("x"):
        whole = FUNCTIONS[name](formed(A, form))
        np.testing.assert_allclose(whole.value, truth, atol=1e-12)
        seen = list[int]()
        shown = FUNCTIONS[name](
            formed(A, form), rng=0, callback=lambda e: seen.append(e.num_matvecs)
        )
        np.testing.assert_allclose(shown.value, truth, atol=1e-12)
        assert seen == sorted(set(seen))
        assert seen
    else:
        with pytest.raises(ValueError, match="num_matvecs"):
            FUNCTIONS[name](formed(A, form))
    with pytest.raises(ValueError, match="rtol"):
        FUNCTIONS[name](formed(A, form), rtol=-1.0)


# Runs that go on ------------------------------------------------------------------------------


@functions
@forms
@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_killed_at_every_call_and_resumed_bit_for_bit(
    name: str, form: str, kind: str, tmp_path: Path
) -> None:
    A = formed(matrix(kind, N) + 0.1 * np.eye(N), form)
    run = partial(FUNCTIONS[name], most=most_of(name, form), rng=3, rtol=1e-9)
    operator, calls = watched(A)
    whole = run(operator)
    assert len(calls) >= 2
    for at in range(1, len(calls) + 1):
        path = tmp_path / f"{at}.npz"
        with pytest.raises(Killed):
            run(watched(A, at)[0], checkpoint=path)
        operator, again = watched(A)
        assert same_bits(run(operator, checkpoint=path), whole)
        if at > len(calls) // 2:
            assert sum(again) < sum(calls), "what was paid for is paid for again"


@functions
@forms
@pytest.mark.parametrize("ended", [KeyboardInterrupt, MemoryError, ValueError, None])
def test_what_ends_a_run_carries_what_was_paid_for(name: str, form: str, ended: Any) -> None:
    A, most = formed(dense(), form), most_of(name, form)
    run = partial(FUNCTIONS[name], most=most, rng=3, rtol=1e-9)
    operator, calls = watched(A)
    whole, carried = run(operator), 0
    expected = tk.NotFiniteError if ended is None else ended
    for at in range(1, len(calls) + 1):
        broken, _ = watched(A, at, ended, np.nan if ended is None else None)
        with pytest.raises(expected) as caught:
            run(broken)
        paid = getattr(caught.value, "estimate", None)
        if paid is None:
            continue
        carried += 1
        assert not paid.converged
        assert 0 < paid.num_matvecs < whole.num_matvecs
        counted, counter = tk.counted(A)
        end = tk.resume(counted, paid, rtol=1e-9, num_matvecs=most // FUNCTIONS[name].per)
        assert same_bits(end, whole)
        assert counter.total == whole.num_matvecs - paid.num_matvecs
    assert carried > 0


def test_an_error_carries_nothing_of_another_run() -> None:
    error, A = ValueError("the same one each time"), formed(dense(), "plain")
    for at, paid in ((3, True), (1, False)):
        with pytest.raises(ValueError, match="the same one"):
            tk.diagonal(watched(A, at, error)[0], 40, rng=0, rtol=1e-9)
        assert (error.estimate is not None) is paid  # type: ignore[attr-defined]


@functions
@forms
def test_estimates_of_a_budget_go_on(name: str, form: str) -> None:
    A, truth = dense(), FUNCTIONS[name].truth(dense())
    for first in (1, 2, 5, 12, 34):
        units = max(most_of(name, form, first), FUNCTIONS[name].per)
        rough = FUNCTIONS[name](formed(A, form), units, rng=0)
        counted, counter = tk.counted(formed(A, form))
        most = most_of(name, form, 44) // FUNCTIONS[name].per
        more = tk.resume(counted, rough, rtol=0, num_matvecs=most)
        assert more.num_matvecs - rough.num_matvecs == counter.total
        assert more.num_matvecs <= 44
        assert more.method == rough.method
        assert np.linalg.norm(more.value - truth) < 0.6 * np.linalg.norm(truth)


# Factors, whose range grows -------------------------------------------------------------------


def test_a_range_that_grows_is_as_good_as_one_of_the_whole_budget() -> None:
    A = dense(-2.0, 200)
    L = tk.gram(np.linalg.cholesky(A))
    errors = {}
    for rtol in (0.0, 1e-12):
        found = [tk.diagonal(L, 128, rng=seed, rtol=rtol) for seed in range(10)]
        assert all(e.num_matvecs == 128 for e in found)
        errors[rtol] = np.mean([np.linalg.norm(e.value - np.diag(A)) for e in found])
    assert errors[1e-12] < 1.3 * errors[0.0]


def test_a_range_that_grows_leaves_the_estimate_unbiased() -> None:
    """By z-scores of the mean over 400 seeds, whose largest of 40 is above 4 once in 400."""
    A = dense(-0.5, 40)
    L = tk.gram(np.linalg.cholesky(A))
    found = np.stack([np.asarray(tk.diagonal(L, 39, rng=s, rtol=1e-12).value) for s in range(400)])
    z = (found.mean(axis=0) - np.diag(A)) / (found.std(axis=0) / 20)
    assert np.max(np.abs(z)) < 4


@pytest.mark.parametrize("joint", [probes.orthogonal, probes.hadamard])
@functions
def test_dependent_probes_go_on_as_one_block(name: str, joint: Any, tmp_path: Path) -> None:
    if name.startswith("x"):
        pytest.skip("dependent probes would bias it")
    for form in ("plain", "factor"):
        most = 16 if name == "partial_trace" and form == "plain" else most_of(name, form)
        A, options = formed(dense(), form), {"rng": 1, "rtol": 1e-9, "probes": joint}
        operator, calls = watched(A)
        whole = FUNCTIONS[name](operator, most, **options)
        with pytest.raises(Killed):
            FUNCTIONS[name](watched(A, len(calls))[0], most, checkpoint=tmp_path / form, **options)
        end = FUNCTIONS[name](A, most, checkpoint=tmp_path / form, **options)
        assert same_bits(end, whole)


def test_ranges_that_are_exhausted_end_it() -> None:
    G = np.random.default_rng(0).standard_normal((120, 5))
    for A in (G @ G.T, tk.gram(G), tk.gram(G @ np.linalg.qr(G.T @ np.eye(120))[0])):
        truth = np.sum(G * G, axis=1)
        for name in ("xdiag", "diagonal"):
            found = FUNCTIONS[name](A, 100, rng=0, rtol=1e-9)
            if name == "xdiag" or not isinstance(A, np.ndarray):
                np.testing.assert_allclose(found.value, truth, rtol=1e-9)
                assert found.converged
    zero = tk.gram(np.zeros((120, 120)))
    for name in ("diagonal", "xdiag", "xnysdiag"):
        found = FUNCTIONS[name](zero, 100, rng=0, rtol=1e-9)
        assert float(np.max(np.abs(found.value))) == 0.0


def test_a_low_rank_part_is_paid_for_once() -> None:
    A = dense(-2.0, N)
    B = A + np.triu(np.ones((N, N))) * 0.01
    for operator in (A, B, tk.gram(np.linalg.cholesky(A))):
        counted, counter = tk.counted(operator)
        found = tk.partial_trace(counted, DIMS, 0, 60, rng=0, rank=3, rtol=1e-9)
        assert found.num_matvecs == counter.total
        few = tk.partial_trace(operator, (2, N // 2), 1, 15, rng=0, rank=3, rtol=1e-9)
        assert not few.converged
        more = tk.resume(operator, few, num_matvecs=18, rtol=0)
        assert more.num_matvecs > few.num_matvecs


# In every library -----------------------------------------------------------------------------


@functions
def test_one_seed_one_run_in_every_library(name: str) -> None:
    A = matrix("psd", N) + 0.1 * np.eye(N)
    L = np.linalg.cholesky(A)
    for form in ("plain", "factor"):
        there = FUNCTIONS[name](formed(A, form), 24, rng=1, rtol=1e-9)
        for lib in installed("torch", "strict:device1", "numpy-readonly"):
            made = tk.gram(lib.array(L)) if form == "factor" else lib.array(A)
            here = FUNCTIONS[name](made, 24, rng=1, rtol=1e-9, entrywise=True)
            np.testing.assert_allclose(lib.numpy(here.value), there.value, rtol=1e-8, atol=1e-9)
            assert here.num_matvecs == there.num_matvecs
            assert lib.at_home(here.value)


@functions
def test_single_precision_stays(name: str) -> None:
    for form in ("plain", "factor"):
        A = matrix("psd", N) + 0.1 * np.eye(N)
        made = formed(A.astype(np.float32), form)
        found = FUNCTIONS[name](made, most_of(name, form), rng=0, rtol=1e-4)
        assert found.value.dtype == found.standard_error.dtype == np.float32


@functions
@pytest.mark.parametrize(("dtype", "unit"), [(float, 1e-300), (float, 1e300), (np.float32, 1e-30),
                                             (np.float32, 1e30)])  # fmt: skip
def test_units_change_nothing(name: str, dtype: Any, unit: float) -> None:
    """Squares of which are 0 or infinite."""
    A = dense(-0.3).astype(dtype)
    for rtol, atol in ((0.2, 0.0), (0.0, 1.0)):
        here = FUNCTIONS[name](A * dtype(unit), 40, rng=0, rtol=rtol, atol=atol * unit)
        there = FUNCTIONS[name](A, 40, rng=0, rtol=rtol, atol=atol)
        assert (here.num_matvecs, here.converged) == (there.num_matvecs, there.converged)
    if name == "diagonal":
        assert not FUNCTIONS[name](A * dtype(unit), 16, rng=0, rtol=1e-3).converged


def test_compiled_code_has_no_tolerance() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    A, key = jax.numpy.asarray(dense()), jax.random.key(0)
    with pytest.raises(TypeError, match=r"jax\.jit"):
        jax.jit(lambda A, key: tk.diagonal(A, 16, rng=key, rtol=1e-2).value)(A, key)


@functions
def test_tiny_dimensions(name: str) -> None:
    if name in ("block_traces", "partial_trace"):
        call = getattr(tk, name)
        found = call(np.array([[3.0]]), (1, 1), 1, rng=0, rtol=1e-3)
    else:
        found = FUNCTIONS[name](np.array([[3.0]]), rng=0, rtol=1e-3)
    assert float(np.asarray(found.value).reshape(())) == 3.0
    assert found.converged
