"""Laws of families: named ones of a run, and effective dimensions of several ridges."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from conftest import Library, library

import tracekit as tk
from tracekit.testing import known_spectrum

N = 200
W = np.arange(1.0, N + 1) ** -1.0
RIDGES, NOISE, BETAS = (0.05, 0.3, 2.0), (0.1, 0.5, 3.0), (0.3, 1.0, 4.0)


@cache
def harmonic() -> np.ndarray:
    return known_spectrum(W)


def dimensions(w: np.ndarray, c: tuple[float, ...]) -> np.ndarray:
    return np.sum(w[:, None] / (w[:, None] + np.array(c)), axis=0)


def energies(w: np.ndarray, betas: tuple[float, ...]) -> np.ndarray:
    return np.array([-np.log(np.sum(np.exp(-b * (w - w.min())))) / b + w.min() for b in betas])


def named(run: tk.SpectralRun) -> list[tk.Estimate]:
    return [run.effective_dimension(RIDGES), run.logdet(NOISE), run.free_energy(BETAS)]


def truths(w: np.ndarray) -> list[np.ndarray]:
    logs = np.sum(np.log(w[:, None] + np.array(NOISE)), axis=0)
    return [dimensions(w, RIDGES), logs, energies(w, BETAS)]


# --- values ---------------------------------------------------------------------------------------


def test_families_are_those_of_each_function():
    run = tk.spectral_run(harmonic(), 90, rng=0)
    dimension, logs, _ = named(run)
    for i in range(3):
        one = run.trace(tk.functions.ridge(RIDGES[i]))
        assert np.isclose(dimension.value[i], one.value, rtol=1e-12)
        assert np.isclose(dimension.standard_error[i], one.standard_error, rtol=1e-9)
        one = run.trace(lambda x, s=NOISE[i]: np.log(x + s))
        assert np.isclose(logs.value[i], one.value, rtol=1e-10)
    assert [found.method for found in named(run)] == [
        "effective_dimension", "logdet", "free_energy"
    ]  # fmt: skip
    assert all(found.num_matvecs == run.num_matvecs for found in named(run))
    assert run.logdet().value.shape == ()


def test_families_are_exact_where_all_eigenvalues_are():
    for A in (harmonic(), tk.gram(np.linalg.cholesky(harmonic()))):
        run = tk.spectral_run(A, N, observable=np.eye(N))
        for found, exact in zip(named(run), truths(W), strict=True):
            np.testing.assert_allclose(found.value, exact, rtol=1e-9)
            assert not np.any(found.standard_error)
            assert found.samples is None


def test_free_energies_are_those_of_the_naive_twin():
    """The delta method on plain exponentials, which do not overflow here."""
    run = tk.spectral_run(harmonic(), 90, rng=0)
    found = run.free_energy(BETAS)
    for i, b in enumerate(BETAS):
        Z = run.trace(lambda x, b=b: np.exp(-b * x))
        plain = np.var(Z.samples, ddof=1) / Z.samples.size
        value = -(np.log(Z.value) + plain / (2 * Z.value**2)) / b
        assert np.isclose(found.value[i], value, rtol=1e-10)
        assert np.isclose(found.standard_error[i], Z.standard_error / Z.value / b, rtol=1e-8)
    np.testing.assert_allclose(np.mean(found.samples, axis=-1), found.value)


def test_free_energies_do_not_overflow():
    w = np.linspace(-2e3, 1e3, N)
    run = tk.spectral_run(known_spectrum(w), 90, rng=0)
    found = run.free_energy((1e-3, 1.0, 1e4))
    assert np.all(np.isfinite(found.value))
    assert not found.converged
    assert np.isinf(found.standard_error[1:]).all()
    exact = tk.spectral_run(known_spectrum(w), N).free_energy((1e-3, 1.0, 1e4))
    np.testing.assert_allclose(exact.value, energies(w, (1e-3, 1.0, 1e4)), rtol=1e-9)


@pytest.mark.parametrize("way", [tk.quadrature.lanczos(reorthogonalise=False),
                                 tk.quadrature.chebyshev(interval=(0.0, 1.1))])  # fmt: skip
def test_families_of_runs_without_bases(way):
    run = tk.spectral_run(harmonic(), 150, rng=0, quadrature=way)
    for found, exact in zip(named(run), truths(W), strict=True):
        low, high = found.band(0.999)
        assert np.all((low < exact) & (exact < high))


def test_bands_hold_all_values_at_once():
    held = []
    for seed in range(60):
        run = tk.spectral_run(harmonic(), 150, rng=seed, depth=8)
        for found, exact in zip(named(run), truths(W), strict=True):
            low, high = found.band()
            held.append(bool(np.all((low <= exact) & (exact <= high))))
            assert np.all(np.isfinite(high))
    assert np.all(np.mean(np.reshape(held, (60, 3)), axis=0) >= 0.88)


@pytest.mark.parametrize("c", [1.0, 0.03, 1e-3])
def test_rules_that_change_by_rounding_alone_have_settled(c):
    """Nodes are known to rounding of the largest; most weight may lie where f is far steeper."""
    w = np.arange(1.0, 501) ** -2
    exact = np.sum(w / (w + c))
    for found in (
        tk.spectral_run(known_spectrum(w), 300, rng=0).trace(tk.functions.ridge(c)),
        tk.trace_function(known_spectrum(w), lambda x: x / (x + c), 300, rng=0, depth=40),
    ):
        assert found.converged
        assert abs(found.value - exact) < 4 * found.standard_error < 0.5 * exact
        assert found.kept.quadrature < 1e-3 * exact


# --- effective dimensions of an operator ----------------------------------------------------------


def test_several_ridges_take_one_set_of_products():
    A, counter = tk.counted(harmonic())
    found = tk.effective_dimension(A, RIDGES, 100, rng=0)
    assert counter.total == found.num_matvecs <= 100
    assert found.value.shape == (3,)
    low, high = found.band(0.999)
    exact = dimensions(W, RIDGES)
    assert np.all((low < exact) & (exact < high))
    same = tk.effective_dimension(harmonic(), np.array(RIDGES), 100, rng=0)
    assert np.all(same.value == found.value)
    whole = tk.effective_dimension(harmonic(), list(RIDGES), N)
    np.testing.assert_allclose(whole.value, exact, rtol=1e-10)
    one = tk.effective_dimension(harmonic(), np.float64(0.3), N)
    assert one.value.shape == ()


def test_libraries_agree(lib: Library):
    A = harmonic()
    expected = tk.spectral_run(A, 23, rng=3, depth=3).free_energy(BETAS)
    found = tk.spectral_run(lib.array(A), 23, rng=3, depth=3).free_energy(BETAS)
    assert lib.at_home(found.value)
    np.testing.assert_allclose(lib.numpy(found.value), expected.value, rtol=1e-4)
    np.testing.assert_allclose(lib.numpy(found.standard_error), expected.standard_error, rtol=1e-2)


def test_effective_dimensions_agree_in_libraries():
    expected = tk.effective_dimension(harmonic(), RIDGES, 45, rng=3, depth=5)
    for name in ("torch", "strict:CPU_DEVICE"):
        lib = library(name)
        found = tk.effective_dimension(lib.array(harmonic()), RIDGES, 45, rng=3, depth=5)
        np.testing.assert_allclose(lib.numpy(found.value), expected.value, rtol=1e-8)


def test_families_compile():
    """In programs no products are spent on a look at twice the depth: there are more probes."""
    jax, lib = pytest.importorskip("jax"), library("jax")
    found = jax.jit(lambda A: tk.spectral_run(A, 30, rng=3, depth=3).free_energy(BETAS))(
        lib.array(harmonic())
    )
    assert np.all(np.abs(found.value - energies(W, BETAS)) < 5 * found.standard_error)
    assert found.samples.shape == (3, 10)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_told():
    run = tk.spectral_run(harmonic(), 60, rng=0)
    for call in (run.logdet, run.effective_dimension, run.free_energy):
        for values in ([], [0.0], [-1.0], [np.inf], [np.nan], ["x"], 0.3):
            with pytest.raises((TypeError, ValueError), match=r"positive|number"):
                call(values)
    for ridge in ([], [0.0, 1.0], "x"):
        with pytest.raises((TypeError, ValueError), match=r"positive|number"):
            tk.effective_dimension(harmonic(), ridge, 60)
    with pytest.raises(ValueError, match="eigenvalues of 0 or more"):
        tk.spectral_run(-harmonic(), 60, rng=0).effective_dimension([0.5])
