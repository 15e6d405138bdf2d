"""Laws of thermal averages: closed forms, textbook twins, errors, and cold single precision."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Library

import tracekit as tk
from tracekit.testing import known_spectrum

BETAS = (0.0, 0.1, 0.5, 2.0)
N = 300
W = np.sort(np.random.default_rng(0).normal(size=N))


def closed_form(w, betas=BETAS):
    """Each quantity from all eigenvalues, as a textbook has them."""
    found = []
    for beta in betas:
        p = np.exp(-beta * (w - w[0]))
        Z = p.sum()
        p = p / Z
        energy = p @ w
        entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
        capacity = beta**2 * (p @ (w - energy) ** 2)
        found.append((np.log(Z) - beta * w[0], energy, entropy, capacity))
    return dict(zip(tk.Thermodynamics._fields, np.transpose(found), strict=True))


def small(kind: str = "") -> np.ndarray:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((40, 40)) + (1j * rng.standard_normal((40, 40)) if kind else 0)
    return (X + X.conj().T) / 6


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "complex"])
def test_all_products_give_the_closed_form(kind):
    H = small(kind)
    found, truth = tk.thermodynamics(H, BETAS, 40), closed_form(np.linalg.eigvalsh(H))
    assert found.num_matvecs == 40
    for name, estimate in found._asdict().items():
        np.testing.assert_allclose(estimate.value, truth[name], rtol=1e-10, atol=1e-12)
        assert np.all(estimate.standard_error == 0)
        assert estimate.method == name
    np.testing.assert_allclose(
        found.entropy.value, BETAS * found.energy.value + found.log_partition.value, atol=1e-12
    )


def test_energies_are_the_ratios_of_a_run():
    """With errors by the delta method, where no probe is deflated."""
    H, beta = small("complex"), 0.7
    found = tk.thermodynamics(H, [beta], 26, rng=3, depth=5).energy
    run = tk.spectral_run(H, 26, rng=3, depth=5)
    expected = run.ratio(lambda x: x * np.exp(-beta * x), lambda x: np.exp(-beta * x))
    assert np.isclose(found.value[0], expected.value, rtol=1e-10)
    assert np.isclose(found.kept.monte_carlo[0], expected.kept.monte_carlo, rtol=1e-8)
    np.testing.assert_allclose(found.samples[0], expected.samples, rtol=1e-8, atol=1e-10)


def test_errors_and_bias_are_those_of_the_jackknife():
    """Of leaving out one probe at a time, but for second order."""
    H, beta = known_spectrum(np.linspace(-1.0, 1.0, 600)), 1.5
    found = tk.thermodynamics(H, [beta], 200, rng=1, depth=5)
    run = tk.spectral_run(H, 200, rng=1, depth=5)
    Z, D, E = (run.trace(lambda x, k=k: x**k * np.exp(-beta * x)).samples for k in range(3))
    m = len(Z)
    without = [(x.sum() - x) / (m - 1) for x in (Z, D, E)]
    energy, square = without[1] / without[0], without[2] / without[0]
    replicates = {
        "log_partition": np.log(without[0]),
        "energy": energy,
        "entropy": beta * energy + np.log(without[0]),
        "heat_capacity": beta**2 * (square - energy**2),
    }
    Z, D, E = (x.mean() for x in (Z, D, E))
    plain = {"log_partition": np.log(Z), "energy": D / Z, "entropy": beta * D / Z + np.log(Z)}
    plain["heat_capacity"] = beta**2 * (E / Z - (D / Z) ** 2)
    for name, values in replicates.items():
        bias = (m - 1) * (values.mean() - plain[name])
        assert np.isclose(getattr(found, name).value[0], plain[name] - bias, atol=0.1 * abs(bias))
        error = np.sqrt((m - 1) ** 2 / m * np.var(values, ddof=1))
        assert np.isclose(
            np.std(getattr(found, name).samples[0], ddof=1) / m**0.5, error, rtol=0.05
        )


def test_expectations_are_those_of_a_run():
    H, O, beta = small("complex"), small("complex") ** 2, 0.7  # noqa: E741
    O = (O + O.conj().T) / 2  # noqa: E741
    run = tk.spectral_run(H, 26, rng=3, depth=5, observable=O)
    expected = run.expectation(lambda x: np.exp(-beta * x))
    by_beta = tk.expectation(H, beta, O, 26, rng=3, depth=5)
    by_function = tk.expectation(H, lambda x: np.exp(-beta * x), O, 26, rng=3, depth=5)
    for found in (by_beta, by_function):
        assert np.isclose(found.value, expected.value, rtol=1e-10)
        assert np.isclose(found.standard_error, expected.standard_error, rtol=1e-8)
    w, U = np.linalg.eigh(H)
    exact = np.sum(np.exp(-beta * w) * np.einsum("ij,ik,kj->j", U.conj(), O, U).real)
    exact = exact / np.sum(np.exp(-beta * w))
    assert np.isclose(tk.expectation(H, beta, O, 40).value, exact)
    assert np.isclose(tk.expectation(H, beta, H, 40).value,
                      tk.thermodynamics(H, [beta], 40).energy.value[0])  # fmt: skip


@pytest.mark.parametrize("factored", [False, True])
def test_what_is_claimed_is_what_was_spent(factored):
    H = small() + 5 * np.eye(40)
    H = tk.gram(np.linalg.cholesky(H)) if factored else H
    for budget in (1, 7, 23, 39, 40):
        operator, counter = tk.counted(H)
        found = tk.thermodynamics(operator, BETAS, budget, rng=0)
        assert 0 < found.num_matvecs == counter.total <= budget
        operator, counter = tk.counted(H)
        found = tk.expectation(operator, 1.0, np.eye(40), budget, rng=0)
        assert 0 < found.num_matvecs == counter.total <= budget


def test_libraries_agree(but_jax: Library):
    H = small("complex")
    expected = tk.thermodynamics(H, BETAS, 23, rng=3, depth=4)
    found = tk.thermodynamics(but_jax.array(H), BETAS, 23, rng=3, depth=4)
    for here, there in zip(expected, found, strict=True):
        assert but_jax.at_home(there.value)
        np.testing.assert_allclose(but_jax.numpy(there.value), here.value, rtol=2e-3, atol=1e-5)


# --- errors ---------------------------------------------------------------------------------------


def test_intervals_and_bands_hold():
    """For each quantity, at each temperature and at all at once; means are right, too."""
    H, truth, seeds = known_spectrum(W), closed_form(W), 30
    runs = [tk.thermodynamics(H, BETAS, 150, rng=seed, depth=15) for seed in range(seeds)]
    for name, exact in truth.items():
        found = [getattr(run, name) for run in runs]
        rounding = 1e-10 * np.max(np.abs(exact))
        ends = [e.confidence_interval() for e in found]
        inside = [(a - rounding <= exact) & (exact <= b + rounding) for a, b in ends]
        assert np.mean(inside) > 0.9
        ends = [e.band() for e in found]
        inside = [np.all((a - rounding <= exact) & (exact <= b + rounding)) for a, b in ends]
        assert np.mean(inside) > 0.85
        values = np.array([e.value for e in found])
        spread = np.std(values, axis=0) / seeds**0.5
        assert np.all(np.abs(values.mean(axis=0) - exact) < 4 * spread + rounding)


def test_temperatures_are_judged_one_by_one():
    found = tk.thermodynamics(known_spectrum(20 * W), [0.01, 30.0], 150, rng=0, depth=12)
    assert not found.energy.converged
    low, high = found.energy.standard_error
    assert low < 2
    assert high > 10
    assert "1 of 2 values" in found.energy.reason or np.isfinite(high)


def test_infinite_temperature_knows_what_it_knows():
    found = tk.thermodynamics(known_spectrum(W), [0.0], 60, rng=0)
    assert np.isclose(found.log_partition.value[0], np.log(N))
    assert np.isclose(found.entropy.value[0], np.log(N))
    assert (found.heat_capacity.value[0], found.heat_capacity.standard_error[0]) == (0, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", [60, N])
def test_exponentials_do_not_overflow(dtype, m):
    """Energies of -1e5 at a temperature of 1e-3, with a gap that settles all."""
    w = np.concatenate([[-3.0], np.linspace(-1.0, 1.0, N - 1)])
    H = (1e5 * known_spectrum(w)).astype(dtype)
    found = tk.thermodynamics(H, [0.0, 1e3], m, rng=0)
    for estimate in found:
        assert estimate.value.dtype == dtype
        assert np.all(np.isfinite(estimate.value))
    assert np.isclose(found.energy.value[1], -3e5, rtol=1e-4)
    assert abs(found.entropy.value[1]) < 1e-3 + 4 * found.entropy.standard_error[1]
    mean = tk.expectation(H, 1e3, H, m, rng=0)
    assert np.isclose(mean.value, -3e5, rtol=1e-4)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda H: tk.thermodynamics(H, [], 20), "`betas`"),
        (lambda H: tk.thermodynamics(H, 1.0, 20), "`betas`"),
        (lambda H: tk.thermodynamics(H, [-1.0], 20), "`betas`"),
        (lambda H: tk.thermodynamics(H, [np.nan], 20), "`betas`"),
        (lambda H: tk.thermodynamics(np.triu(H), [1.0], 20), "Hermitian"),
        (lambda H: tk.thermodynamics(H[:, :3], [1.0], 20), "square"),
        (lambda H: tk.thermodynamics(H, [1.0], 0), "num_matvecs"),
        (lambda H: tk.expectation(H, "f", H, 20), "`f`"),
        (lambda H: tk.expectation(H, -1.0, H, 20), "`f`"),
        (lambda H: tk.expectation(H, 1.0, np.eye(3), 20), "shape"),
        (lambda H: tk.expectation(H, 1.0, np.triu(H), 20), "Hermitian"),
        (lambda H: tk.expectation(H, lambda x: 0 * x, H, 20), "is 0"),
    ],
)
def test_bad_input_is_told(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call(small())
