"""Laws of spectral densities: what is resolved, with what error, how many eigenvalues lie where."""

from __future__ import annotations

from functools import cache

import matplotlib as mpl
import numpy as np
import pytest
from conftest import library

import tracekit as tk
from tracekit.testing import known_spectrum

mpl.use("Agg")
N, RUNS = 400, 40
LANCZOS, CHEBYSHEV = tk.quadrature.lanczos(), tk.quadrature.chebyshev(interval=(0.0, 3.0))
WAYS = {
    "lanczos": LANCZOS,
    "three terms": tk.quadrature.lanczos(reorthogonalise=False),
    "chebyshev": CHEBYSHEV,
    "found": tk.quadrature.chebyshev(),
}


@cache
def skewed() -> tuple[np.ndarray, np.ndarray]:
    w = np.sort(np.random.default_rng(0).beta(2, 5, N) * 3)
    return w, known_spectrum(w)


def spread(w: np.ndarray, x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The naive twin: every eigenvalue as a normal distribution."""
    z = (x[:, None] - w) / sigma[:, None]
    return np.mean(np.exp(-z * z / 2), axis=1) / (sigma * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("way", [LANCZOS, tk.quadrature.chebyshev()])
@pytest.mark.parametrize("name", ["numpy-readonly", "strict:device1", "torch"])
def test_moments_are_those_of_the_spectrum(name, way, factored):
    eager = library(name)
    w = np.linspace(0.5, 2.0, 60)
    A = known_spectrum(w)
    operator = tk.gram(eager.array(np.linalg.cholesky(A))) if factored else eager.array(A)
    c, counter = tk.counted(operator)
    density = tk.spectral_density(c, 55, rng=0, depth=6, quadrature=way)
    assert density.num_matvecs == counter.total <= 55
    nodes, weights = eager.numpy(density.nodes), eager.numpy(density.weights)
    assert np.isclose(weights.sum(), 1, rtol=100 * eager.eps)
    assert abs(weights @ nodes - w.mean()) < 0.15
    if isinstance(way, tk.quadrature.Lanczos):
        assert nodes.min() > 0.5 - 1e-5
        assert nodes.max() < 2.0 + 1e-5
    x = np.linspace(-1.0, 4.0, 20001)
    found = eager.numpy(density.density(eager.array(x)))
    assert np.isclose(np.trapezoid(found, x), 1, atol=2e-3)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_density_is_the_spectrum_at_its_resolution_with_the_error_it_says(way):
    w, A = skewed()
    x = np.linspace(0.3, 1.5, 9)
    every = [tk.spectral_density(A, 240, rng=s, depth=24, quadrature=way) for s in range(RUNS)]
    values = np.array([each.density(x) for each in every])
    said = np.mean([each.relative_error(x) for each in every], axis=0)
    seen = values.std(axis=0) / values.mean(axis=0)
    twin = spread(w, x, every[0].resolution(x))
    assert np.all(np.abs(values.mean(axis=0) / twin - 1) < 0.05)
    assert 0.8 < np.sqrt(np.mean((seen / said) ** 2)) < 1.2


def test_complex_probes_have_half_the_variance():
    A = skewed()[1]
    phases = np.exp(1j * np.arange(N))
    B, x = phases[:, None] * A * phases.conj(), np.array([0.8])
    every = [tk.spectral_density(B, 240, rng=s, depth=24) for s in range(RUNS)]
    values = np.array([each.density(x)[0] for each in every])
    said = every[0].relative_error(x)[0]
    real = tk.spectral_density(A, 240, rng=0, depth=24).relative_error(x)[0]
    assert np.isclose(said * np.sqrt(2), real, rtol=0.1)
    assert 0.7 < values.std() / values.mean() / said < 1.3


@pytest.mark.parametrize("way", [LANCZOS, CHEBYSHEV], ids=["lanczos", "chebyshev"])
def test_counts_are_covered(way):
    w, A = skewed()
    intervals = ((0.5, 1.0), (-np.inf, 0.7), (1.2, np.inf), (-np.inf, np.inf))
    held = np.zeros(len(intervals))
    for seed in range(RUNS):
        density = tk.spectral_density(A, 240, rng=seed, depth=24, quadrature=way)
        for i, (low, high) in enumerate(intervals):
            least, most = density.count(low, high).confidence_interval()
            held[i] += least - 1e-9 <= np.sum((w >= low) & (w <= high)) <= most + 1e-9
    assert np.all(held >= 0.9 * RUNS), held


def test_both_errors_of_a_count_are_said():
    density = tk.spectral_density(skewed()[1], 240, rng=0)
    found = density.count(0.5, 1.0)
    assert np.isclose(found.standard_error, np.hypot(found.kept[0], found.kept[1]))
    assert "by the probes" in found.reason
    assert "by the resolution" in found.reason
    whole = density.count()
    assert np.isclose(whole.value, N)
    assert whole.kept.quadrature == 0


def test_all_eigenvalues_have_no_error():
    w, A = skewed()
    density = tk.spectral_density(A, N, rng=0)
    assert density.count(0.5, 1.0).value == np.sum((w >= 0.5) & (w <= 1.0))
    assert density.count(0.5, 1.0).standard_error == 0
    assert np.all(density.relative_error(np.array([0.7, 9.0])) == 0)
    x = np.array([0.7])
    np.testing.assert_allclose(density.density(x, width=1e-2), spread(w, x, np.array([1e-2])))


def test_runs_have_the_same_density():
    A = skewed()[1]
    for way in (LANCZOS, CHEBYSHEV):
        run = tk.spectral_run(A, 240, rng=0, depth=20, quadrature=way)
        count = run.num_probes
        plain = tk.spectral_density(A, 20 * count, rng=0, depth=20, quadrature=way)
        x = np.linspace(0.1, 2.0, 7)
        np.testing.assert_allclose(run.density().density(x), plain.density(x), rtol=1e-9)


def test_gaps_are_found():
    w = np.r_[np.full(150, 1.0), np.full(50, 3.0)]
    density = tk.spectral_density(known_spectrum(w), 60, rng=0, depth=12)
    at = density.density(np.array([1.0, 2.0, 3.0]))
    assert at[1] < 1e-3
    assert abs(at[2] / at[0] - 1 / 3) < 0.1
    assert np.isinf(density.relative_error(np.array([50.0])))


def test_plots_have_a_band():
    density = tk.spectral_density(2 * np.eye(6), 9, rng=0)
    assert np.allclose(density.nodes[density.weights > 1e-12], 2)
    assert repr(density).endswith("matvecs)")
    ax = density.plot()
    assert ax.get_xlabel() == "eigenvalue"
    assert density.plot(ax, width=0.1) is ax
    assert not ax.collections
    for way in WAYS.values():
        ax = tk.spectral_density(skewed()[1], 240, rng=0, quadrature=way).plot()
        assert len(ax.collections) == 1


def test_one_point_of_a_large_identity():
    density = tk.spectral_density(2 * np.eye(200), 30, rng=0)
    assert np.isclose(density.count(1.0, 3.0).value, 200)
    assert np.argmax(density.density(np.linspace(0.0, 4.0, 41))) == 20


def test_bad_input_is_told():
    A = skewed()[1]
    density = tk.spectral_density(A, 240, rng=0)
    moments = tk.spectral_density(A, 240, rng=0, quadrature=CHEBYSHEV)
    x = np.ones(2)
    narrow = tk.quadrature.chebyshev(interval=(0.5, 1.0))
    for call, match in (
        (lambda: density.density(x, width=0.0), "positive"),
        (lambda: density.density(x, width=np.nan), "positive"),
        (lambda: density.density(x, width=1e-4), "single Ritz values"),
        (lambda: density.relative_error(x, width=1e-4), "single Ritz values"),
        (lambda: moments.density(x, width=0.1), "leave `width` out"),
        (lambda: density.count(2.0, 1.0), "below"),
        (lambda: tk.spectral_density(A, 240, quadrature=narrow), "lies outside"),
        (lambda: tk.spectral_density(A, 3, quadrature=WAYS["found"]), "products are left"),
        (lambda: tk.spectral_density(A, 240, quadrature="chebyshev"), "tracekit.quadrature"),
        (lambda: tk.spectral_density(np.triu(A), 240), "Hermitian"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            call()


def test_long_tails_of_the_kernel_are_part_of_the_error_of_a_count():
    cases = (
        (np.r_[np.zeros(380), np.linspace(1.0, 2.0, 20)], (-np.inf, 0.6)),
        (np.r_[np.linspace(0.0, 1.0, 398), 10.0, 11.0], (2.2, 5.5)),
    )
    for w, (low, high) in cases:
        A, exact = known_spectrum(w), np.sum((w >= low) & (w <= high))
        for seed in range(15):
            density = tk.spectral_density(A, 160, rng=seed, quadrature=tk.quadrature.chebyshev())
            least, most = density.count(low, high).confidence_interval()
            assert least <= exact <= most
