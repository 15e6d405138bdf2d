"""Laws of log|det A| of operators that are not Hermitian."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Library

import tracekit as tk
from tracekit._matrix_functions.near_zero import hidden
from tracekit._sketches import gauss, lanczos

N = 120


def general(kind: str, n: int = N) -> np.ndarray:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n, n)) / n**0.5
    if kind == "complex":
        X = (X + 1j * rng.standard_normal((n, n)) / n**0.5) / 2**0.5
    if kind == "triangular":
        return np.triu(X * 3, 1) + np.diag(np.linspace(1.0, 2.0, n))
    if kind == "ill-conditioned":
        U, _, V = np.linalg.svd(X)
        return (U * np.geomspace(1e-3, 1.0, n)) @ V
    return X + 2 * np.eye(n)


kinds = pytest.mark.parametrize("kind", ["real", "complex", "triangular", "ill-conditioned"])


@kinds
def test_all_columns_give_it_exactly(kind):
    A, counter = tk.counted(general(kind))
    found = tk.logdet(A, N, hermitian=False)
    assert np.isclose(found.value, np.linalg.slogdet(general(kind))[1], rtol=1e-12)
    assert counter.total == found.num_matvecs == N
    assert "sign or phase unknown" in found.reason


@kinds
def test_intervals_hold_it_and_counts_are_honest(kind):
    exact, held = np.linalg.slogdet(general(kind))[1], []
    for seed in range(30):
        A, counter = tk.counted(general(kind))
        found = tk.logdet(A, 100, rng=seed, hermitian=False)
        assert counter.total == found.num_matvecs <= 100
        low, high = found.confidence_interval()
        held.append(bool(low <= exact <= high) or not np.isfinite(found.standard_error))
        assert np.isclose(found.value, np.mean(found.samples))
    assert np.mean(held) >= 0.86


def shift(n: int) -> np.ndarray:
    return np.diag(np.ones(n - 1), 1)


@pytest.mark.parametrize("budget", [100, 200])
@pytest.mark.parametrize("diagonal", [0.9, 0.95, 1.1])
def test_a_singular_value_that_no_probe_sees_is_allowed_for(diagonal, budget):
    n, held = 300, []
    for seed in range(20):
        A, counter = tk.counted(diagonal * np.eye(n) + shift(n))
        found = tk.logdet(A, budget, rng=seed, hermitian=False)
        assert counter.total == found.num_matvecs <= budget
        assert "near 0 would not have been seen" in found.reason
        low, high = found.confidence_interval()
        held.append(bool(low <= n * np.log(diagonal) <= high))
        assert found.kept.quadrature > 20
    assert np.mean(held) >= 0.95


def benign(kind: str) -> np.ndarray:
    if kind == "Ginibre":
        n = 300
        return np.random.default_rng(0).standard_normal((n, n)) + 2 * n**0.5 * np.eye(n)
    wind, one = 2 * np.eye(17) - 1.3 * shift(17).T - 0.7 * shift(17), np.eye(17)
    return np.kron(wind, one) + np.kron(one, wind) + np.eye(17 * 17)


@pytest.mark.parametrize("kind", ["Ginibre", "convection-diffusion"])
def test_errors_stay_small_where_one_would_have_been_seen(kind):
    exact, held = np.linalg.slogdet(benign(kind))[1], []
    for seed in range(20):
        A, counter = tk.counted(benign(kind))
        found = tk.logdet(A, 200, rng=seed, hermitian=False)
        assert counter.total == found.num_matvecs <= 200
        assert found.converged
        assert "would not have been seen" not in found.reason
        assert found.standard_error < 0.02 * exact
        low, high = found.confidence_interval()
        held.append(bool(low <= exact <= high))
    assert np.mean(held) >= 0.85


@pytest.mark.parametrize("least", [1e-2, 1e-6])
def test_an_eigenvalue_near_zero_shows_after_the_steps_that_are_said(least):
    n, found = 200, []
    x = np.linspace(1.0, 2.0, n)
    x[0] = least
    for seed in range(40):
        X = np.random.default_rng(seed).standard_normal((n, 1))
        K = lanczos.begin(tk.gram(np.diag(x)), X).advance(4)
        unseen, cost = hidden(K, 2 * n)
        assert unseen == 0
        node = gauss.rule(K.advance(4 + cost // 2))[0].min()
        found.append(bool(np.isclose(node, least**2, rtol=0.1)))
    assert np.mean(found) >= 0.85  # all probes but those that hardly meet it
    unseen, cost = hidden(K, 0)
    assert unseen > 60
    assert cost == 0


def test_a_flat_spectrum_is_seen_to_its_end_in_few_steps():
    x = np.linspace(1.0, 2.0, 200)
    K = lanczos.begin(tk.gram(np.diag(x)), np.ones((200, 1))).advance(4)
    unseen, cost = hidden(K, 20)
    assert unseen == 0
    assert 0 < cost <= 8


def test_libraries_keep_device_and_dtype(but_jax: Library):
    A = general("real")
    found = tk.logdet(but_jax.array(A), 40, rng=0, hermitian=False)
    assert but_jax.at_home(found.value)
    assert abs(float(found) - np.linalg.slogdet(A)[1]) < 5 * float(found.standard_error)


@pytest.mark.parametrize("kind", ["real", "triangular"])
def test_gradients_are_those_of_the_logarithm(kind):
    torch = pytest.importorskip("torch")
    D = general("triangular") - np.eye(N)
    exact = np.trace(np.linalg.solve(general(kind), D))
    slopes = []
    for seed in range(16):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        A = torch.asarray(general(kind)) + t * torch.asarray(D)
        tk.logdet(A, 110, rng=seed, hermitian=False).value.backward()
        slopes.append(float(t.grad))
    assert abs(np.mean(slopes) - exact) < 4 * np.std(slopes) / 4 + 0.02 * abs(exact)


def test_what_cannot_be_is_told():
    A = general("real")
    with pytest.raises(TypeError, match="adjoint"):
        tk.logdet(tk.LinearOperator((N, N), lambda X: A @ X), 50, hermitian=False)
    with pytest.raises(ValueError, match="singular"):
        tk.logdet(np.diag(np.r_[0.0, np.ones(N - 1)]) @ A, N, hermitian=False)
    with pytest.raises(ValueError, match="square"):
        tk.logdet(A[:, :5], 50, hermitian=False)
    with pytest.raises(ValueError, match="shift"):
        tk.logdet(A, 50, hermitian=False, shift=1.0)
    with pytest.raises(ValueError, match="hermitian=False"):
        tk.logdet(A, 50)
