"""Laws of error bars: naive jackknives, finite populations, skewness, and coverage as promised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import twins
from conftest import KINDS, PSD, Library, by_products, matrix

import tracekit as tk
from tracekit import probes
from tracekit._estimates import combined_error
from tracekit._estimates import samples as samples_module
from tracekit._trace import adaptive
from tracekit.testing import benchmark_spectra, known_spectrum

N = 100
SPECTRA = ("i^-2", "i^-0.5", "1+U", "0.7^i")
spectra = pytest.mark.parametrize("spectrum", SPECTRA)
INDEPENDENT = (probes.rademacher, probes.sphere, probes.normal)


@cache
def dense(spectrum: str, n: int = N) -> np.ndarray:
    return known_spectrum(benchmark_spectra(n)[spectrum])


# Naive versions -------------------------------------------------------------------------------


def combined(estimator: Callable[[np.ndarray], np.ndarray], Omega: np.ndarray) -> float:
    """Leave-one-out spread and jackknife, every probe left out by doing all over without it."""
    return twins.combined_error(estimator, Omega)


def recording(law: Any) -> tuple[Any, Callable[[], np.ndarray]]:
    """A law of probes that remembers what it drew."""
    drawn: list[np.ndarray] = []

    def draw(source: Any, n: int, m: int) -> Any:
        drawn.append(law(source, n, m))
        return drawn[-1]

    draw.spherical, draw.joint = law.spherical, law.joint  # type: ignore[attr-defined]
    return draw, lambda: np.concatenate(drawn, axis=1)


def hall(samples: np.ndarray, level: float) -> tuple[float, float]:
    """Hall's interval by bisection of his cubic, one number after the other.

    With T = (mean - truth) / error, the cubic of T below is symmetric to higher order.
    """
    from scipy.stats import t

    n, mean = len(samples), math.fsum(samples) / len(samples)
    second = math.fsum((x - mean) ** 2 for x in samples) / n
    third = math.fsum((x - mean) ** 3 for x in samples) / n
    skewness = third / second**1.5
    error = math.sqrt(second * n / (n - 1) / n)
    r, z = skewness / math.sqrt(n), float(t.ppf((1 + level) / 2, n - 1))

    def cubic(T: float) -> float:
        return T + r / 3 * T**2 + r**2 / 27 * T**3 + r / 6

    def solve(target: float) -> float:
        low, high = -1e6, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if cubic(middle) < target else (low, middle)
        return (low + high) / 2

    return mean - error * solve(z), mean - error * solve(-z)


def mean(samples: np.ndarray) -> tk.Estimate:
    """The estimate that is the mean of independent samples."""
    return samples_module.mean(samples, len(samples), "")


# The error of leave-one-out estimates ---------------------------------------------------------


@pytest.mark.parametrize("law", INDEPENDENT, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("estimator", "kind"), [(tk.xtrace, kind) for kind in KINDS]
                         + [(tk.xnystrace, kind) for kind in PSD],
                         ids=lambda x: getattr(x, "__name__", x))  # fmt: skip
def test_the_error_is_made_of_spread_and_jackknife(estimator: Any, kind: str, law: Any) -> None:
    A = matrix(kind, 16)
    naive = twins.xtrace if estimator is tk.xtrace else twins.xnystrace
    for b in (3, 4, 5, 7):
        draw, drawn = recording(law)
        budget = 2 * b if estimator is tk.xtrace else b
        estimate = estimator(A, budget, rng=b, probes=draw)
        expected = combined(partial(naive, A, resphere=law.spherical), drawn())
        assert drawn().shape[1] == b
        assert float(estimate.standard_error) == pytest.approx(expected, rel=1e-6)
        assert estimate.dof == b - 1
        assert estimate.skewness is None


def test_of_a_gram_operator() -> None:
    L = matrix("complex", 24)[:, :20]
    A = L @ L.conj().T
    for estimator, naive in ((tk.xtrace, twins.xtrace), (tk.xnystrace, twins.xnystrace)):
        draw, drawn = recording(probes.sphere)
        estimate = estimator(tk.gram(L), 18, probes=draw, rng=1)
        assert drawn().shape[1] >= 4
        b = drawn().shape[1]
        expected = combined(partial(naive, A, resphere=True), drawn())
        expected *= 1 + 2 / b if b >= 8 and estimator is tk.xnystrace else 1
        assert float(estimate.standard_error) == pytest.approx(expected, rel=1e-6)
        assert estimate.skewness is None


def with_signs(estimator: Any, Omega: np.ndarray) -> np.ndarray:
    """Samples of `trace`: the first eight probes are sign vectors, which are not resphered."""
    plain, resphered = (estimator(Omega, resphere=resphere) for resphere in (False, True))
    return np.concatenate([plain[:8], resphered[8:]])


def combined_with_signs(estimator: Any, Omega: np.ndarray) -> float:
    """The spread of these samples, and the jackknives of both kinds by their share."""
    plain, resphered = (
        twins.jackknife(partial(estimator, resphere=resphere), Omega) for resphere in (False, True)
    )
    share = 8 / Omega.shape[1]
    jackknife = math.sqrt(share * plain**2 + (1 - share) * resphered**2)
    return math.sqrt(twins.standard_error(with_signs(estimator, Omega)) * jackknife)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_of_a_run_that_sketches_some_probes_only(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trace` on a flat spectrum: b probes sketch and test, s only test; pooled by number."""
    monkeypatch.setattr(adaptive, "PAYS", 0.0)  # or it would keep to plain signs
    A, n = np.eye(N) + 0.3 * matrix(kind, N), N
    drawn: list[np.ndarray] = []

    def product(X: np.ndarray) -> np.ndarray:
        drawn.append(X.copy())
        return A @ X

    op = tk.LinearOperator((n, n), product, dtype=A.dtype)
    estimate = tk.trace(op, rtol=0.0, num_matvecs=48, rng=1)
    probed = [X for X in drawn if np.allclose(np.linalg.norm(X, axis=0), math.sqrt(n))]
    Omega = np.concatenate(probed, axis=1)
    m = Omega.shape[1]
    b = estimate.num_matvecs - m
    s = m - b
    assert s >= 8 < b
    first = with_signs(partial(twins.xtrace, A), Omega[:, :b])
    Q = twins.range_basis(A @ Omega[:, :b])
    rest = Omega[:, b:] - Q @ (Q.conj().T @ Omega[:, b:])
    rest = rest / np.linalg.norm(rest, axis=0) * math.sqrt(n - b)
    second = np.trace(Q.conj().T @ A @ Q) + twins.quadratic_forms(A, rest)
    np.testing.assert_allclose(estimate.samples, [*first, *second], rtol=1e-9)
    value = (b * first.mean() + s * second.mean()) / m
    assert complex(estimate.value) == pytest.approx(complex(value), rel=1e-10)
    errors = (
        combined_with_signs(partial(twins.xtrace, A), Omega[:, :b]),
        twins.standard_error(second),
    )
    expected = math.hypot(b * errors[0], s * errors[1]) / m
    assert float(estimate.standard_error) == pytest.approx(expected, rel=1e-6)
    assert estimate.dof == b - 1 + s - 1


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("flat", [False, True], ids=["decaying", "flat"])
def test_of_a_run_with_a_factor(flat: bool, cplx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trace` of L L^H: the Nystrom estimate, and on flat spectra probes that only test it."""
    monkeypatch.setattr(adaptive, "PAYS", 0.0)
    n = N
    L = (2 * np.eye(n) if flat else 0) + matrix("complex" if cplx else "real", n)
    A, drawn = L @ L.conj().T, list[np.ndarray]()

    def backwards(X: np.ndarray) -> np.ndarray:
        drawn.append(X.copy())
        return L.conj().T @ X

    factor = tk.LinearOperator((n, n), lambda X: L @ X, backwards, dtype=L.dtype)
    estimate = tk.trace(tk.gram(factor), rtol=0.0, num_matvecs=48, rng=1)
    Omega = np.concatenate(drawn, axis=1)
    m = Omega.shape[1]
    b = estimate.num_matvecs - m
    assert (b < m) == flat
    naive = partial(twins.xnystrace, A)
    first, near = with_signs(naive, Omega[:, :b]), twins.nystrom(A, Omega[:, :b])
    basis = twins.range_basis(Omega[:, :b])
    rest = Omega[:, b:] - basis @ (basis.conj().T @ Omega[:, b:])
    rest = rest / np.linalg.norm(rest, axis=0) * math.sqrt(n - b)
    second = (np.trace(near) + twins.quadratic_forms(A - near, rest)).real
    np.testing.assert_allclose(estimate.samples, [*first.real, *second], rtol=1e-7)
    errors = [combined_with_signs(naive, Omega[:, :b]), 0.0]
    errors[1] = twins.standard_error(second) if flat else 0.0
    expected = math.hypot(b * errors[0], (m - b) * errors[1]) / m
    assert float(estimate.standard_error) == pytest.approx(expected, rel=1e-5)
    assert estimate.method == "xnystrace"


def test_combined_errors_at_the_edges() -> None:
    spread = np.asarray(0.5)
    for b in (4, 8):
        samples = np.arange(1.0, b + 1)
        assert combined_error(samples, None, spread) == 0.5
        equal = combined_error(samples, np.full(b, 7.0), spread)
        assert equal == (0.5 if b == 4 else 0.0)
        for scale in (1e-300, 1.0, 1e300):
            replicates = np.array([1.0, 1.1, 0.9, 1.0] * (b // 4)) * scale
            found = combined_error(samples * scale, replicates, spread * scale)
            jackknife = math.sqrt((b - 1) / b * 0.02 * (b // 4))
            expected = 0.5 if b == 4 else math.sqrt(jackknife * 0.5)
            assert found / scale == pytest.approx(expected, rel=1e-12)


def test_more_than_either_part_promises() -> None:
    """The spread alone is too small where the sketch does most of the work; so is no jackknife."""
    A, truth = dense("0.7^i"), float(np.trace(dense("0.7^i")))
    runs = [tk.xnystrace(A, 16, rng=seed) for seed in range(200)]
    error = math.sqrt(np.mean([(float(run) - truth) ** 2 for run in runs]))
    spread = math.sqrt(np.mean([twins.standard_error(run.samples) ** 2 for run in runs]))
    claimed = math.sqrt(np.mean([float(run.standard_error) ** 2 for run in runs]))
    assert spread < 0.8 * error
    assert 0.8 * error < claimed < 2.5 * error


# Finite populations ---------------------------------------------------------------------------


@pytest.mark.parametrize("law", [probes.orthogonal, probes.hadamard], ids=lambda law: law.__name__)
@pytest.mark.parametrize("n", [16, 24])
def test_claimed_and_true_variances_of_orthogonal_probes(law: Any, n: int) -> None:
    """Means over many runs, of the claimed variance and of the squared error."""
    A = matrix("symmetric", n, seed=3)
    A = A + np.diag(np.linspace(0, 1, n))
    population = 32 if (law is probes.hadamard and n == 24) else n
    whole, F2 = float(np.trace(A)), float(np.sum(A * A))
    for m in (4, 13):
        runs = [tk.hutchinson(A, m, rng=seed, probes=law) for seed in range(600)]
        claimed = np.mean([float(run.standard_error) ** 2 for run in runs])
        seen = np.mean([(float(run) - whole) ** 2 for run in runs])
        if law is probes.orthogonal:
            true = 2 * n * (n - m) / (m * (n - 1) * (n + 2)) * (F2 - whole**2 / n)
        else:
            off = F2 - np.sum(np.diag(A) ** 2)
            true = 2 * (population - m) / (m * (population - 1)) * off
        assert seen == pytest.approx(true, rel=0.2)
        assert claimed == pytest.approx(true, rel=0.12)
        plain = np.mean([twins.standard_error(run.samples) ** 2 for run in runs])
        assert claimed == pytest.approx(plain * (1 - m / population), rel=1e-9)


def test_one_sided_has_the_factor_too() -> None:
    L = matrix("real", 20)
    for law, population in (
        (probes.orthogonal, 20),
        (probes.hadamard, 32),
        (probes.rademacher, math.inf),
    ):
        estimate = tk.one_sided(L, 12, rng=0, probes=law)
        expected = twins.standard_error(estimate.samples) * math.sqrt(1 - 12 / population)
        assert float(estimate.standard_error) == pytest.approx(expected, rel=1e-10)


# Intervals ------------------------------------------------------------------------------------


def test_quantiles_are_those_in_the_tables() -> None:
    for level, dof, quantile in (
        (0.95, 1, 12.706),
        (0.95, 9, 2.262),
        (0.99, 4, 4.604),
        (0.9, 30, 1.697),
    ):
        made = tk.Estimate(np.asarray(5.0), np.asarray(1.0), 10, dof=dof)
        low, high = made.confidence_interval(level)
        assert float(high) - 5 == pytest.approx(quantile, abs=6e-4)
        assert 5 - float(low) == pytest.approx(quantile, abs=6e-4)


def skewed(n: int, power: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).chisquare(1, n) * power + 1


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("n", [3, 8, 30, 200])
@pytest.mark.parametrize("sign", [1, -1])
def test_skewed_samples_have_halls_interval(n: int, level: float, sign: int) -> None:
    for seed in range(3):
        samples = sign * skewed(n, 2.0, seed)
        low, high = mean(samples).confidence_interval(level)
        assert (float(low), float(high)) == pytest.approx(hall(samples, level), rel=1e-8, abs=1e-8)


def test_the_longer_side_is_that_of_the_longer_tail() -> None:
    samples = skewed(40, 2.0)
    for sign in (1, -1):
        estimate = mean(sign * samples)
        low, high = (float(end) for end in estimate.confidence_interval())
        up, down = high - float(estimate), float(estimate) - low
        assert (up > 1.2 * down) if sign == 1 else (down > 1.2 * up)


def test_symmetric_samples_have_students_interval() -> None:
    samples = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    estimate = mean(samples)
    student = replace(estimate, skewness=None)
    assert [float(x) for x in estimate.confidence_interval()] == pytest.approx(
        [float(x) for x in student.confidence_interval()], rel=1e-12
    )
    almost = mean(samples + np.array([0, 0, 0, 0, 4e-3]))  # no jump at the threshold
    student = replace(almost, skewness=None)
    assert [float(x) for x in almost.confidence_interval()] == pytest.approx(
        [float(x) for x in student.confidence_interval()], rel=2e-3
    )


@pytest.mark.parametrize(
    "estimator",
    [tk.hutchinson, tk.hutchpp, tk.xtrace, tk.xnystrace, tk.one_sided],
    ids=lambda f: f.__name__,
)
def test_intervals_are_nested(lib: Library, estimator: Any) -> None:
    if lib.family == "jax" and not lib.jit and estimator is not tk.hutchinson:
        pytest.skip("one estimator is enough where each shape of array is compiled")
    A = matrix("psd", 20)
    estimate = lib.estimate(estimator, lib.array(A), 12)
    levels = (0.01, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99, 0.9999)
    ends = [[float(end) for end in estimate.confidence_interval(level)] for level in levels]
    lows, highs = zip(*ends, strict=True)
    assert list(lows) == sorted(lows, reverse=True)
    assert list(highs) == sorted(highs)
    assert len(set(highs)) == len(highs)
    assert lows[2] < float(estimate.value) < highs[2]
    low, high = estimate.confidence_interval()
    assert lib.at_home(low)
    assert lib.at_home(high)
    assert low.dtype == high.dtype == lib.real


def test_intervals_move_and_stretch_with_the_samples() -> None:
    samples = skewed(20, 1.0)
    base = np.array([float(x) for x in mean(samples).confidence_interval()])
    for scale in (1e-150, 3.0, 1e150):
        found = mean(samples * scale).confidence_interval()
        np.testing.assert_allclose([float(x) / scale for x in found], base, rtol=1e-12)
    mirrored = [-float(x) for x in mean(-samples).confidence_interval()]
    np.testing.assert_allclose(mirrored[::-1], base, rtol=1e-12)


def test_intervals_of_equal_samples_are_points() -> None:
    for n in (2, 3, 30):
        low, high = mean(np.full(n, 2.5)).confidence_interval()
        assert (float(low), float(high)) == (2.5, 2.5)


# Coverage -------------------------------------------------------------------------------------

ESTIMATORS: dict[str, Callable[..., tk.Estimate]] = {
    "hutchinson signs": tk.hutchinson,
    "hutchinson orthogonal": partial(tk.hutchinson, probes=probes.orthogonal),
    "hutchinson hadamard": partial(tk.hutchinson, probes=probes.hadamard),
    "hutchpp": tk.hutchpp,
    "xtrace": tk.xtrace,
    "xnystrace": tk.xnystrace,
    "one_sided": tk.one_sided,
    "trace": lambda A, m, rng: tk.trace(by_products(A), rtol=0.0, num_matvecs=m, rng=rng),
    "trace psd": lambda A, m, rng: tk.trace(
        by_products(A), rtol=0.0, num_matvecs=m, rng=rng, psd=True
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_intervals_hold_the_trace_as_often_as_promised(name: str) -> None:
    """On fixed seeds; and they are no wider than they have to be, but for what is exact anyway."""
    shares = []
    for spectrum in SPECTRA:
        A, truth = dense(spectrum), float(np.trace(dense(spectrum)))
        given = np.linalg.cholesky(A) if name == "one_sided" else A
        runs = [ESTIMATORS[name](given, 30, rng=seed) for seed in range(200)]
        ends = np.array([[float(end) for end in run.confidence_interval()] for run in runs])
        rounding = 1e-13 * truth
        held = (ends[:, 0] <= truth + rounding) & (ends[:, 1] >= truth - rounding)
        shares.append(np.mean(held))
        honest = 2 * np.quantile([abs(float(run) - truth) for run in runs], 0.95)
        assert np.mean(ends[:, 1] - ends[:, 0]) <= 2.5 * honest, spectrum
    assert min(shares) >= 0.89, shares
    assert np.mean(shares) >= 0.93, shares


@pytest.mark.parametrize("name", ["hutchinson signs", "xtrace", "xnystrace"])
def test_other_levels_hold_too(name: str) -> None:
    A, truth = dense("i^-0.5"), float(np.trace(dense("i^-0.5")))
    runs = [ESTIMATORS[name](A, 30, rng=seed) for seed in range(300)]
    for level in (0.5, 0.8, 0.99):
        ends = np.array([[float(end) for end in run.confidence_interval(level)] for run in runs])
        share = np.mean((ends[:, 0] <= truth) & (ends[:, 1] >= truth))
        assert level - 0.08 < share < level + 0.12, level
