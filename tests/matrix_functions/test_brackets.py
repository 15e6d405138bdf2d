"""Brackets hold for every probe, and certified intervals in every run."""

from __future__ import annotations

import numpy as np
import pytest

import tracekit as tk
from tracekit import functions
from tracekit._matrix_functions.brackets import brackets
from tracekit._sketches import lanczos
from tracekit.testing import known_spectrum

N = 150
FLAT = np.linspace(1.0, 3.0, 600)
FUNCTIONS = {
    "log": functions.log, "log1p": functions.log1p, "sqrt": functions.sqrt, "inv": functions.inv,
    "exp": functions.exp, "ridge": functions.ridge(0.5), "power": functions.power(0.3),
}  # fmt: skip
SPECTRA = {
    "flat": np.linspace(1.0, 3.0, N),
    "geometric": np.geomspace(1e-3, 1.0, N),
    "i^-2": np.arange(1.0, N + 1) ** -2 + 1e-2,
    "outliers": np.r_[np.linspace(1.0, 2.0, N - 3), 10.0, 20.0, 1e-3],
    "two values": np.repeat([0.5, 2.0], N // 2),
    "one value": np.ones(N),
}


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_brackets_hold_the_form_of_every_probe(name, spectrum, factored):
    w, f = SPECTRA[spectrum], FUNCTIONS[name]
    A = known_spectrum(w)
    lam, V = np.linalg.eigh(A)
    X = np.random.default_rng(0).standard_normal((N, 5))
    exact = f(np.maximum(lam, 1e-12)) @ (V.T @ X) ** 2
    operator = tk.gram(np.linalg.cholesky(A)) if factored else tk.as_operator(A)
    slack = 1e-10 * np.sum(X**2, axis=0) * (1 + np.max(np.abs(f(w))))
    for bounds in ((w.min(), w.max()), (w.min() / 2, 1.5 * w.max())):
        widths = []
        for depth in (3, 8, 20):
            low, high = brackets(lanczos.begin(operator, X).advance(depth), f, bounds)
            assert np.all(low <= exact + slack)
            assert np.all(exact <= high + slack)
            widths.append(np.mean(high - low))
        assert widths[2] <= widths[0] + np.mean(slack)


def test_certified_intervals_hold_in_every_run_and_are_useful():
    """Log on [1, 3], 16 probes of depth 15: half-width at most 4 % of the value."""
    A, exact = known_spectrum(FLAT), np.sum(np.log(FLAT))
    for seed in range(40):
        c, counter = tk.counted(A)
        found = tk.logdet(c, 16 * 15, rng=seed, depth=15, bounds=(1.0, 3.0))
        assert counter.total == found.num_matvecs == 240
        low, high = found.certified_interval()
        assert low < exact < high
        assert (high - low) / 2 < 0.04 * exact
        wider = found.certified_interval(0.99)
        assert wider[0] < low
        assert high < wider[1]


@pytest.mark.parametrize("cplx", [False, True])
def test_other_functions_and_complex_operators(cplx):
    A = known_spectrum(np.geomspace(0.1, 2.0, 300))
    if cplx:
        phase = np.exp(1j * np.arange(300))
        A = phase[:, None] * A * phase.conj()
    w = np.geomspace(0.1, 2.0, 300)
    for f in (functions.inv, functions.sqrt, functions.ridge(1.0)):
        exact = np.sum(f(w))
        for seed in range(5):
            found = tk.trace_function(A, f, 200, rng=seed, depth=20, bounds=(0.05, 2.5))
            low, high = found.certified_interval()
            assert low < exact < high
            assert abs(found.value - exact) < 6 * found.standard_error


def test_lengths_of_gaussian_probes_are_no_noise():
    w = np.linspace(1.0, 1.2, 300)
    A, exact = known_spectrum(w), np.sum(np.log(w))
    errors, said = [], []
    for seed in range(30):
        found = tk.logdet(A, 60, rng=seed, depth=6, bounds=(1.0, 1.2))
        errors.append(found.value - exact)
        said.append(found.standard_error)
        assert np.isclose(np.mean(found.samples), found.value)
    signs = tk.logdet(A, 60, rng=0, depth=6, deflate=0).standard_error
    assert 0.7 < np.std(errors) / np.mean(said) < 1.4
    assert np.mean(said) < 2 * signs


def test_what_certifies_nothing_is_told():
    A = known_spectrum(FLAT)
    certified = tk.logdet(A, 240, rng=0, depth=9, bounds=(1.0, 3.0))
    for call, match in (
        (lambda: tk.logdet(A, 240, rng=0).certified_interval(), "bounds"),
        (lambda: tk.hutchinson(A, 24, rng=0).certified_interval(), "bounds"),
        (lambda: tk.logdet(A, 240, rng=0, bounds=(1.5, 3.0)), "do not hold"),
        (lambda: tk.logdet(A, 240, rng=0, bounds=(3.0, 1.0)), "increasing"),
        (lambda: tk.logdet(A, 240, rng=0, bounds=(-1.0, 3.0)), "not defined"),
        (lambda: tk.logdet(A, 240, rng=0, depth=9, bounds=(0.0, 3.0)), "not finite"),
        (lambda: tk.trace_function(A, np.abs, 240, bounds=(1.0, 3.0)), "signs"),
        (lambda: tk.logdet(A, 240, deflate=5, bounds=(1.0, 3.0)), "deflate"),
        (lambda: tk.trace_function(
            A, functions.log, 240, probes=tk.probes.sphere, bounds=(1.0, 3.0)), "Gaussian"),
        (lambda: certified.certified_interval(2), "level"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()
    exact = tk.logdet(A, 600, bounds=(1.0, 3.0))
    assert exact.certified_interval() == (exact.value, exact.value)
