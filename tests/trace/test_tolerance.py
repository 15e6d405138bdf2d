"""Laws of tolerances: looks that double, products kept, levels that allow for the looks."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import KINDS, PSD, Library, installed, matrix

import tracekit as tk
from tracekit import probes
from tracekit.testing import benchmark_spectra, known_spectrum

N = 100
ADAPTIVE = (tk.hutchinson, tk.xtrace, tk.xnystrace)
PRICE = {tk.hutchinson: 1, tk.xtrace: 2, tk.xnystrace: 1}  # products a probe
SPECTRA = ("i^-2", "i^-0.5", "1+U", "0.7^i")
estimators = pytest.mark.parametrize("estimator", ADAPTIVE, ids=lambda f: f.__name__)
spectra = pytest.mark.parametrize("spectrum", SPECTRA)
PLENTY = 10**6


@cache
def dense(spectrum: str, n: int = N) -> np.ndarray:
    return known_spectrum(benchmark_spectra(n)[spectrum])


def kind_for(estimator: Any, kind: str) -> str:
    if estimator is not tk.xnystrace or kind in PSD:
        return kind
    return "complex psd" if kind in ("complex", "hermitian") else "psd"


def recorded(M: np.ndarray, factor_at: dict[int, float] | None = None) -> tuple[Any, list[Any]]:
    """An operator that keeps its blocks, and multiplies some results (by NaN, say)."""
    blocks: list[np.ndarray] = []

    def product(X: np.ndarray) -> np.ndarray:
        blocks.append(X.copy())
        return (M @ X) * (factor_at or {}).get(len(blocks), 1.0)

    return tk.LinearOperator(M.shape, product, dtype=M.dtype), blocks


# What is spent --------------------------------------------------------------------------------


@estimators
def test_looks_double(estimator: Any) -> None:
    """And what is spent between two of them is never more than a fifth of all."""
    (A, blocks), seen = recorded(dense("i^-0.5", 400)), list[int]()

    def see(state: tk.Estimate) -> None:
        seen.append(state.num_matvecs)

    estimate = estimator(A, 64 * PRICE[estimator], rng=0, rtol=1e-9, callback=see)
    assert seen == [PRICE[estimator] * m for m in (8, 16, 32, 64)]
    widths = [X.shape[1] for X in blocks]
    each = 2 if estimator is tk.xtrace else 1  # the probes, then their range
    assert widths == [w for w in (8, 8, 8, 8, 8, 10, 12, 2) for _ in range(each)]
    assert estimate.num_matvecs == sum(widths) == 64 * PRICE[estimator]


@estimators
def test_a_last_look_takes_what_is_left(estimator: Any) -> None:
    for units in (1, 2, 5, 8, 9, 11, 50):
        A, blocks = recorded(dense("i^-0.5", 400))
        budget = units * PRICE[estimator]
        estimate = estimator(A, budget, rng=0, rtol=1e-9)
        assert estimate.num_matvecs == sum(X.shape[1] for X in blocks) == budget
        assert not estimate.converged


@estimators
@pytest.mark.parametrize("kind", ["real", "complex", "complex psd"])
def test_the_sketch_is_that_of_the_budget_at_once(estimator: Any, kind: str) -> None:
    """The same probes, the same estimate, whether they came in one step or in four."""
    A = matrix(kind_for(estimator, kind), 200)
    laws = {tk.hutchinson: (probes.rademacher, probes.orthogonal, probes.hadamard, probes.sphere)}
    for law in laws.get(estimator, (probes.sphere, probes.rademacher)):
        for budget in (24, 64, 90):
            grown = estimator(A, budget, rng=3, rtol=1e-12, probes=law)
            whole = estimator(A, budget, rng=3, probes=law)
            assert grown.num_matvecs == whole.num_matvecs == budget
            assert complex(grown.value) == pytest.approx(complex(whole.value), rel=1e-9)
            error = float(whole.standard_error)
            assert float(grown.standard_error) == pytest.approx(error, rel=1e-6)
            assert grown.samples.shape == whole.samples.shape


@estimators
def test_no_product_is_repeated(estimator: Any) -> None:
    """The blocks that go through the operator are, together, of full rank."""
    A, blocks = recorded(dense("i^-2", 300))
    estimate = estimator(A, 64 * PRICE[estimator], rng=0, rtol=1e-15)
    at_probes = blocks[:: PRICE[estimator]]
    X = np.concatenate(at_probes, axis=1)
    assert np.linalg.matrix_rank(X) == X.shape[1] == 64
    if estimator is tk.xtrace:
        Q = np.concatenate(blocks[1::2], axis=1)
        np.testing.assert_allclose(Q.T @ Q, np.eye(64), atol=1e-12)
    assert estimate.num_matvecs == sum(X.shape[1] for X in blocks)


@estimators
@pytest.mark.parametrize("form", ["plain", "factor"])
def test_spent_is_claimed_and_never_above_the_budget(estimator: Any, form: str) -> None:
    M = dense("i^-0.5", 60)
    for tolerance in ({"rtol": 1e-9}, {"rtol": 0.1}, {"atol": 2.0}):
        for budget in [*range(1, 66), 100, 140, PLENTY]:
            made = tk.gram(np.linalg.cholesky(M)) if form == "factor" else M
            A, counter = tk.counted(made)
            estimate = estimator(A, budget, rng=0, **tolerance)
            assert estimate.num_matvecs == counter.total <= budget, budget
            assert estimate.num_matvecs < 2 * 60 + 8


# When it ends ---------------------------------------------------------------------------------


def looks_of(budget: int, price: int, n: int) -> list[int]:
    """Products at each look that can be."""
    most, sizes = min(budget, n - 1) // price, []
    size = 8
    while size < most:
        sizes.append(size * price)
        size *= 2
    return [*sizes, most * price]


@estimators
@spectra
@pytest.mark.parametrize("tolerance", [{"rtol": 0.1}, {"rtol": 0.03}, {"atol": 0.5},
                                       {"rtol": 0.02, "atol": 0.05}], ids=repr)  # fmt: skip
def test_the_first_look_within_tolerance_ends_it(
    estimator: Any, spectrum: str, tolerance: dict[str, float]
) -> None:
    """At a level that allows for every look there can be."""
    A, n = dense(spectrum, 400), 400
    for seed in range(3):
        budget = 250
        looks = looks_of(budget, PRICE[estimator], n)
        level = 1 - 0.05 / len(looks)
        for spent in looks:
            at_once = estimator(A, spent, rng=seed)
            low, high = (float(end) for end in at_once.confidence_interval(level))
            center = float(at_once)
            allowed = tolerance.get("atol", 0) + tolerance.get("rtol", 0) * abs(center)
            if max(high - center, center - low) <= allowed:
                break
        estimate = estimator(A, budget, rng=seed, **tolerance)
        assert estimate.num_matvecs == spent
        assert estimate.converged == (max(high - center, center - low) <= allowed)


@estimators
@spectra
def test_runs_are_within_the_tolerance(estimator: Any, spectrum: str) -> None:
    """Of 60 runs, on fixed seeds, at most three outside."""
    A, truth = dense(spectrum, 200), float(np.trace(dense(spectrum, 200)))
    for rtol in (0.1, 0.03):
        runs = [estimator(A, PLENTY, rng=seed, rtol=rtol) for seed in range(60)]
        assert all(run.converged for run in runs)
        assert sum(abs(float(run) / truth - 1) > rtol for run in runs) <= 3


@estimators
def test_a_budget_that_is_too_small_says_so(estimator: Any) -> None:
    A = dense("i^-0.5", 400)
    short = estimator(A, 40, rng=0, rtol=1e-6)
    assert (short.num_matvecs, short.converged) == (40, False)
    assert "not converged" in repr(short)
    assert short.to_dict()["converged"] is False
    enough = estimator(A, 40, rng=0, rtol=0.5)
    assert enough.converged
    assert enough.num_matvecs < 40
    assert estimator(A, 40, rng=0).converged, "no tolerance, none missed"


@estimators
def test_the_exact_trace_ends_what_would_cost_as_much(estimator: Any) -> None:
    A, truth = dense("i^-0.5"), float(np.trace(dense("i^-0.5")))
    A, counter = tk.counted(A)
    estimate = estimator(A, PLENTY, rng=0, rtol=1e-9)
    assert estimate.method == "exact_trace"
    assert (float(estimate.standard_error), estimate.converged) == (0.0, True)
    assert float(estimate) == pytest.approx(truth, rel=1e-12)
    assert N < estimate.num_matvecs == counter.total < 2 * N
    # where the budget holds the sketch alone, it is spent on that
    capped = estimator(dense("i^-0.5"), N - 1, rng=0, rtol=1e-9)
    assert not capped.converged
    assert N - 2 <= capped.num_matvecs <= N - 1


@estimators
def test_exhausted_ranges_end_it_soon(estimator: Any) -> None:
    if estimator is tk.hutchinson:
        pytest.skip("Hutchinson keeps no sketch")
    G = np.random.default_rng(0).standard_normal((300, 5))
    estimate = estimator(G @ G.T, PLENTY, rng=0, rtol=1e-10)
    assert estimate.num_matvecs == 8 * PRICE[estimator]
    assert float(estimate) == pytest.approx(np.sum(G * G), rel=1e-11)


@estimators
def test_zero_and_one_by_one(estimator: Any) -> None:
    zero = estimator(np.zeros((N, N)), PLENTY, rng=0, rtol=1e-3)
    assert (float(zero), zero.num_matvecs, zero.converged) == (0.0, 8 * PRICE[estimator], True)
    one = estimator(np.array([[3.0]]), PLENTY, rng=0, rtol=1e-3)
    assert (float(one), one.converged) == (3.0, True)


# What is lost: nothing ------------------------------------------------------------------------


@estimators
def test_nan_at_any_call_carries_what_was_paid_for(estimator: Any) -> None:
    M, first = dense("i^-0.5"), 2 if estimator is tk.xtrace else 1
    _, blocks = recorded(M)
    A, blocks = recorded(M)
    estimator(A, PLENTY, rng=0, rtol=1e-9)
    assert len(blocks) >= 5
    for at in range(1, len(blocks) + 1):
        A, _ = recorded(M, {at: np.nan})
        with pytest.raises(tk.NotFiniteError) as caught:
            estimator(A, PLENTY, rng=0, rtol=1e-9)
        paid = caught.value.estimate
        if at <= first:
            assert paid is None, at
        else:
            assert paid is not None, at
            assert float(paid) == pytest.approx(np.trace(M), rel=0.2)
            assert paid.num_matvecs >= 8


def test_a_run_that_began_with_few_probes_goes_on_as_it_began() -> None:
    A = dense("i^-2")
    for estimator in (tk.xtrace, tk.xnystrace, tk.hutchpp, tk.nahutchpp):
        few = estimator(A, 2, rng=0)
        more = tk.resume(A, few, rtol=0.0, num_matvecs=40)
        assert (more.num_matvecs, more.method) == (40, estimator.__name__)
        assert float(more) == pytest.approx(np.trace(A), rel=0.5)


# In every library -----------------------------------------------------------------------------


@estimators
@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_one_run_in_every_library(eager: Library, estimator: Any, kind: str) -> None:
    if kind_for(estimator, kind) != kind:
        pytest.skip("XNysTrace is for positive semidefinite operators")
    if eager.family == "jax" and (kind, estimator) != ("real", tk.hutchinson):
        pytest.skip("each shape of array is compiled, which takes long")
    A, budget = matrix(kind, 120), 24
    here = estimator(eager.array(A), budget, rng=1, rtol=1e-4)
    there = estimator(A, budget, rng=1, rtol=1e-4)
    assert complex(here.value) == pytest.approx(complex(there.value), rel=1e5 * eager.eps)
    assert (here.num_matvecs, here.converged) == (there.num_matvecs, there.converged)
    assert (here.num_matvecs, here.converged) == (budget, False)
    assert eager.at_home(here.value)


@estimators
def test_blocks_do_not_change_the_run(estimator: Any) -> None:
    A = dense("i^-2", 200)
    base = estimator(A, 100, rng=1, rtol=0.02)
    for chunk_size in (1, 3, 8, 1000):
        blocked = estimator(A, 100, rng=1, rtol=0.02, chunk_size=chunk_size)
        assert float(blocked) == pytest.approx(float(base), rel=1e-9)
        assert blocked.num_matvecs == base.num_matvecs


@estimators
def test_compiled_code_has_no_tolerance(estimator: Any) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    A, key = jax.numpy.asarray(dense("i^-2")), jax.random.key(0)
    with pytest.raises(TypeError, match=r"jax\.jit"):
        jax.jit(lambda A, key: estimator(A, 16, rng=key, rtol=1e-2))(A, key)


def test_a_torch_generator_does_not_depend_on_the_steps() -> None:
    for lib in installed("torch"):
        import torch

        for estimator in ADAPTIVE:
            runs = [
                estimator(lib.array(dense("i^-0.5", 200)), 50,
                          rng=torch.Generator().manual_seed(2), rtol=rtol)
                for rtol in (0.0, 1e-12)
            ]  # fmt: skip
            assert float(runs[0]) == pytest.approx(float(runs[1]), rel=1e-9)
            assert math.isfinite(float(runs[0]))
