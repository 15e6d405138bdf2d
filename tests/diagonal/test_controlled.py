"""Control variates of diagonals: unbiased, entry by entry as accurate as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import library

import tracekit as tk

n = 80


def symmetric(seed: int, size: int = n) -> np.ndarray:
    B = np.random.default_rng(seed).standard_normal((size, size))
    return B + B.T


def black_box(A: np.ndarray, **more: Any) -> tk.LinearOperator:
    return tk.LinearOperator(
        A.shape, lambda X: A @ X, lambda X: A.conj().T @ X, dtype=A.dtype, **more
    )


def naive(A: np.ndarray, P: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The estimate and its error, by a loop over folds and all samples."""
    y, p = W.conj() * (A @ W), W.conj() * (P @ W)
    z, folds = np.empty_like(y), np.arange(W.shape[1]) % 8
    for j in range(8):
        other = folds != j
        dy, dp = (x[:, other] - x[:, other].mean(axis=1, keepdims=True) for x in (y, p))
        c = np.sum(dp.conj() * dy) / np.sum(np.abs(dp) ** 2)
        z[:, ~other] = y[:, ~other] - c * (p[:, ~other] - np.diag(P)[:, None])
    return z.mean(axis=1), np.std(z, axis=1, ddof=1) / W.shape[1] ** 0.5


@pytest.mark.parametrize("kind", ["real", "complex", "non-symmetric"])
def test_it_is_the_textbook_estimate(kind: str) -> None:
    A = symmetric(0)
    if kind != "real":
        A = A + 0.5 * np.random.default_rng(3).standard_normal((n, n))
    A = A * (1 - 0.5j) if kind == "complex" else A
    P = 2 * A + 0.1 * symmetric(1)
    operator, seen = black_box(A), []
    listened = tk.LinearOperator(
        A.shape, lambda X: (seen.append(X.copy()), A @ X)[1], dtype=A.dtype
    )
    found = tk.diagonal(listened, 30, rng=0, control=P, chunk_size=7)
    value, error = naive(A, P, np.concatenate(seen, axis=1))
    assert found.value == pytest.approx(value, rel=1e-10)
    assert found.standard_error == pytest.approx(error, rel=1e-6)
    whole = tk.diagonal(operator, 30, rng=0, control=P)
    assert whole.value == pytest.approx(value, rel=1e-10)


def test_it_is_unbiased() -> None:
    A = symmetric(0, 12)
    P, values = A + 0.3 * symmetric(1, 12), []
    for seed in range(600):
        values.append(tk.diagonal(black_box(A), 10, rng=seed, control=P).value)
    z = (np.mean(values, axis=0) - np.diag(A)) / np.std(values, axis=0) * 600**0.5
    assert np.abs(z).max() < 3.5
    assert np.mean(z**2) < 2


def test_a_close_control_leaves_the_error_of_the_difference() -> None:
    A = symmetric(0)
    P = A + 0.02 * symmetric(1)
    found = tk.diagonal(black_box(A), 40, rng=0, control=P)
    plain = tk.diagonal(black_box(A), 40, rng=0)
    assert np.linalg.norm(found.standard_error) < 0.05 * np.linalg.norm(plain.standard_error)
    off = np.abs(found.value - np.diag(A)) / found.standard_error
    assert np.mean(off < 2.1) > 0.85
    assert "of the variance without" in found.reason


@pytest.mark.parametrize("P", [np.ones((n, n)), np.diag(np.arange(n)), symmetric(5)])
def test_a_useless_control_does_no_harm(P: np.ndarray) -> None:
    A, found, plain = symmetric(0), [], []
    for seed in range(40):
        found.append(tk.diagonal(black_box(A), 20, rng=seed, control=P).value - np.diag(A))
        plain.append(tk.diagonal(black_box(A), 20, rng=seed).value - np.diag(A))
    assert np.mean(np.square(found)) < 1.1 * np.mean(np.square(plain))


def test_few_equal_samples_are_no_certainty() -> None:
    A = symmetric(0)
    P = A.copy()
    P[0, 1] = P[1, 0] = A[0, 1] + 1.0  # one entry of a row that signs may hide
    infinite = 0
    for seed in range(40):
        found = tk.diagonal(black_box(A), 6, rng=seed, control=P)
        infinite += bool(np.isinf(found.standard_error[0]))
        off = np.abs(found.value - np.diag(A))
        assert np.all(off[:2] <= np.maximum(8 * found.standard_error[:2], 1e-9))
    assert infinite > 0


def test_the_operator_itself_gives_the_diagonal() -> None:
    A = symmetric(0)
    found = tk.diagonal(black_box(A), 20, rng=0, control=3 * A)
    assert found.value == pytest.approx(np.diag(A), abs=1e-12)
    assert np.all(found.standard_error < 1e-5)


def test_a_factor_costs_two_products_for_each_probe() -> None:
    L = np.random.default_rng(0).standard_normal((n, n))
    operator, counter = tk.counted(tk.gram(L))
    P = L @ L.T + 0.01 * symmetric(1)
    for m in (1, 2, 41):
        before = counter.total
        found = tk.diagonal(operator, m, rng=0, control=P)
        assert found.num_matvecs == counter.total - before <= m


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "strict:CPU_DEVICE"])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_libraries_and_units(name: str, scale: float) -> None:
    lib = library(name)
    A = symmetric(0)
    P = A + 0.1 * symmetric(1)
    wanted = tk.diagonal(black_box(A), 30, rng=0, control=P)
    A32 = lib.array((scale * A).astype("float32"))
    home = tk.as_operator(A32)
    operator = tk.LinearOperator(
        A.shape, lambda X: A32 @ X, dtype=A32.dtype, xp=home.xp, device=home.device
    )
    control = (
        lib.array((P / scale).astype("float32")),
        lib.array(np.diag(P).astype("float32") / np.float32(scale)),
    )
    found = tk.diagonal(operator, 30, rng=0, control=control)
    assert lib.at_home(found.value)
    assert lib.numpy(found.value) / scale == pytest.approx(wanted.value, rel=1e-3, abs=1e-2)
    assert lib.numpy(found.standard_error) / scale == pytest.approx(wanted.standard_error, rel=2e-2)


def test_what_is_no_control_is_refused() -> None:
    A = symmetric(0)
    for control, told in (
        (black_box(A), "diagonal of `control` is not known"),
        ((A, np.trace(A)), "of shape"),
        (A[:4, :4], "of the shape"),
    ):
        with pytest.raises(ValueError, match=told):
            tk.diagonal(black_box(A), 20, control=control)
    with pytest.raises(ValueError, match="independent"):
        tk.diagonal(black_box(A), 20, control=A, probes=tk.probes.hadamard)


def test_sparse_matrices_know_their_diagonals() -> None:
    import scipy.sparse as sp

    A = symmetric(0)
    found = tk.diagonal(black_box(A), 20, rng=0, control=sp.csr_array(A))
    assert found.value == pytest.approx(np.diag(A))
