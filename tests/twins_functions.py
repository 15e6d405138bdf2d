"""Naive dense versions of functions of matrices, by eigenvalues and by Krylov spaces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from twins import Matrix, Vector

Function = Callable[[Vector], Vector]


def matrix_function(A: Matrix, f: Function) -> Matrix:
    """f(A) of a Hermitian matrix."""
    w, V = np.linalg.eigh(A)
    return (V * f(w)) @ V.conj().T


def trace(A: Matrix, f: Function) -> complex:
    """The sum of f over the eigenvalues."""
    return np.sum(f(np.linalg.eigvalsh(A)))


def krylov_basis(A: Matrix, X: Matrix, depth: int) -> Matrix:
    """Orthonormal basis of X, A X, ..., A^(depth - 1) X, one new direction after the other."""
    Q = np.zeros((len(A), 0), A.dtype)
    block = X
    for _ in range(depth):
        new = np.zeros((len(A), 0), A.dtype)
        for x in block.T:
            size = np.linalg.norm(x)
            for _ in range(3):
                x = x - Q @ (Q.conj().T @ x)
            if np.linalg.norm(x) > 1e-10 * size:
                q = (x / np.linalg.norm(x))[:, None]
                Q, new = np.hstack([Q, q]), np.hstack([new, q])
        block = A @ new
    return Q


def forms(A: Matrix, X: Matrix, f: Function, depth: int, block: int = 1) -> Vector:
    """``x^H f(A) x`` by projection on the Krylov space of each group of columns."""
    found = []
    for i in range(0, X.shape[1], block):
        group = X[:, i : i + block]
        Q = krylov_basis(A, group, depth)
        inside = Q.conj().T @ group
        F = matrix_function(Q.conj().T @ A @ Q, f)
        found.append(np.einsum("ij,ij->j", inside.conj(), F @ inside))
    return np.concatenate(found)


def arnoldi_forms(A: Matrix, X: Matrix, f: Callable[[Matrix], Matrix], depth: int) -> Vector:
    """``x^H f(A) x`` by Arnoldi, one probe after the other; f is a function of a matrix."""
    found = []
    for x in X.T:
        Q, H = [x / np.linalg.norm(x)], np.zeros((depth, depth), np.result_type(A, X))
        for j in range(depth):
            w = A @ Q[j]
            for i in range(j + 1):
                H[i, j] = Q[i].conj() @ w
                w = w - H[i, j] * Q[i]
            size = np.linalg.norm(w)
            if j + 1 == depth or size < 1e-13 * np.linalg.norm(A, 2):
                break
            H[j + 1, j] = size
            Q.append(w / size)
        found.append(np.linalg.norm(x) ** 2 * f(H[: j + 1, : j + 1])[0, 0])
    return np.array(found)


def slope_of_logdet(A: Matrix, dA: Matrix, Omega: Matrix) -> Vector:
    """Samples of ``tr(A^-1 dA)``, one a probe."""
    return np.einsum("ij,ij->j", np.linalg.solve(A, Omega).conj(), dA @ Omega).real


def one_sketch(
    A: Matrix, Omega: Matrix, f: Function, slope: Function
) -> tuple[Vector, Vector, Vector, Vector]:
    """Trace of f(Nystrom) without each probe, and the values L, K and J of tr f(A); f(0) = 0."""

    def eigenpairs(X: Matrix) -> tuple[Vector, Matrix]:
        root = np.linalg.cholesky(X.conj().T @ A @ X)
        U, s, _ = np.linalg.svd(np.linalg.solve(root, (A @ X).conj().T).conj().T)
        return np.r_[s**2, np.zeros(len(A) - len(s))], U

    def at(x: Vector, U: Matrix) -> Matrix:
        return (U * x) @ U.conj().T

    (n, b), found = Omega.shape, []
    x, U = eigenpairs(Omega)
    for i, w in enumerate(Omega.T):
        y, V = eigenpairs(np.delete(Omega, i, axis=1))
        rest = at(x, U) - at(y, V)
        matrices = (at(f(x), U) - at(f(y), V), at(slope(y), V) @ rest, rest)
        forms = [(w.conj() @ M @ w).real * (n - b + 1) / n for M in matrices]
        found.append([np.sum(f(y)), *forms])
    low, lower, klein, left = np.array(found).T
    mean_left = np.array([left.mean() / (n - b + 1)])
    return low, low + lower, low + klein, low + (n - b + 1) * f(mean_left)
