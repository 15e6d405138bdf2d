"""Laws of XNysDiag: its naive twin, unbiased, exact on fitting ranks, costs, honest errors."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import twins
from conftest import PSD, Library, installed, matrix

import tracekit as tk
from tracekit import probes
from tracekit._diagonal.xdiag import xdiag, xnysdiag
from tracekit._sketches import leave_one_out
from tracekit.probes.source import Source

N = 20
kinds = pytest.mark.parametrize("kind", PSD)


def signs(A: np.ndarray, m: int, seed: int = 1) -> np.ndarray:
    """What an estimator with that seed draws."""
    return probes.rademacher(Source(seed, tk.as_operator(A)), len(A), m)


def of_rank(kind: str, rank: int, n: int = N) -> np.ndarray:
    L = matrix(kind, n)[:, :rank]
    return L @ L.conj().T


def decaying(n: int, power: float) -> np.ndarray:
    U = twins.haar(np.random.default_rng(0), n, n)
    return (U * np.arange(1.0, n + 1) ** -power) @ U.T


# Equal to the naive version, unbiased ---------------------------------------------------------


@kinds
def test_equal_to_the_twin_in_every_library(lib: Library, kind: str) -> None:
    A = matrix(kind, 12)
    Omega = signs(A, 6)

    def law(source: Any, n: int, m: int) -> Any:
        return lib.array(Omega)

    estimate = lib.estimate(xnysdiag, lib.array(A), 6, probes=law)
    twin = twins.xnysdiag(A, Omega)
    tolerance = 1e4 * lib.eps
    np.testing.assert_allclose(lib.numpy(estimate.samples), twin, rtol=0, atol=tolerance)
    np.testing.assert_allclose(lib.numpy(estimate.value), twin.mean(axis=1), rtol=0, atol=tolerance)
    assert lib.at_home(estimate.value)


@kinds
@pytest.mark.parametrize("m", [3, 4, 7, 15])
def test_errors_are_those_of_the_twin(kind: str, m: int) -> None:
    A = matrix(kind, N)
    Omega = signs(A, m)
    estimate = xnysdiag(A, m, rng=1)
    twin = partial(twins.xnysdiag, A)
    np.testing.assert_allclose(estimate.samples, twin(Omega), rtol=0, atol=1e-12)
    expected = twins.combined_errors(twin, Omega)
    np.testing.assert_allclose(estimate.standard_error, expected, rtol=1e-7)


@pytest.mark.parametrize(("n", "k"), [(4, 2), (3, 3), (4, 3)])
def test_mean_over_all_sign_vectors_is_the_diagonal(n: int, k: int) -> None:
    """With duplicate probes among them, whose sketches are of lower rank."""
    A, means = matrix("psd", n, seed=1), []
    for entries in itertools.product((-1.0, 1.0), repeat=k * n):
        Omega = np.reshape(entries, (n, k))
        means.append(leave_one_out.xnysdiag(Omega, A @ Omega)[0].mean(axis=1))
    np.testing.assert_allclose(np.mean(means, axis=0), np.diagonal(A), rtol=1e-9)
    assert np.std(means, axis=0).min() > 1e-3


# Exact ----------------------------------------------------------------------------------------


@kinds
def test_exact_where_the_rank_fits(lib: Library, kind: str) -> None:
    A = of_rank(kind, 3)
    # compiled code, which cannot see how small a shift will do, takes a hundred times the least
    rounding = (1e5 if lib.jit else 1e4) * lib.eps * np.abs(A).max()
    for m in (6, 15):  # the jackknife leaves out two probes
        estimate = lib.estimate(xnysdiag, lib.array(A), m)
        np.testing.assert_allclose(lib.numpy(estimate.value), np.diagonal(A), rtol=0, atol=rounding)
        assert (lib.numpy(estimate.standard_error) < rounding).all()


def test_rank_deficient_sketches_are_exact_to_the_last_bits() -> None:
    v = np.arange(30.0)
    for A in (np.outer(v, v), np.ones((30, 30)), np.diag([1.0] + [0.0] * 29)):
        estimate = xnysdiag(A, 12, rng=0)
        np.testing.assert_allclose(estimate.value, np.diagonal(A), rtol=0, atol=1e-12 * A.max())
        assert (estimate.standard_error < 1e-12 * A.max()).all()


@pytest.mark.parametrize("estimator", [xnysdiag, tk.xnystrace], ids=lambda f: f.__name__)
def test_what_makes_the_sketch_definite_is_taken_off_again(estimator: Any) -> None:
    """In single precision and compiled code it is largest."""
    v = np.random.default_rng(0).standard_normal(400)
    A = np.outer(v, v)
    for lib in installed("numpy", "jax-jit"):
        estimate = lib.estimate(
            estimator, lib.array(A, "float32"), 40, probes=probes.rademacher, seed=2
        )
        assert np.sum(lib.numpy(estimate.value)) == pytest.approx(np.trace(A), rel=1e-4)


# Costs, dtypes, edges -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_spent_is_claimed_and_never_above_the_budget(n: int) -> None:
    for m in (1, 2, 3, 6, 9, 34):
        for A, unit in ((matrix("psd", n), 1), (tk.gram(matrix("real", n)), 2)):
            op, counter = tk.counted(A)
            estimate = xnysdiag(op, m, rng=0)
            assert estimate.num_matvecs == counter.total
            odd = unit == 2 and 6 <= m < n
            assert estimate.num_matvecs == min(m - (m % 2 if odd else 0), n)
            assert estimate.method == "xnysdiag"


@kinds
def test_a_factor_is_sketched_from_both_sides(kind: str) -> None:
    L = matrix(kind, N)
    estimate, other = (f(tk.gram(L), 13, rng=3) for f in (xnysdiag, xdiag))
    np.testing.assert_allclose(estimate.value, np.real(other.value), rtol=1e-13)
    twin = twins.xnysdiag(L @ L.conj().T, signs(L, 6, seed=3))
    np.testing.assert_allclose(estimate.samples, twin, rtol=0, atol=1e-12)
    assert estimate.value.dtype == L.dtype


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_dtypes_are_kept_and_diagonals_real(dtype: str) -> None:
    for lib in installed("numpy", "strict:device1", "torch", "jax-jit"):
        A = lib.array(matrix("complex psd" if dtype == "complex64" else "psd", N), dtype)
        estimate = lib.call(lambda A: xnysdiag(A, 8, rng=0), A)
        assert estimate.value.dtype == getattr(lib.xp, dtype)
        assert estimate.standard_error.dtype == lib.xp.float32
        assert tuple(estimate.value.shape) == tuple(estimate.standard_error.shape) == (N,)
        assert not np.imag(lib.numpy(estimate.value)).any()


def test_batched_over_keys() -> None:
    jax = pytest.importorskip("jax")
    A, keys = jax.numpy.asarray(matrix("psd", N)), jax.random.split(jax.random.key(3), 2)
    f = lambda A, key: xnysdiag(A, 9, rng=key)  # noqa: E731
    batched = jax.jit(jax.vmap(f, in_axes=(None, 0)))(A, keys)
    one = jax.jit(f)(A, keys[1])
    np.testing.assert_allclose(batched.value[1], one.value, rtol=1e-9)
    np.testing.assert_allclose(batched.standard_error[1], one.standard_error, rtol=1e-6)


# Errors that are honest, and small ------------------------------------------------------------


@pytest.mark.parametrize("m", [8, 24, 60])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_intervals_cover(m: int, power: float) -> None:
    A = decaying(120, power) + (0 if power else matrix("psd", 120))
    exact, inside = np.diagonal(A), []
    for seed in range(30):
        low, high = xnysdiag(A, m, rng=seed).confidence_interval(0.95)
        inside.append((low <= exact) & (exact <= high))
    assert 0.93 < np.mean(inside) < 0.995


@pytest.mark.parametrize(("power", "gain"), [(2.0, 1.8), (0.5, 1.2)])
def test_twice_the_probes_of_xdiag_pay(power: float, gain: float) -> None:
    A = decaying(200, power)

    def error(estimator: Any) -> float:
        runs = [estimator(A, 60, rng=seed).value - np.diagonal(A) for seed in range(15)]
        return float(np.median([np.linalg.norm(run) for run in runs]))

    assert error(xnysdiag) * gain < error(xdiag)


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["real", "complex", "symmetric", "hermitian"])
def test_what_is_not_positive_semidefinite_is_refused(but_jax: Library, kind: str) -> None:
    word = "positive semidefinite" if kind in ("symmetric", "hermitian") else "Hermitian"
    with pytest.raises(ValueError, match=rf"not {word}; call xdiag$"):
        xnysdiag(but_jax.array(matrix(kind, N)), 9, rng=0)


def test_indefinite_operators_are_not_a_number_in_compiled_code() -> None:
    for lib in installed("jax-jit"):
        estimate = lib.estimate(xnysdiag, lib.array(matrix("symmetric", N)), 9)
        assert np.isnan(lib.numpy(estimate.value)).all()


def test_laws_that_would_bias_it_are_refused() -> None:
    for law in (probes.normal, probes.sphere, probes.orthogonal, probes.hadamard, probes.basis):
        with pytest.raises(ValueError, match="biases"):
            xnysdiag(matrix("psd", 12), 8, rng=0, probes=law)
