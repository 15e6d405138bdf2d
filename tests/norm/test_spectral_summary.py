"""Laws of norms and effective ranks: unbiased, exact, equivariant, what they cost, libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import twins
import twins_moments as naive
from conftest import KINDS, Library, installed, library, matrix

import tracekit as tk
from tracekit import probes
from tracekit.probes.source import Source
from tracekit.testing import unbiasedness_test

HERMITIAN = ("symmetric", "psd", "hermitian", "complex psd")
fields = pytest.mark.parametrize("field", ["real", "complex"])
kinds = pytest.mark.parametrize("kind", KINDS)


def factor(kind: str, n: int, P: int, *, seed: int = 0) -> np.ndarray:
    return matrix(kind, max(n, P), seed=seed)[:n, :P]


def black_box(A: np.ndarray, *, adjoint: bool = False) -> tk.LinearOperator:
    """An operator that hides its entries, and may have no product with its adjoint."""
    return tk.LinearOperator(
        A.shape, lambda X: A @ X, (lambda X: A.conj().T @ X) if adjoint else None, dtype=A.dtype
    )


def dense(A: Any) -> np.ndarray:
    return A if isinstance(A, np.ndarray) else A @ np.eye(A.shape[1])


def facts(A: Any) -> tuple[complex, float, float]:
    """Trace, norm and effective rank."""
    D = dense(A)
    t, f = np.trace(D), np.linalg.norm(D)
    return t, f, abs(t) ** 2 / f**2


def same(estimate: Any, exact: Any, rtol: float = 1e-12) -> None:
    assert abs(estimate.value - exact) <= rtol * max(abs(exact), 1e-3)
    assert estimate.standard_error <= 1e-8 * max(abs(exact), 1e-3)


# One path each: the operator of a dense matrix or factor, and its budget.
N = 14
SQUARE: dict[str, Callable[[str], tuple[Any, int]]] = {
    "Krylov": lambda f: (matrix("hermitian" if f == "complex" else "symmetric", N), 10),
    "Krylov of few": lambda f: (matrix("complex psd" if f == "complex" else "psd", N), 6),
    "shared": lambda f: (matrix(f, N), 10),
    "shared, no adjoint": lambda f: (black_box(matrix(f, N)), 8),
    "independent": lambda f: (matrix(f, N), 4),
    "factored, P > n": lambda f: (tk.gram(factor(f, N, 20)), 12),
    "factored, P < n": lambda f: (tk.gram(factor(f, N, 12)), 9),
    "factored, other side": lambda f: (tk.gram(tk.as_operator(factor(f, 12, N)).H), 9),
}
RECTANGULAR: dict[str, Callable[[str], tuple[Any, int]]] = {
    "two-sided": lambda f: (matrix(f, N), 9),
    "two-sided, tall": lambda f: (factor(f, N, 11), 8),
    "two-sided, wide": lambda f: (factor(f, 11, N), 8),
    "one way, tall": lambda f: (black_box(factor(f, N, 11)), 7),
    "one way, wide": lambda f: (black_box(factor(f, 11, N)), 7),
    "two-sided of few": lambda f: (factor(f, N, 11), 5),
}
square = pytest.mark.parametrize("path", SQUARE)


@cache
def many_runs(path: str, field: str) -> list[tk.SpectralSummary]:
    A, m = SQUARE[path](field)
    return [tk.spectral_summary(A, m, rng=seed) for seed in range(200)]


# Unbiased -------------------------------------------------------------------------------------


@fields
@square
def test_trace_and_squared_norm_are_unbiased(path: str, field: str) -> None:
    A, _ = SQUARE[path](field)
    t, f, _ = facts(A)
    runs = many_runs(path, field)
    unbiasedness_test(lambda A, rng: runs[rng].trace, A, exact=t, max_z=4.5)
    squared = lambda A, rng: runs[rng].frobenius_norm.value ** 2  # noqa: E731
    unbiasedness_test(squared, A, exact=f * f, max_z=4.5)
    assert np.std([abs(run.trace.value) for run in runs]) > 1e-4 * abs(t)


@fields
@pytest.mark.parametrize("path", RECTANGULAR)
def test_squared_norm_is_unbiased(path: str, field: str) -> None:
    A, m = RECTANGULAR[path](field)
    squared = lambda A, rng: tk.frobenius_norm(A, m, rng=rng).value ** 2  # noqa: E731
    unbiasedness_test(squared, A, exact=facts(black_box(dense(A)))[1] ** 2, max_z=4.5)


@pytest.mark.parametrize("m", range(2, 36))
def test_squared_norm_of_a_factored_operator_is_unbiased_at_every_budget(m: int) -> None:
    """Up to and beyond those where twice the probes would fill the space."""
    A = tk.gram(factor("real", 12, 18))
    _, f, _ = facts(A)
    squares = np.array([float(tk.frobenius_norm(A, m, rng=seed)) ** 2 for seed in range(80)])
    spread = squares.std(ddof=1) / 80**0.5
    slack = 0.5 * f * f / m if m < 9 else 1e-9 * f * f  # the one-sided norm is a corrected root
    assert abs(squares.mean() - f * f) < 4.5 * spread + slack


def test_the_numerator_of_the_effective_rank_is_corrected() -> None:
    """Without the correction the variance of the trace would count as a squared trace."""
    A = matrix("symmetric", 16)
    A = A - np.eye(16) * (np.trace(A) / 16)
    corrected, naively = [], []
    for seed in range(400):
        run = tk.spectral_summary(A, 4, rng=seed)
        corrected.append(float(run.effective_rank) * float(run.frobenius_norm) ** 2)
        naively.append(float(run.trace) ** 2)
    spread = np.std(naively) / 20
    assert abs(np.mean(corrected)) < 4 * spread
    assert np.mean(naively) > 10 * spread


@fields
@square
def test_biases_of_norm_and_rank_are_of_second_order(path: str, field: str) -> None:
    """Within the square of the relative errors, which the documentation names."""
    A, _ = SQUARE[path](field)
    _, f, r = facts(A)
    runs = many_runs(path, field)
    norms = np.array([float(run.frobenius_norm) for run in runs]) / f - 1
    ranks = np.array([float(run.effective_rank) for run in runs]) / r - 1
    first = [abs(run.trace.value / facts(A)[0] - 1) ** 2 for run in runs]
    size = np.mean(norms**2) + np.mean(first)
    assert abs(norms.mean()) < np.mean(norms**2) + 4 * norms.std() / 200**0.5
    assert abs(ranks.mean()) < 5 * size + 4 * ranks.std() / 200**0.5
    assert size < 0.5


# Equal to naive twins -------------------------------------------------------------------------


def drawn(A: Any, n: int, b: int, *, seed: int = 3) -> np.ndarray:
    return probes.sphere(Source(seed, tk.as_operator(A)), n, b)


@kinds
@pytest.mark.parametrize("adjoint", [True, False], ids=["adjoint", "no adjoint"])
def test_black_boxes_are_read_as_their_twins(kind: str, adjoint: bool) -> None:
    A = matrix(kind, N)
    Omega = drawn(A, N, 4)
    got = tk.spectral_summary(black_box(A, adjoint=adjoint), 9, rng=3)
    if kind in HERMITIAN:
        traces, squares = naive.krylov(A, Omega)
    else:
        traces = twins.xtrace(A, Omega, resphere=True)
        squares = naive.shared(A, A, A @ Omega, Omega)
    assert got.trace.value == pytest.approx(traces.mean(), rel=1e-5)
    assert got.frobenius_norm.value**2 == pytest.approx(squares.mean().real, rel=1e-5)
    norm = tk.frobenius_norm(black_box(A, adjoint=adjoint), 9, rng=3)
    if adjoint and kind not in HERMITIAN:
        squares = naive.two_sided(A, Omega)
    assert norm.value**2 == pytest.approx(squares.mean().real, rel=1e-5)
    assert norm.num_matvecs == got.trace.num_matvecs == 8


@fields
@pytest.mark.parametrize("shape", [(N, 20), (N, 11)], ids=["P > n", "P < n"])
def test_factored_operators_are_read_as_their_twins(shape: tuple[int, int], field: str) -> None:
    L = factor(field, *shape)
    A = L @ L.conj().T
    got = tk.spectral_summary(tk.gram(L), 10, rng=3)
    traces, squares = naive.krylov(A, drawn(L, N, 3))
    assert got.trace.value == pytest.approx(traces.mean(), rel=1e-5)
    assert got.frobenius_norm.value**2 == pytest.approx(squares.mean(), rel=1e-5)
    assert got.effective_rank.num_matvecs == 9


@fields
@pytest.mark.parametrize("shape", [(N, 11), (11, N)], ids=["tall", "wide"])
def test_rectangular_operators_are_read_as_their_twins(shape: tuple[int, int], field: str) -> None:
    A = factor(field, *shape)
    got = tk.frobenius_norm(A, 8, rng=3)
    squares = naive.two_sided(A, drawn(A, shape[1], 4))
    assert got.value**2 == pytest.approx(squares.mean(), rel=1e-5)


def test_one_call_gives_all_three() -> None:
    A = matrix("real", 20)
    summary = tk.spectral_summary(A, 12, rng=0)
    assert tk.effective_rank(A, 12, rng=0).value == summary.effective_rank.value
    assert [e.num_matvecs for e in summary] == [12, 12, 12]
    assert summary._fields == ("trace", "frobenius_norm", "effective_rank")
    symmetric = matrix("psd", 20)
    both = tk.frobenius_norm(symmetric, 12, rng=0), tk.spectral_summary(symmetric, 12, rng=0)
    assert both[0].value == both[1].frobenius_norm.value


# Exact ----------------------------------------------------------------------------------------


@kinds
def test_exact_from_n_products(kind: str) -> None:
    A = matrix(kind, 9)
    for m in (9, 10, 40):
        for estimate, exact in zip(tk.spectral_summary(A, m), facts(A), strict=True):
            same(estimate, exact)
            assert estimate.num_matvecs == 9
    same(tk.frobenius_norm(A, 9), facts(A)[1])


@fields
@pytest.mark.parametrize("shape", [(7, 7), (7, 12), (12, 7), (12, 1), (1, 12)], ids=str)
def test_exact_from_enough_columns_of_a_factor(shape: tuple[int, int], field: str) -> None:
    A = tk.gram(factor(field, *shape))
    for m in (min(shape), 13, 14, 40):
        for estimate, exact in zip(tk.spectral_summary(A, m), facts(A), strict=True):
            same(estimate, exact)
            assert estimate.num_matvecs == min(shape)
        same(tk.frobenius_norm(A, m), facts(A)[1])


@fields
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)], ids=["wide", "tall"])
def test_exact_norms_of_rectangular_operators(shape: tuple[int, int], field: str) -> None:
    A = factor(field, *shape)
    for m in (5, 6, 20):
        estimate = tk.frobenius_norm(A, m)
        same(estimate, np.linalg.norm(A))
        assert estimate.num_matvecs == 5
    one_way = tk.frobenius_norm(black_box(A), shape[1])
    same(one_way, np.linalg.norm(A))
    assert one_way.num_matvecs == shape[1]
    assert tk.frobenius_norm(black_box(A), shape[1] - 1, rng=0).standard_error > 0


def low_rank(field: str, rank: int, *, n: int = 24, P: int = 24) -> np.ndarray:
    """Of singular values 1, 2, ..., unsymmetric."""
    rng = np.random.default_rng([rank, n, P, 99])

    def basis(k: int) -> np.ndarray:
        X = rng.standard_normal((k, rank))
        X = X + 1j * rng.standard_normal((k, rank)) if field == "complex" else X
        return np.linalg.qr(X)[0]

    return (basis(n) * np.arange(1.0, rank + 1)) @ basis(P).conj().T


@fields
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_exact_on_low_rank(field: str, rank: int) -> None:
    X = low_rank(field, rank)
    H = (X + X.conj().T) / 2  # of twice the rank, indefinite
    for A, m in ((X @ X.conj().T, 12), (H, 22), (tk.gram(X), 18), (tk.gram(X[:, :10]), 18)):
        t, f, r = facts(A)
        got = tk.spectral_summary(A, m, rng=0)
        assert got.trace.value == pytest.approx(t, abs=1e-7 * f)
        assert got.frobenius_norm.value == pytest.approx(f, rel=1e-7)
        assert got.effective_rank.value == pytest.approx(r, abs=1e-6)
    for A in (X, X[:, :15], X[:15]):
        norm = tk.frobenius_norm(A, 12, rng=0)
        assert norm.value == pytest.approx(np.linalg.norm(A), rel=1e-7)
        assert norm.num_matvecs == 12
    assert tk.spectral_summary(X, 12, rng=0).trace.value == pytest.approx(np.trace(X), abs=1e-7)


@pytest.mark.parametrize("m", [1, 2, 3, 5, 6, 9, 14, 20, 39, 40])
def test_identity(m: int) -> None:
    """Its effective rank is its dimension, its trace exact from any probes on the sphere."""
    for A in (np.eye(40), -2 * np.eye(40), 1j * np.eye(40), tk.gram(np.eye(40))):
        if m == 1 and getattr(A, "factor", None) is not None:
            continue
        t, f, _ = facts(A)
        got = tk.spectral_summary(A, m, rng=0)
        assert got.trace.value == pytest.approx(t, rel=1e-9)
        assert got.frobenius_norm.value == pytest.approx(f, rel=0.15)
        assert got.effective_rank.value == pytest.approx(40, rel=0.3)


# Scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-100, 1e-30, 1e30, 1e100])
@square
def test_scale_equivariance(path: str, scale: float) -> None:
    A, m = SQUARE[path]("real")
    for budget in (m, 40):
        plain, got = (tk.spectral_summary(X, budget, rng=1) for X in (A, scale * A))
        if getattr(A, "factor", None) is not None:
            got = tk.spectral_summary(tk.gram(scale**0.5 * A.factor), budget, rng=1)
        for name, unit in (("trace", scale), ("frobenius_norm", scale), ("effective_rank", 1.0)):
            one, other = getattr(plain, name), getattr(got, name)
            assert other.value / unit == pytest.approx(one.value, rel=1e-9)
            assert other.standard_error / unit == pytest.approx(one.standard_error, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-100, 1e-30, 1e30, 1e100])
@pytest.mark.parametrize("path", RECTANGULAR)
def test_scale_equivariance_of_norms(path: str, scale: float) -> None:
    A, m = RECTANGULAR[path]("real")
    for budget in (m, 40):
        one = tk.frobenius_norm(A, budget, rng=1)
        other = tk.frobenius_norm(scale * A, budget, rng=1)
        assert other.value / scale == pytest.approx(one.value, rel=1e-9)
        assert other.standard_error / scale == pytest.approx(one.standard_error, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("m", [4, 8, 40])
def test_single_precision_holds_scales_whose_fourth_power_it_does_not(scale: float, m: int) -> None:
    A = matrix("psd", 16)
    for X in (A, tk.gram(A)):
        unit = scale if X is A else scale**2
        got = tk.gram((scale * A).astype(np.float32)) if X is not A else (scale * A).astype("f4")
        plain, small = tk.spectral_summary(X, m, rng=0), tk.spectral_summary(got, m, rng=0)
        for name, size in (("trace", unit), ("frobenius_norm", unit), ("effective_rank", 1.0)):
            one, other = getattr(plain, name), getattr(small, name)
            assert other.value.dtype == np.float32
            assert float(other.value) / size == pytest.approx(float(one.value), rel=2e-3)
            assert np.isfinite(other.standard_error)


# Zero and other bad input -----------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 4, 6, 9, 11, 18, 40])
def test_zero_operators(m: int) -> None:
    zero = np.zeros((9, 9))
    for A in (zero, zero[:, :5], zero[:4], black_box(zero), zero + 0j, tk.gram(zero)):
        if m > 1 or getattr(A, "factor", None) is None:
            norm = tk.frobenius_norm(A, m, rng=0)
            assert norm.value == 0
            assert norm.standard_error in (0, np.inf)
    for A in (zero, zero + 0j, tk.gram(zero), tk.gram(np.zeros((9, 3)))):
        if m > 1 or getattr(A, "factor", None) is None:
            for quotient in (tk.effective_rank, tk.spectral_summary):
                with pytest.raises(ValueError, match=r"zero.* 0 / 0"):
                    quotient(A, m, rng=0)


@pytest.mark.parametrize("estimator", [tk.spectral_summary, tk.frobenius_norm, tk.effective_rank])
def test_bad_input(estimator: Any) -> None:
    for budget in (0, -3, 2.5, "8", None, True):
        with pytest.raises(ValueError, match="`num_matvecs` must be"):
            estimator(np.eye(4), budget)
    for rng in ("0", 1.5, object()):
        with pytest.raises(TypeError, match="rng"):
            estimator(np.eye(8), 4, rng=rng)
    with pytest.raises(TypeError):
        estimator("an operator", 4)
    if estimator is not tk.frobenius_norm:
        with pytest.raises(ValueError, match=r"square operator, not one of shape \(3, 4\)"):
            estimator(np.ones((3, 4)), 4)


@pytest.mark.parametrize("m", [2, 4, 8, 12, 60])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite(m: int, bad: float) -> None:
    def broken(X: np.ndarray) -> np.ndarray:
        return np.full_like(X, bad)

    A = tk.LinearOperator((20, 20), broken, broken)
    for operator in (A, tk.LinearOperator((20, 20), broken), tk.gram(A)):
        for estimator in (tk.spectral_summary, tk.frobenius_norm):
            with pytest.raises(tk.NotFiniteError):
                estimator(operator, m, rng=0)


def test_no_nan_at_any_small_budget() -> None:
    for kind in KINDS:
        for A in (matrix(kind, 9), tk.gram(factor(kind, 9, 12)), tk.gram(factor(kind, 9, 4))):
            for m in range(1 if isinstance(A, np.ndarray) else 2, 12):
                for estimate in tk.spectral_summary(A, m, rng=0):
                    assert np.isfinite(estimate.value)
                    assert not np.isnan(estimate.standard_error)


# Cost -----------------------------------------------------------------------------------------


@fields
@pytest.mark.parametrize("shape", [(8, 8), (9, 5), (5, 9)], ids=str)
def test_what_is_claimed_is_what_was_spent(shape: tuple[int, int], field: str) -> None:
    L = factor(field, *shape)
    hermitian = matrix("hermitian" if field == "complex" else "symmetric", shape[0])
    operators = {
        "gram": tk.gram(L), "other side": tk.gram(tk.as_operator(L).H), "rectangular": L,
        "one way": black_box(L), "Hermitian": hermitian, "square": matrix(field, shape[0]),
    }  # fmt: skip
    for name, A in operators.items():
        estimators = [tk.frobenius_norm]
        if A.shape[0] == A.shape[1]:
            estimators += [tk.effective_rank, lambda *a, **k: tk.spectral_summary(*a, **k)[0]]
        for m in range(2, 2 * max(shape) + 4):
            for estimator in estimators:
                A_, counter = tk.counted(A)
                estimate = estimator(A_, m, rng=0)
                assert counter.total == estimate.num_matvecs, (name, m)
                assert m - 3 < min(m, estimate.num_matvecs) <= m or estimate.standard_error < 1e-9
                assert estimate.num_matvecs <= m


# Libraries ------------------------------------------------------------------------------------


def gram_of(estimator: Any) -> Any:
    return lambda L, m, rng: estimator(tk.gram(L), m, rng=rng)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax-jit", "cupy"])
def test_estimates_hold_in_every_mode(name: str) -> None:
    """Also compiled, where what the products show cannot be asked."""
    lib, A = library(name), matrix("hermitian", N)
    t, f, r = facts(A)
    got = lib.estimate(tk.spectral_summary, lib.array(A), 12, seed=1)
    for estimate, exact in zip(got, (t, f, r), strict=True):
        value, error = complex(lib.numpy(estimate.value)), float(lib.numpy(estimate.standard_error))
        assert 0 < error < abs(exact) + f
        assert abs(value - exact) < 5 * error
        assert estimate.num_matvecs == 12
    norm = lib.estimate(tk.frobenius_norm, lib.array(A[:, :10]), 8, seed=1)
    exact, error = np.linalg.norm(A[:, :10]), float(lib.numpy(norm.standard_error))
    assert abs(float(lib.numpy(norm.value)) - exact) < 5 * error


def test_compiled_factored_and_exact_forms() -> None:
    for lib in installed("jax-jit"):
        L = factor("complex", N, 20)
        exact = facts(tk.gram(L))
        for m, tol in ((12, 0.6), (40, 1e-9)):
            got = lib.estimate(gram_of(tk.spectral_summary), lib.array(L), m)
            for estimate, truth in zip(got, exact, strict=True):
                assert abs(complex(estimate.value) - truth) < tol * abs(truth)
        got = lib.estimate(tk.spectral_summary, lib.array(matrix("real", N)), 20)
        assert float(got.effective_rank) == pytest.approx(facts(matrix("real", N))[2], rel=1e-9)


@pytest.mark.parametrize("m", [5, 8, 40])
@pytest.mark.parametrize("of", [tk.frobenius_norm, tk.effective_rank], ids=lambda f: f.__name__)
def test_gradients_of_torch_are_those_of_the_estimate(of: Any, m: int) -> None:
    for lib in installed("torch"):
        A, step = matrix("psd", N), matrix("psd", N, seed=4)
        X = lib.array(A).requires_grad_()
        of(X, m, rng=0).value.backward()
        slope = float(np.sum(lib.numpy(X.grad) * step))
        ahead, behind = (float(of(A + h * step, m, rng=0)) for h in (1e-5, -1e-5))
        assert slope == pytest.approx((ahead - behind) / 2e-5, rel=2e-3)


@pytest.mark.parametrize("m", [8, 40])
@pytest.mark.parametrize("of", [tk.frobenius_norm, tk.effective_rank], ids=lambda f: f.__name__)
def test_gradients_of_jax_are_those_of_the_estimate(of: Any, m: int) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    lib = library("jax-jit")
    A, step = lib.array(matrix("psd", N)), lib.array(matrix("psd", N, seed=4))

    @jax.jit
    def along(t: Any) -> Any:
        return of(A + t * step, m, rng=jax.random.key(0)).value

    slope = jax.grad(along)(0.0)
    assert float(slope) == pytest.approx(float(along(1e-5) - along(-1e-5)) / 2e-5, rel=2e-3)


# Error bars -----------------------------------------------------------------------------------


def covered(estimates: list[Any], exact: complex) -> float:
    """Share of the 95 % intervals that contain the exact value."""
    inside = 0
    for estimate in estimates:
        low, high = estimate.confidence_interval()
        rounding = 1e-9 * abs(exact)
        inside += low - rounding <= np.real(exact) <= high + rounding
    return inside / len(estimates)


SPECTRA = {
    "slow": np.arange(1, 41) ** -0.5,
    "quadratic": np.arange(1, 41) ** -2.0,
    "flat": np.linspace(1, 3, 40),
    "step": np.where(np.arange(40) < 4, 1.0, 0.02),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("field", ["float64", "complex128"])
def test_intervals_cover(spectrum: str, field: str) -> None:
    eigenvalues = SPECTRA[spectrum]
    A = tk.testing.known_spectrum(eigenvalues, dtype=np.dtype(field))
    reflection = tk.testing.known_spectrum((-1.0) ** np.arange(40), rng=5, dtype=np.dtype(field))
    turned, L = A + A @ reflection / 2, np.linalg.cholesky(A)
    for operator, m in ((A, 14), (turned, 16), (tk.gram(L), 18)):
        runs = [tk.spectral_summary(operator, m, rng=seed) for seed in range(60)]
        for name, exact in zip(("trace", "frobenius_norm", "effective_rank"), facts(operator),
                               strict=True):  # fmt: skip
            estimates = [getattr(run, name) for run in runs]
            assert covered(estimates, exact) >= 0.85, (name, m)
    norms = [partial(tk.frobenius_norm, rng=seed) for seed in range(60)]
    for X, m in ((turned, 16), (turned[:, :30], 14), (black_box(turned), 14)):
        assert covered([norm(X, m) for norm in norms], np.linalg.norm(dense(X))) >= 0.85


def test_error_bars_are_not_far_too_wide() -> None:
    for spectrum in ("slow", "quadratic", "flat"):
        eigenvalues = SPECTRA[spectrum]
        A = tk.testing.known_spectrum(eigenvalues)
        runs = [tk.spectral_summary(A, 14, rng=seed) for seed in range(60)]
        for name, exact in zip(runs[0]._fields, facts(A), strict=True):
            error = np.sqrt(np.mean([abs(getattr(run, name).value - exact) ** 2 for run in runs]))
            claimed = np.median([getattr(run, name).standard_error for run in runs])
            assert claimed < 5 * error + 1e-6 * abs(exact), (spectrum, name)


def test_a_norm_known_in_closed_form_costs_nothing() -> None:
    A = tk.LinearOperator(
        (9, 9), lambda X: 2 * X, dtype=float, exact={"norm": lambda: np.asarray(6.0)}
    )
    A, counter = tk.counted(A)
    estimate = tk.frobenius_norm(A, 4, rng=0)
    assert float(estimate) == 6.0
    assert float(estimate.standard_error) == 0.0
    assert estimate.num_matvecs == counter.total == 0


@pytest.mark.parametrize(
    ("summary", "power"), [(tk.spectral_summary, 1), (tk.one_sided_summary, 2)]
)
def test_trace_norm_and_rank_in_every_library_and_unit(
    but_jax: Library, summary: Any, power: int
) -> None:
    A, c = matrix("psd", N), 8.0
    there, here = summary(A, 8, rng=1), summary(but_jax.array(c * A), 8, rng=1)
    tol = 1e-7 if but_jax.eps < 1e-10 else 5e-3
    for one, other, unit in zip(here, there, (c**power, c**power, 1.0), strict=True):
        assert but_jax.at_home(one.value)
        assert float(one) == pytest.approx(unit * float(other), rel=tol)
        error = float(but_jax.numpy(one.standard_error))
        assert error == pytest.approx(unit * float(other.standard_error), rel=10 * tol)
