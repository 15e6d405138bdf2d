"""Lanczos without bases and Chebyshev moments: the same integrals, in little memory."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Library

import tracekit as tk
from tracekit import functions, quadrature
from tracekit._sketches import chebyshev, gauss, lanczos
from tracekit.testing import known_spectrum

LIGHT = quadrature.lanczos(reorthogonalise=False)
FLAT = np.linspace(1.0, 3.0, 300)


def probes(n: int, k: int = 3, *, cplx: bool = False) -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, k))
    return X + 1j * rng.standard_normal((n, k)) if cplx else X


def hermitian(n: int = 60) -> np.ndarray:
    X = probes(n, n, cplx=True)
    return (X + X.conj().T) / (4 * n**0.5)


# --- the three-term recurrence --------------------------------------------------------------------


@pytest.mark.parametrize("factored", [False, True])
def test_nothing_is_lost_without_a_basis_on_a_flat_spectrum(factored):
    A = known_spectrum(FLAT)
    operator = tk.gram(np.linalg.cholesky(A)) if factored else tk.as_operator(A)
    forms = []
    for kept in (True, False):
        K = lanczos.begin(operator, probes(300), reorthogonalise=kept).advance(60)
        forms.append(gauss.samples(K, 60, np.log))
        assert len(K.panels) == (15 if kept else 1)
    np.testing.assert_allclose(*forms, rtol=1e-12)


def test_copies_of_converged_values_weigh_what_one_does():
    """The table of three outliers: e^(5x) to rounding at 10 steps, and still at 120."""
    w = np.concatenate([np.linspace(0.0, 1.0, 197), [2.0, 2.5, 3.0]])
    X = probes(200)
    exact = np.sum(X**2 * np.exp(5 * w)[:, None], axis=0)
    K = lanczos.begin(tk.as_operator(np.diag(w)), X, reorthogonalise=False).advance(120)
    for depth in (15, 40, 120):
        np.testing.assert_allclose(
            gauss.samples(K, depth, lambda x: np.exp(5 * x)), exact, rtol=1e-10
        )
    nodes, _ = gauss.rule(K)
    assert np.sum(np.abs(nodes[0] - 3.0) < 1e-10) > 1  # there are copies


def test_f_of_a_times_v_in_two_passes():
    A, X = known_spectrum(FLAT), probes(300)
    for operator in (A, tk.gram(np.linalg.cholesky(A))):
        one = tk.function_operator(operator, functions.log, 40) @ X
        c, counter = tk.counted(operator)
        two = tk.function_operator(c, functions.log, 40, quadrature=LIGHT) @ X
        np.testing.assert_allclose(two, one, atol=1e-12)
        assert counter.total == 3 * 2 * (40 if operator is A else 79)
    with pytest.raises(TypeError, match=r"quadrature.lanczos"):
        tk.function_operator(A, functions.log, 4, quadrature=quadrature.chebyshev())


# --- Chebyshev moments ----------------------------------------------------------------------------


@pytest.mark.parametrize("cplx", [False, True])
def test_moments_are_those_of_the_polynomials(cplx):
    A = hermitian() if cplx else hermitian().real
    X = probes(60, cplx=cplx)
    C = chebyshev.begin(tk.as_operator(A), X, (-1.5, 2.0)).advance(9)
    w, V = np.linalg.eigh(A)
    y = np.abs(V.conj().T @ X) ** 2
    for k, moment in enumerate(C.moments):
        T = np.polynomial.Chebyshev.basis(k)((w - 0.25) / 1.75)
        np.testing.assert_allclose(moment, T @ y, atol=1e-10)


def test_the_rule_is_exact_for_polynomials_and_damping_keeps_densities_positive():
    A, X = hermitian().real, probes(60)
    C = chebyshev.begin(tk.as_operator(A), X, (-1.5, 1.5)).advance(8)
    w, V = np.linalg.eigh(A)
    nodes, weights = chebyshev.rule(C, 8)
    for power in range(17):
        np.testing.assert_allclose(
            np.sum(weights * nodes**power, axis=-1), w**power @ (V.T @ X) ** 2, rtol=1e-9, atol=1e-9
        )
    assert np.min(weights) < 0
    _, damped = chebyshev.rule(C, 8, damped=True)
    assert np.min(damped) > -1e-12
    np.testing.assert_allclose(np.sum(damped, axis=-1), np.sum(X**2, axis=0))


def test_all_ways_to_integrate_agree(but_jax: Library):
    A = but_jax.array(known_spectrum(FLAT))
    ways = (None, LIGHT, quadrature.chebyshev((0.9, 3.1)), quadrature.chebyshev())
    found = [tk.logdet(A, 60, rng=0, deflate=0, depth=5, quadrature=way) for way in ways]
    for estimate in found:
        assert but_jax.at_home(estimate.value)
        assert abs(float(estimate.value) - np.sum(np.log(FLAT))) < 4 * float(
            estimate.standard_error
        )
        assert np.isclose(float(estimate.samples[0]), float(found[0].samples[0]), rtol=1e-3)


def test_fixed_intervals_compile():
    jax = pytest.importorskip("jax")
    plain = known_spectrum(FLAT)
    A = jax.numpy.asarray(plain)
    for way in (LIGHT, quadrature.chebyshev((0.9, 3.1))):

        def run(A, way=way):
            return tk.trace_function(A, functions.log, 60, rng=0, depth=6, quadrature=way).value

        assert np.isclose(jax.jit(run)(A), run(plain), rtol=1e-4)
    with pytest.raises(TypeError, match="interval"):
        jax.jit(lambda A: tk.logdet(A, 60, rng=0, quadrature=quadrature.chebyshev()).value)(A)


# --- honesty --------------------------------------------------------------------------------------


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("way", [LIGHT, quadrature.chebyshev(), quadrature.chebyshev((0.0, 4.0))])
def test_what_is_claimed_is_what_was_spent(way, factored):
    A = known_spectrum(FLAT)
    c, counter = tk.counted(tk.gram(np.linalg.cholesky(A)) if factored else A)
    for budget in (40, 90, 200):
        before = counter.total
        estimate = tk.trace_function(c, functions.sqrt, budget, rng=0, quadrature=way)
        assert counter.total - before == estimate.num_matvecs <= budget


@pytest.mark.parametrize("way", [LIGHT, quadrature.chebyshev()])
def test_intervals_hold_the_value(way):
    w = 1 + 5 * np.linspace(0.0, 1.0, 300) ** 3
    A, exact = known_spectrum(w), np.sum(np.log(w))
    held = []
    for seed in range(40):
        low, high = tk.logdet(A, 120, rng=seed, quadrature=way).confidence_interval()
        held.append(bool(low <= exact <= high))
    assert np.mean(held) >= 0.88


def test_eigenvalues_outside_of_the_interval_are_noticed():
    A = known_spectrum(FLAT)
    for interval in ((1.5, 3.0), (1.0, 2.9)):
        with pytest.raises(ValueError, match="outside of the interval"):
            tk.logdet(A, 200, rng=0, quadrature=quadrature.chebyshev(interval))
    # two far ones that a search on few steps does not see at their place
    w = np.concatenate([np.linspace(0.0, 1.0, 598), [1.4, -0.5]])
    estimate = tk.trace_function(
        known_spectrum(w), np.exp, 300, rng=0, quadrature=quadrature.chebyshev()
    )
    assert abs(estimate.value - np.sum(np.exp(w))) < 4 * estimate.standard_error


def test_bad_input_is_told():
    A, way = known_spectrum(FLAT), quadrature.chebyshev()
    wide = quadrature.chebyshev((-9.0, 9.0))
    for call, match in (
        (lambda: quadrature.chebyshev((3.0, 1.0)), "increasing"),
        (lambda: quadrature.chebyshev(3.0), "increasing"),
        (lambda: quadrature.chebyshev((0.0, np.inf)), "finite"),
        (lambda: quadrature.lanczos(reorthogonalise=1), "True, False or None"),
        (lambda: tk.logdet(A, 60, quadrature="chebyshev"), "tracekit.quadrature"),
        (lambda: tk.trace_function(A, np.exp, 60, block=2, quadrature=way), "block"),
        (lambda: tk.logdet(A, 60, deflate=5, quadrature=way), "deflate"),
        (lambda: tk.trace_function(A + np.triu(A), np.exp, 60, quadrature=wide), "Hermitian"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=match):
            call()


def test_gradients_ask_for_bases():
    torch = pytest.importorskip("torch")
    A = torch.asarray(known_spectrum(FLAT)).requires_grad_()
    with pytest.raises(ValueError, match="bases"):
        tk.logdet(A, 60, rng=0, quadrature=LIGHT)


@pytest.mark.parametrize("options", [{}, {"deflate": 0}, {"quadrature": LIGHT}])
def test_what_has_not_settled_says_so_in_every_library(lib: Library, options):
    A = lib.array(known_spectrum(np.geomspace(1e-6, 1.0, 200)))
    found = tk.logdet(A, 24, rng=0, **options)
    assert not found.converged
    assert not np.isfinite(lib.numpy(found.standard_error))
    low, high = found.confidence_interval()
    assert lib.numpy(low) == -np.inf
    assert lib.numpy(high) == np.inf
