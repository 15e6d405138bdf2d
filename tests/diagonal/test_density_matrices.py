"""Laws of reduced density matrices: of pure states exactly, of Gibbs states with their errors."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Library

import tracekit as tk

DIMS = (2, 3, 4, 2)


def state(cplx: bool = True) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(48)
    return x + 1j * rng.standard_normal(48) if cplx else x


def hamiltonian(cplx: bool = True, n: int = 48) -> np.ndarray:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if cplx else 0)
    return (X + X.conj().T) / n**0.5


def naive(rho: np.ndarray, dims: tuple[int, ...], over: tuple[int, ...]) -> np.ndarray:
    """The partial trace of a dense matrix, one axis after another."""
    for axis in sorted(over, reverse=True):
        t, rest = len(dims), tuple(d for a, d in enumerate(dims) if a != axis)
        rho = np.trace(rho.reshape(*dims, *dims), axis1=axis, axis2=axis + t)
        dims = rest
        rho = rho.reshape(int(np.prod(dims)), -1)
    return rho


def gibbs(H: np.ndarray, beta: float) -> np.ndarray:
    w, U = np.linalg.eigh(H)
    p = np.exp(-beta * (w - w[0]))
    return (U * p / p.sum()) @ U.conj().T


# --- pure states ----------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, (1, 2), (-1, 0), (0, 1, 2, 3), ()])
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_pure_states_are_traced(axis, cplx):
    psi = state(cplx)
    over = tuple(a % 4 for a in ((axis,) if isinstance(axis, int) else axis))
    rho = tk.reduced_density_matrix(psi, DIMS, axis)
    expected = naive(np.outer(psi, psi.conj()) / np.linalg.norm(psi) ** 2, DIMS, over)
    np.testing.assert_allclose(rho, expected, atol=1e-14)
    p = np.linalg.eigvalsh(expected)
    entropy = -np.sum(p[p > 1e-15] * np.log(p[p > 1e-15]))
    assert np.isclose(tk.entanglement_entropy(psi, DIMS, axis), entropy, atol=1e-12)


def test_both_parts_are_equally_entangled():
    psi = state()
    for axis in ((0,), (0, 2), (1, 3)):
        others = tuple(set(range(4)) - set(axis))
        assert np.isclose(
            tk.entanglement_entropy(psi, DIMS, axis), tk.entanglement_entropy(psi, DIMS, others)
        )


def test_known_states():
    bell = np.array([1.0, 0, 0, 1.0])
    assert np.isclose(tk.entanglement_entropy(bell, (2, 2), 0), np.log(2))
    apart = np.kron([1.0, 2.0], [3.0, 4.0j])
    assert np.isclose(tk.entanglement_entropy(apart, (2, 2), 0), 0.0, atol=1e-14)
    faint = np.array([1.0, 0, 0, 1e-9])  # whose square is lost beside 1
    p = 1e-18
    assert np.isclose(tk.entanglement_entropy(faint, (2, 2), 0), p - p * np.log(p), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_of_states_do_not_matter(scale):
    psi = state().astype(np.complex64)
    rho = tk.reduced_density_matrix((scale * psi).astype(np.complex64), DIMS, 1)
    assert rho.dtype == np.complex64
    np.testing.assert_allclose(rho, tk.reduced_density_matrix(psi, DIMS, 1), atol=1e-6)


# --- Gibbs states ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_all_products_give_the_gibbs_state(beta, cplx):
    H = hamiltonian(cplx)
    low = np.linalg.eigvalsh(H)[0]
    expected = naive(gibbs(H, beta), DIMS, (1, 2))
    for A in (H, tk.gram(np.linalg.cholesky(H - (low - 1e-3) * np.eye(48)))):
        found = tk.gibbs_density_matrix(A, beta, DIMS, (1, 2), 48)
        assert found.num_matvecs == 48
        np.testing.assert_allclose(found.value, expected, atol=1e-6 if beta > 10 else 1e-12)


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_intervals_hold_and_every_estimate_is_a_state(cplx, beta):
    H, dims = hamiltonian(cplx, 120), (3, 40)
    truth = naive(gibbs(H, beta), dims, (1,))
    runs = [tk.gibbs_density_matrix(H, beta, dims, 1, 110, rng=s, depth=10) for s in range(50)]
    inside = []
    for run in runs:
        rho = run.value
        assert np.array_equal(rho, rho.conj().T)
        assert np.isclose(np.trace(rho).real, 1.0, atol=1e-14)
        assert np.linalg.eigvalsh(rho)[0] > -1e-14
        assert run.converged
        low, high = run.confidence_interval()
        inside.append((low <= truth.real) & (truth.real <= high))
    assert np.mean(inside) > 0.88
    values = np.array([run.value for run in runs])
    z = np.abs(values.mean(axis=0) - truth) / (np.std(values, axis=0, ddof=1) / 50**0.5)
    assert np.max(z) < 4.5


def test_a_system_without_couplings_keeps_its_parts():
    """The Gibbs state of a part by itself, whatever the rest is."""
    a, b = hamiltonian(True, 3), hamiltonian(True, 30)
    H = np.kron(a, np.eye(30)) + np.kron(np.eye(3), b)
    found = tk.gibbs_density_matrix(H, 1.3, (3, 30), 1, 90)
    np.testing.assert_allclose(found.value, gibbs(a, 1.3), atol=1e-13)


def test_what_the_depth_leaves_is_told():
    H, beta = 5 * hamiltonian(True, 120), 3.0
    truth = naive(gibbs(H, beta), (3, 40), (1,))
    shallow = tk.gibbs_density_matrix(H, beta, (3, 40), 1, 110, rng=0, depth=2)
    assert not shallow.converged
    assert "not settled" in shallow.reason
    assert np.all(np.abs(shallow.value - truth) < 4 * shallow.standard_error)
    assert np.all(np.isinf(tk.gibbs_density_matrix(H, 1.0, (3, 40), 1, 5, depth=5).standard_error))


@pytest.mark.parametrize("factored", [False, True])
def test_what_is_claimed_is_what_was_spent(factored):
    H = hamiltonian() + 4 * np.eye(48)
    H = tk.gram(np.linalg.cholesky(H)) if factored else H
    for budget in (1, 7, 23, 47, 48):
        operator, counter = tk.counted(H)
        found = tk.gibbs_density_matrix(operator, 0.5, DIMS, (1, 2), budget, rng=0)
        assert 0 < found.num_matvecs == counter.total <= budget


def test_libraries_agree(but_jax: Library):
    H, psi = hamiltonian(), state()
    expected = tk.gibbs_density_matrix(H, 0.7, DIMS, (1, 2), 30, rng=3, depth=6).value
    found = tk.gibbs_density_matrix(but_jax.array(H), 0.7, DIMS, (1, 2), 30, rng=3, depth=6).value
    assert but_jax.at_home(found)
    np.testing.assert_allclose(but_jax.numpy(found), expected, atol=1e-5)
    rho = tk.reduced_density_matrix(but_jax.array(psi), DIMS, (1, 2))
    entropy = tk.entanglement_entropy(but_jax.array(psi), DIMS, (1, 2))
    assert but_jax.at_home(rho)
    assert but_jax.at_home(entropy)
    np.testing.assert_allclose(
        but_jax.numpy(rho), tk.reduced_density_matrix(psi, DIMS, (1, 2)), atol=1e-6
    )
    assert np.isclose(but_jax.numpy(entropy), tk.entanglement_entropy(psi, DIMS, (1, 2)), atol=1e-5)


def test_compiled_and_differentiated():
    jax = pytest.importorskip("jax", reason="JAX is not installed")

    def entropy(t):
        return tk.entanglement_entropy(jax.numpy.stack([t, 0 * t, 0 * t, 1 + 0 * t]), (2, 2), 0)

    with jax.enable_x64(True):
        found = jax.jit(jax.value_and_grad(entropy))(jax.numpy.asarray(0.5))
    p, dp = 0.2, 2 * 0.5 / 1.25**2  # of the lesser probability, t^2 / (1 + t^2)
    assert np.isclose(found[0], -p * np.log(p) - (1 - p) * np.log(1 - p))
    assert np.isclose(found[1], dp * np.log((1 - p) / p))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tk.reduced_density_matrix(np.zeros(48), DIMS, 1), "not 0"),
        (lambda: tk.reduced_density_matrix(np.full(48, np.nan), DIMS, 1), "finite"),
        (lambda: tk.reduced_density_matrix(np.ones(48, int), DIMS, 1), "floating"),
        (lambda: tk.reduced_density_matrix(np.ones((48, 1)), DIMS, 1), "shape"),
        (lambda: tk.reduced_density_matrix([1.0, 0.0], (2,), 0), "array"),
        (lambda: tk.reduced_density_matrix(np.ones(48), (2, 3), 1), "multiply"),
        (lambda: tk.entanglement_entropy(np.ones(48), DIMS, 4), "out of range"),
        (lambda: tk.gibbs_density_matrix(hamiltonian(), -1.0, DIMS, 1, 20), "`beta`"),
        (lambda: tk.gibbs_density_matrix(hamiltonian(), "1", DIMS, 1, 20), "`beta`"),
        (lambda: tk.gibbs_density_matrix(hamiltonian(), 1.0, None, 1, 20), "dims"),
        (lambda: tk.gibbs_density_matrix(np.triu(hamiltonian()), 1.0, DIMS, 1, 20), "Hermitian"),
        (lambda: tk.gibbs_density_matrix(np.triu(hamiltonian()), 1.0, DIMS, 1, 48), "Hermitian"),
        (lambda: tk.gibbs_density_matrix(hamiltonian(), 1.0, DIMS, 1, 3, depth=4), "does not pay"),
    ],
)
def test_bad_input_is_told(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
