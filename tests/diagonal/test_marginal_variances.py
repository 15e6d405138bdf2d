"""Laws of marginal variances: closed forms, no bias, and errors that hold."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from conftest import Library

import tracekit as tk

N = 144


def lattice(own: float = 0.5) -> np.ndarray:
    """The precision of a field on a periodic lattice, whose sites all have the same variance."""
    ring = 2 * np.eye(12) - np.roll(np.eye(12), 1, 0) - np.roll(np.eye(12), -1, 0)
    return np.kron(ring, np.eye(12)) + np.kron(np.eye(12), ring) + own * np.eye(N)


def field(cplx: bool) -> np.ndarray:
    """The same with sites of different units, and phases."""
    rng = np.random.default_rng(0)
    unit = rng.uniform(0.5, 2.0, N) * (np.exp(2j * np.pi * rng.uniform(size=N)) if cplx else 1)
    return unit[:, None] * lattice() * unit.conj()


def test_a_lattice_has_one_variance():
    waves = 2 - 2 * np.cos(2 * np.pi * np.arange(12) / 12)
    truth = np.mean(1 / (waves[:, None] + waves + 0.5))
    np.testing.assert_allclose(tk.marginal_variances(lattice(), N).value, truth, rtol=1e-12)
    found = tk.marginal_variances(lattice(), N - 1, rng=0, depth=20)
    assert abs(found.value.mean() / truth - 1) < 0.05


def test_an_autoregression_has_the_variance_of_its_steps():
    """Of a stationary series: 1 / (1 - phi^2) on each day."""
    phi, days = 0.7, 60
    Q = np.diag(np.full(days, 1 + phi**2)) - phi * (np.eye(days, k=1) + np.eye(days, k=-1))
    Q[0, 0] = Q[-1, -1] = 1
    found = tk.marginal_variances(Q, days)
    np.testing.assert_allclose(found.value, 1 / (1 - phi**2), rtol=1e-12)
    assert np.all(found.standard_error == 0)


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_all_products_give_the_diagonal_of_the_inverse(cplx):
    Q = field(cplx)
    truth = np.diag(np.linalg.inv(Q)).real
    for A in (Q, tk.gram(np.linalg.cholesky(Q))):
        found = tk.marginal_variances(A, N)
        assert found.num_matvecs == N
        assert found.value.dtype == np.float64
        np.testing.assert_allclose(found.value, truth, rtol=1e-10)


def test_the_mean_over_all_signs_is_exact():
    """Where two steps solve: of a matrix of two eigenvalues."""
    u = np.arange(1.0, 6.0)
    Q = np.eye(5) + np.outer(u, u) / 10
    every = np.array(list(product([-1.0, 1.0], repeat=5))).T

    def one(j):
        return lambda source, n, m: every[:, [j]]

    found = [tk.marginal_variances(Q, 2, probes=one(j), depth=2).value for j in range(32)]
    np.testing.assert_allclose(np.mean(found, axis=0), np.diag(np.linalg.inv(Q)), rtol=1e-12)


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_intervals_hold_and_means_are_right(cplx):
    Q = field(cplx)
    truth = np.diag(np.linalg.inv(Q)).real
    runs = [tk.marginal_variances(Q, 140, rng=seed, depth=14) for seed in range(60)]
    assert all(run.converged for run in runs)
    inside = [
        (low <= truth) & (truth <= high) for low, high in (r.confidence_interval() for r in runs)
    ]
    assert 0.93 < np.mean(inside) < 0.97
    values = np.array([run.value for run in runs])
    z = (values.mean(axis=0) - truth) / (np.std(values, axis=0, ddof=1) / 60**0.5)
    assert np.max(np.abs(z)) < 4.5
    assert abs(np.mean(z)) < 0.5
    claimed = np.mean([run.standard_error**2 for run in runs], axis=0)
    assert np.mean(claimed) == pytest.approx(np.mean(np.var(values, axis=0, ddof=1)), rel=0.15)


def test_what_the_depth_leaves_is_told():
    Q = lattice(0.01)
    truth = np.diag(np.linalg.inv(Q))
    for depth in (1, 2, 4, 8):
        found = tk.marginal_variances(Q, 120, rng=0, depth=depth)
        missing = abs(np.mean(found.value - truth))
        assert missing < 3 * np.mean(found.standard_error)
        assert found.converged == (np.mean(found.kept.quadrature) < 0.1 * np.mean(found.value))
    assert not tk.marginal_variances(Q, 120, rng=0, depth=2).converged


@pytest.mark.parametrize("factored", [False, True])
def test_what_is_claimed_is_what_was_spent(factored):
    Q = tk.gram(np.linalg.cholesky(lattice())) if factored else lattice()
    for budget in (1, 7, 50, N - 1, N):
        operator, counter = tk.counted(Q)
        found = tk.marginal_variances(operator, budget, rng=0)
        assert 0 < found.num_matvecs == counter.total <= budget


def test_blocks_of_probes_do_not_matter(monkeypatch):
    from tracekit._diagonal import of_functions

    whole = tk.marginal_variances(lattice(), 100, rng=0, depth=10)
    monkeypatch.setattr(of_functions, "columns_that_fit", lambda *args: 3)
    np.testing.assert_allclose(
        tk.marginal_variances(lattice(), 100, rng=0, depth=10).value, whole.value
    )


def test_libraries_agree(but_jax: Library):
    expected = tk.marginal_variances(field(True), 60, rng=3, depth=10)
    found = tk.marginal_variances(but_jax.array(field(True)), 60, rng=3, depth=10)
    assert but_jax.at_home(found.value)
    np.testing.assert_allclose(but_jax.numpy(found.value), expected.value, rtol=1e-3)


@pytest.mark.parametrize(
    ("Q", "match"),
    [
        (np.triu(lattice()), "Hermitian"),
        (-lattice(), "eigenvalues of 0 or more"),
        (lattice()[:, :3], "square"),
    ],
)
def test_bad_input_is_told(Q, match):
    for budget in (60, N):
        with pytest.raises(ValueError, match=match):
            tk.marginal_variances(Q, budget, rng=0)
    with pytest.raises(ValueError, match="does not pay"):
        tk.marginal_variances(lattice(), 5, depth=6)
