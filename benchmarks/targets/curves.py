"""Curves of one run, ratios and differences of shared probes, and noisy products, with targets.

1. Bands: the share of runs whose band of nominally 95 % holds all thirty points of a curve at once.
2. Ratios and differences: intervals of estimates that share twenty probes, how wide they are beside
   those that add up the errors of both, and the bias of a ratio from five probes.
3. Noisy products: mini-batches of a heavy-tailed sum of outer products. Intervals of a two-way
   layout of 8 probes and 8 batches, of a batch for each probe, and, to show what that does, of one
   batch for all probes; whether what is said to lower the error does.

Operators are diagonal, with spherical probes: as good as any other eigenvectors.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit as tk

from ..measure import in_two_processes
from .table import FIGURES, Row, Table, figure, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Real = NDArray[np.float64]

RUNS, LEAST_BAND, LEAST_INTERVAL = seeds(200), 0.93, 0.92
POINTS, PROBES, FEW = 30, 20, 5
RIDGES, NOISE, BETAS = np.geomspace(1e-3, 1, POINTS), np.geomspace(1e-2, 1, POINTS), (0.1, 2.0)
LAYOUT, BATCH, SAMPLES = (8, 8), 4, 60


def tables() -> Iterator[Table]:
    """Bands; ratios and differences; noisy products."""
    yield Table(f"Bands of {POINTS} points, {RUNS} runs: all held at once", FIGURES, bands())
    yield Table(f"Ratios and differences, {PROBES} probes, {RUNS} runs", FIGURES, joint())
    yield Table(f"Noisy products, {RUNS} runs", FIGURES, noisy())


def diagonal(w: Real) -> tk.LinearOperator:
    """Return the operator of these eigenvalues."""
    return tk.LinearOperator((w.size,) * 2, lambda X: w[:, None] * X, lambda X: w[:, None] * X)


# --- bands ----------------------------------------------------------------------------------------


def bands() -> Iterator[Row]:
    """Judge how often bands hold."""
    for name, curve in CURVES.items():
        share = float(np.mean(list(in_two_processes(partial(band_holds, name), range(RUNS)))))
        yield figure(f"{name}, {curve[0]} products", share, least=LEAST_BAND)


def band_holds(name: str, seed: int) -> bool:
    """Return whether the band of one run holds the curve, and is finite."""
    products, read, exact = CURVES[name]
    low, high = read(products, seed).band()
    return bool(np.all((low <= exact()) & (exact() <= high) & np.isfinite(high)))


def decaying() -> Real:
    """Return eigenvalues of a kernel."""
    return np.arange(1.0, 501) ** -2.0


@cache
def kernel() -> Real:
    """Return a matrix with these eigenvalues."""
    return np.asarray(tk.testing.known_spectrum(decaying()))


@cache
def levels() -> Real:
    """Return energies of many spins: nearly normal."""
    return np.sort(np.random.default_rng(0).standard_normal(500))


def betas() -> Real:
    """Return inverse temperatures."""
    return np.linspace(*BETAS, POINTS)


def run_of(w: Real, products: int, seed: int) -> tk.SpectralRun:
    """Return a run with spherical probes."""
    return tk.spectral_run(diagonal(w), products, rng=seed, probes=tk.probes.sphere)


def dimensions(products: int, seed: int) -> tk.Estimate:
    """Return effective dimensions by the function that chooses its depth for them."""
    return tk.effective_dimension(kernel(), RIDGES, products, rng=seed)  # signs of no diagonal A


def dimensions_of_a_run(products: int, seed: int) -> tk.Estimate:
    """Return effective dimensions that a run is read for."""
    return run_of(decaying(), products, seed).effective_dimension(RIDGES)


def log_determinants(products: int, seed: int) -> tk.Estimate:
    """Return log-determinants over noise levels."""
    return run_of(decaying(), products, seed).logdet(NOISE)


def free_energies(products: int, seed: int) -> tk.Estimate:
    """Return free energies over temperatures."""
    return run_of(levels(), products, seed).free_energy(betas())


def mean_energies(products: int, seed: int) -> tk.Estimate:
    """Return mean energies over temperatures, a ratio."""
    run = run_of(levels(), products, seed)
    return tk.ratio(
        run.family(lambda x, b: x * np.exp(-b * x), betas()),
        run.family(lambda x, b: np.exp(-b * x), betas()),
    )


def exact_dimensions() -> Real:
    """Return effective dimensions."""
    w = decaying()[:, None]
    return np.sum(w / (w + RIDGES), axis=0)


def exact_logs() -> Real:
    """Return log-determinants."""
    return np.sum(np.log(decaying()[:, None] + NOISE), axis=0)


def exact_free_energies() -> Real:
    """Return free energies."""
    return -np.log(np.sum(np.exp(-np.outer(levels(), betas())), axis=0)) / betas()


def exact_mean_energies() -> Real:
    """Return mean energies."""
    weight = np.exp(-np.outer(levels(), betas()))
    return levels() @ weight / np.sum(weight, axis=0)


CURVES: dict[str, tuple[int, Callable[[int, int], tk.Estimate], Callable[[], Real]]] = {
    "effective_dimension over ridges": (300, dimensions, exact_dimensions),
    "run.effective_dimension": (300, dimensions_of_a_run, exact_dimensions),
    "run.logdet over noise": (300, log_determinants, exact_logs),
    "run.free_energy over temperatures": (300, free_energies, exact_free_energies),
    "ratio of families: mean energies": (300, mean_energies, exact_mean_energies),
}


# --- ratios and differences -----------------------------------------------------------------------


def joint() -> Iterator[Row]:
    """Judge ratios and differences of two operators from shared probes."""
    found = np.array(list(in_two_processes(pair, range(RUNS))))
    held, widths = found[:, :2].mean(axis=0), np.median(found[:, 2:4], axis=0)
    yield figure("ratio: 95 % intervals hold", held[0], least=LEAST_INTERVAL)
    yield figure("difference: 95 % intervals hold", held[1], least=LEAST_INTERVAL)
    yield figure("ratio: error over that of both added up", widths[0], most=0.7)
    yield figure("difference: error over that of both added up", widths[1], most=0.7)
    bias, plain, error = biases(100 * RUNS)
    told = f"plain {plain:.4f}, error of this figure {error:.4f}"
    yield figure(f"ratio of {FEW} probes, beta 2: bias", abs(bias), most=plain / 3, told=told)


def pair(seed: int) -> tuple[bool, bool, float, float]:
    """Return whether intervals hold, and errors over those that know of no shared probes."""
    w = decaying()
    v = w + 0.1 * np.random.default_rng(1).random(w.size) * w
    a, b = (tk.hutchinson(diagonal(x), PROBES, rng=seed, probes=tk.probes.sphere) for x in (w, v))
    R, D = tk.ratio(b, a), tk.difference(b, a)
    added = np.hypot(a.standard_error, b.standard_error)
    relative = float(R) * np.hypot(a.standard_error / a.value, b.standard_error / b.value)
    return (
        holds(R, v.sum() / w.sum()),
        holds(D, v.sum() - w.sum()),
        float(R.standard_error / relative),
        float(D.standard_error / added),
    )


def holds(found: tk.Estimate, exact: float) -> bool:
    """Return whether the 95 % interval does."""
    low, high = found.confidence_interval()
    return bool(low <= exact <= high)


def biases(count: int) -> tuple[float, float, float]:
    """Return the biases of the ratio and of the plain one, and the error of these."""
    E, rng = levels(), np.random.default_rng(2)
    weight, ours, plain = np.exp(-2 * E), [], []
    exact = np.sum(E * weight) / np.sum(weight)
    D, Z = diagonal(E * weight), diagonal(weight)
    for seed in rng.integers(0, 2**31, count // 10).tolist():
        d, z = (tk.hutchinson(X, FEW, rng=seed, probes=tk.probes.sphere) for X in (D, Z))
        ours.append(float(tk.ratio(d, z)) - exact)
        plain.append(float(d) / float(z) - exact)
    return float(np.mean(ours)), float(np.mean(plain)), float(np.std(plain) / len(plain) ** 0.5)


# --- noisy products -------------------------------------------------------------------------------


@cache
def data() -> tuple[Real, Real]:
    """Return samples of which a matrix is the mean of outer products, and the diagonal beside."""
    rng, k = np.random.default_rng(0), 200
    S = rng.standard_normal((SAMPLES, k)) * np.exp(0.8 * rng.standard_normal((SAMPLES, 1)))
    return S, np.linspace(0.5, 1.5, k)


def of_samples(S: Real) -> tk.LinearOperator:
    """Return the operator of some samples."""
    _, d = data()

    def product(X: Real) -> Real:
        return d[:, None] * X + S.T @ (S @ X) * (0.5 / len(S))

    return tk.LinearOperator((d.size,) * 2, product, product)


def drawn(seed: int) -> Callable[[int], Any]:
    """Return what draws mini-batches."""
    rng, (S, _) = np.random.default_rng(seed + 10**6), data()
    return lambda j: of_samples(S[rng.integers(0, SAMPLES, BATCH)])


def noisy() -> Iterator[Row]:
    """Judge intervals, and what is said to lower them."""
    found = np.array(list(in_two_processes(layouts, range(RUNS))))
    two_way, own, shared, advised = found.mean(axis=0)
    yield figure("8 probes x 8 batches: 95 % intervals hold", two_way, least=0.91)
    yield figure("a batch for each of 16 probes: hold", own, told="told: heavy tails")
    yield figure("one batch for all 16 probes: hold", shared, told="told: why there is a layout")
    probes, batches = components()
    told = f"told: their part of the error is {batches / probes:.1f} times that of probes"
    yield figure("says that more batches lower the error", advised, told=told)
    advice = np.array(list(in_two_processes(single, range(RUNS))))
    told = f"their part is {2 * batches / probes:.1f} times"
    yield figure("batches of one sample: says so", advice.mean(), least=0.9, told=told)


def components() -> tuple[float, float]:
    """Return the standard deviations of a probe and of a batch, for all samples."""
    S, d = data()
    A = np.diag(d) + 0.5 * S.T @ S / len(S)
    probe = (2 * (np.sum(A * A) - np.sum(np.diag(A) ** 2))) ** 0.5
    return float(probe), float(np.std(0.5 * np.sum(S * S, axis=1)) / BATCH**0.5)


def single(seed: int) -> bool:
    """Return whether batches of one sample are said to be what to have more of."""
    rng, (S, _) = np.random.default_rng(seed + 10**6), data()
    found = tk.noisy_trace(lambda j: of_samples(S[rng.integers(0, SAMPLES, 1)]), *LAYOUT, rng=seed)
    return found.reason.endswith("more batches lower it")


def layouts(seed: int) -> tuple[bool, bool, bool, bool]:
    """Return whether three intervals hold, and whether the first says what lowers it."""
    S, d = data()
    exact = d.sum() + 0.5 * np.sum(S * S) / len(S)
    draw = drawn(seed)
    first = tk.noisy_trace(draw, *LAYOUT, rng=seed)

    def own(X: Real) -> Real:
        return np.concatenate([draw(0).matmat(X[:, j : j + 1]) for j in range(X.shape[1])], axis=1)

    second = tk.hutchinson(tk.LinearOperator((d.size,) * 2, own, own), 16, rng=seed)
    third = tk.hutchinson(draw(0), 16, rng=seed)
    said = first.reason.endswith("more batches lower it")
    return holds(first, exact), holds(second, exact), holds(third, exact), said
