"""Laws of runs: any function afterwards, growth, files, merging, observables."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import twins_functions as naive
from conftest import Library

import tracekit as tk
from tracekit.probes.source import Source
from tracekit.testing import known_spectrum

N = 200
W = np.arange(1.0, N + 1) ** -1


@cache
def harmonic() -> np.ndarray:
    return known_spectrum(W)


LIGHT = tk.quadrature.lanczos(reorthogonalise=False)
MOMENTS = tk.quadrature.chebyshev(interval=(0.0, 1.1))


def small(kind: str = "psd") -> np.ndarray:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((40, 40)) + (1j * rng.standard_normal((40, 40)) if kind else 0)
    return X @ X.conj().T / 40 + 0.1 * np.eye(40)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "complex"])
def test_samples_are_those_of_the_naive_twin(kind):
    A = small(kind)
    run = tk.spectral_run(A, 26, rng=3, depth=5)
    Omega = np.asarray(Source(3, tk.as_operator(A)).signs((40, run.num_probes)))
    for f in (np.sqrt, np.exp, lambda x: x**3 - x):
        found = run.trace(f)
        np.testing.assert_allclose(found.samples, naive.forms(A, Omega, f, 5), rtol=1e-10)
        assert np.isclose(found.value, np.mean(found.samples))


def test_libraries_agree(lib: Library):
    A = small()
    expected = tk.spectral_run(A, 23, rng=3, depth=3).trace(tk.functions.sqrt)
    found = tk.spectral_run(lib.array(A), 23, rng=3, depth=3).trace(tk.functions.sqrt)
    assert lib.at_home(found.value)
    np.testing.assert_allclose(lib.numpy(found.value), expected.value, rtol=1e-4)
    np.testing.assert_allclose(lib.numpy(found.samples), expected.samples, rtol=1e-3)


@pytest.mark.parametrize("factored", [False, True])
def test_what_is_claimed_is_what_was_spent(factored):
    A = harmonic()
    operator, counter = tk.counted(tk.gram(np.linalg.cholesky(A)) if factored else A)
    run = tk.spectral_run(operator, 90, rng=0)
    assert counter.total == run.num_matvecs <= 90
    before = run.num_matvecs
    run.extend(40)
    assert counter.total == run.num_matvecs <= before + 40
    before, probes = run.num_matvecs, run.num_probes
    run.extend(150, depth=run.depth + 5)
    assert counter.total == run.num_matvecs <= before + 150
    assert run.num_probes >= probes
    spent = counter.total
    run.trace(np.exp)
    run.logdet()
    run.density()
    run.family(lambda x, t: x / (x + t), [0.1, 1.0])
    run.ratio(np.exp, np.cosh)
    assert counter.total == spent


@pytest.mark.parametrize("way", [LIGHT, MOMENTS], ids=["three terms", "moments"])
def test_runs_without_bases_spend_and_say_the_same(way, tmp_path):
    A, exact = harmonic(), np.sum(np.exp(-W))
    operator, counter = tk.counted(A)
    run = tk.spectral_run(operator, 120, rng=0, quadrature=way).extend(60)
    assert counter.total == run.num_matvecs <= 180
    found = run.trace(lambda x: np.exp(-x))
    assert found.converged
    assert abs(found.value - exact) < 4 * found.standard_error < 0.1 * exact
    run.save(tmp_path / "run.npz")
    assert tk.SpectralRun.load(tmp_path / "run.npz").trace(np.exp).value == run.trace(np.exp).value
    read = tk.SpectralRun.load(tmp_path / "run.npz", A).extend(60)
    assert np.isclose(read.trace(np.exp).value, run.extend(60).trace(np.exp).value, rtol=1e-12)
    other = tk.spectral_run(A, 120, rng=1, quadrature=way)
    assert tk.merge([run, other]).num_probes == run.num_probes + other.num_probes
    with pytest.raises(ValueError, match="share probes"):
        tk.merge([other, other])
    with pytest.raises(ValueError, match="quadrature"):
        tk.merge([other, tk.spectral_run(A, 120, rng=2)])
    with pytest.raises(ValueError, match="observable"):
        tk.spectral_run(A, 120, quadrature=way, observable=A)


def test_a_grown_run_is_the_one_that_began_so():
    """Probes of one seed do not depend on the steps in which they were drawn."""
    A = harmonic()
    grown = tk.spectral_run(A, 60, rng=5, depth=8).extend(40).extend(80, depth=10)
    forms = grown.trace(np.exp).samples
    Omega = np.asarray(Source(5, tk.as_operator(A)).signs((N, grown.num_probes)))
    plain = naive.forms(A, Omega, np.exp, 10)
    assert grown.depth == 10
    folded = tk.trace_function(A, np.exp, 10 * grown.num_probes, rng=5, depth=10)
    np.testing.assert_allclose(forms, folded.samples, rtol=1e-8)
    assert abs(np.mean(plain) - np.mean(forms)) < 5 * np.std(plain)


def test_values_are_exact_where_all_products_are_affordable():
    A, B = small("complex"), np.diag(np.arange(40.0))
    w, U = np.linalg.eigh(A)
    for operator in (A, tk.gram(np.linalg.cholesky(A))):
        run = tk.spectral_run(operator, 40, observable=B)
        assert run.num_matvecs == 40
        weights = np.einsum("ij,ik,kj->j", U.conj(), B, U).real
        assert np.isclose(run.trace(np.exp).value, np.sum(np.exp(w) * weights))
        assert np.isclose(
            run.expectation(np.exp).value, np.sum(np.exp(w) * weights) / np.sum(np.exp(w))
        )
        assert np.isclose(run.logdet().value, np.sum(np.log(w)))
        assert run.trace(np.exp).standard_error == 0
        with pytest.raises(ValueError, match="all eigenvalues"):
            run.extend(10)


# --- honesty --------------------------------------------------------------------------------------


def test_each_function_of_a_run_is_judged_for_itself():
    run = tk.spectral_run(known_spectrum(np.linspace(0.0, 1.0, 600)), 60, rng=0)
    smooth, step = run.trace(np.exp), run.trace(lambda x: 1.0 * (x > 0.999))
    assert smooth.converged
    assert not step.converged
    assert not np.isfinite(step.standard_error) or step.standard_error > 0.5 * step.value
    both = run.family(lambda x, t: np.exp(t * x) if t < 2 else 1.0 * (x > 0.999), [1.0, 2.0])
    assert np.isclose(both.value[0], smooth.value)
    assert np.isclose(both.standard_error[0], smooth.standard_error)
    assert not both.converged


def test_a_band_holds_all_values_at_once():
    """Nominal 95 %: 93 of 100 and more, and no wider than Bonferroni's."""
    c = np.geomspace(1e-2, 10.0, 30)
    exact = np.sum(W[:, None] / (W[:, None] + c), axis=0)
    held, ratios = 0, []
    for seed in range(60):
        run = tk.spectral_run(harmonic(), 150, rng=seed, depth=8)
        found = run.family(lambda x, t: x / (x + t), c)
        low, high = found.band()
        held += bool(np.all((low <= exact) & (exact <= high)))
        ratios.append(np.mean((high - low) / (2 * found.standard_error)))
    assert held >= 54
    assert 1.96 < np.mean(ratios) < 4


