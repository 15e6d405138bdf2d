"""Laws of log|det A| of operators that are not Hermitian."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Library

import tracekit as tk

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


def test_libraries_keep_device_and_dtype(lib: Library):
    A = general("real")
    found = tk.logdet(lib.array(A), 40, rng=0, hermitian=False)
    assert lib.at_home(found.value)
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