def test_slopes_are_derivatives_by_the_scale():
    A = harmonic()
    for f, slope in ((tk.functions.exp, W * np.exp(W)), (tk.functions.sqrt, np.sqrt(W) / 2)):
        found = tk.trace_function(A, f, 160, rng=1)
        assert abs(found.slope - np.sum(slope)) < 4 * found.slope_error
    found = tk.logdet(A, 160, rng=1)
    assert np.isclose(found.slope, N, rtol=1e-8)
    up, down = (
        tk.spectral_run(c * A, 90, rng=2, depth=9).trace(np.exp).value for c in (1.001, 0.999)
    )
    assert np.isclose(
        (up - down) / 0.002, tk.spectral_run(A, 90, rng=2, depth=9).trace(np.exp).slope, rtol=1e-3
    )


# --- ratios and observables -----------------------------------------------------------------------


def test_ratios_are_covered_and_nearly_unbiased():
    exact = np.sum(np.exp(W)) / np.sum(np.cosh(W))
    found = [
        tk.spectral_run(harmonic(), 60, rng=s, depth=6).ratio(np.exp, np.cosh) for s in range(80)
    ]
    values = np.array([float(e) for e in found])
    held = [bool(e.confidence_interval()[0] <= exact <= e.confidence_interval()[1]) for e in found]
    assert np.mean(held) >= 0.88
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / 80**0.5


@pytest.mark.parametrize("beta", [1.0, 8.0])
def test_expectations_are_covered(beta):
    w = np.linspace(0.0, 2.0, N)
    H, rng = known_spectrum(w), np.random.default_rng(0)
    X = rng.standard_normal((N, N))
    B = (X + X.T) / 20 + np.eye(N)
    _, U = np.linalg.eigh(H)
    weight = np.exp(-beta * w)
    exact = np.sum(weight * np.einsum("ij,ik,kj->j", U, B, U)) / np.sum(weight)
    held = []
    for seed in range(40):
        run = tk.spectral_run(H, 120, rng=seed, observable=B)
        low, high = run.expectation(lambda x: np.exp(-beta * x)).confidence_interval()
        held.append(bool(low <= exact <= high))
    assert np.mean(held) >= 0.88


def test_families_of_observables_are_those_of_each_function():
    A, ts = small(), (0.1, 1.0, 5.0)
    for m in (30, 40):
        run = tk.spectral_run(A, m, rng=3, depth=6, observable=A)
        found = run.family(lambda x, t: x / (x + t), ts)
        for i, t in enumerate(ts):
            one = run.trace(lambda x, t=t: x / (x + t))
            assert np.isclose(found.value[i], one.value, rtol=1e-12)
            assert np.isclose(found.standard_error[i], one.standard_error, rtol=1e-9)


def test_observables_of_functions_of_both_signs():
    A, B = harmonic(), np.diag(np.linspace(0.0, 2.0, N))
    w, U = np.linalg.eigh(A)
    exact = np.sum((w - 0.1) * np.einsum("ij,ik,kj->j", U, B, U))
    found = tk.spectral_run(A, 150, rng=1, observable=B).trace(lambda x: x - 0.1)
    assert abs(found.value - exact) < 4 * found.standard_error
    plain = tk.spectral_run(A, 150, rng=0, observable=np.eye(N)).trace(np.exp)
    assert np.isclose(plain.value, np.mean(naive.forms(
        A, np.asarray(Source(0, tk.as_operator(A)).signs((N, plain.samples.shape[0]))), np.exp,
        plain.num_matvecs // plain.samples.shape[0])), rtol=1e-3)  # fmt: skip


# --- files and merging ----------------------------------------------------------------------------


@pytest.mark.parametrize("factored", [False, True])
def test_a_loaded_run_goes_on_as_if_never_stopped(tmp_path, factored):
    A = tk.gram(np.linalg.cholesky(harmonic())) if factored else harmonic()
    run = tk.spectral_run(A, 90, rng=0)
    run.save(tmp_path / "run.npz")
    read = tk.SpectralRun.load(tmp_path / "run.npz")
    assert read.trace(np.exp).value == run.trace(np.exp).value
    assert read.trace(np.exp).standard_error == run.trace(np.exp).standard_error
    with pytest.raises(ValueError, match="load it with A"):
        read.extend(20)
    read = tk.SpectralRun.load(tmp_path / "run.npz", A)
    for more in ({}, {"depth": run.depth + 4}):
        run.extend(120, **more)
        read.extend(120, **more)
        assert (read.num_matvecs, read.num_probes) == (run.num_matvecs, run.num_probes)
        assert np.isclose(read.trace(np.exp).value, run.trace(np.exp).value, rtol=1e-12)


def test_files_of_others_are_refused(tmp_path):
    tk.spectral_run(harmonic(), 60, rng=0).save(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="shape"):
        tk.SpectralRun.load(tmp_path / "run.npz", np.eye(3))
    with pytest.raises(ValueError, match="dtype"):
        tk.SpectralRun.load(tmp_path / "run.npz", harmonic().astype(np.float32))
    (tmp_path / "none.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no saved run"):
        tk.SpectralRun.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="does not exist"):
        tk.SpectralRun.load(tmp_path / "absent.npz")


def test_runs_add_up():
    runs = [tk.spectral_run(harmonic(), 90, rng=seed, observable=np.eye(N)) for seed in (0, 1, 2)]
    merged = tk.merge(runs)
    samples = [run.trace(np.exp).samples for run in runs]
    np.testing.assert_allclose(merged.trace(np.exp).samples, np.concatenate(samples))
    assert merged.num_matvecs == sum(run.num_matvecs for run in runs)
    with pytest.raises(ValueError, match="share probes"):
        tk.merge([runs[0], runs[0]])
    with pytest.raises(ValueError, match="depths"):
        tk.merge([*runs, tk.spectral_run(harmonic(), 90, rng=4, depth=3, observable=np.eye(N))])
    with pytest.raises(ValueError, match="extend its parts"):
        merged.extend(10)
    with pytest.raises(TypeError, match="SpectralRuns"):
        tk.merge([3])


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_told():
    run = tk.spectral_run(harmonic(), 60, rng=0)
    for call, match in (
        (lambda: run.family(lambda x, t: x, []), "`ts`"),
        (lambda: run.trace(lambda x: 1 / (x - x)), "not finite"),
        (lambda: run.trace(lambda x: x[:2]), "shape"),
        (lambda: run.trace(3), "`f`"),
        (lambda: run.expectation(np.exp), "observable"),
        (lambda: run.ratio(np.exp, lambda x: 0 * x), "is 0"),
        (lambda: run.extend(0), "num_matvecs"),
        (lambda: run.extend(5, depth=50), "does not allow"),
        (lambda: tk.spectral_run(harmonic(), 3, depth=5), "one probe"),
        (lambda: tk.spectral_run(harmonic(), 60, observable=np.eye(3)), "shape"),
        (lambda: tk.spectral_run(harmonic(), 60, observable=np.triu(np.ones((N, N)))), "Hermitian"),
        (lambda: tk.spectral_run(np.triu(harmonic()), 60), "Hermitian"),
        (lambda: tk.spectral_run(np.ones((3, 2)), 60), "square"),
        (lambda: tk.spectral_run(harmonic(), 60, quadrature=tk.quadrature.chebyshev()), "interval"),
        (lambda: tk.spectral_run(-harmonic(), 60).logdet(), "eigenvalues of 0 or more"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            call()
