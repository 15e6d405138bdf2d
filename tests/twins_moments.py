"""Naive textbook versions of the readings of norms and inner products."""

from __future__ import annotations

import numpy as np
from twins import Matrix, Vector, nystrom, range_basis


def size2(A: Matrix) -> float:
    """The squared Frobenius norm."""
    return float(np.sum(np.abs(A) ** 2))


def dot(A: Matrix, B: Matrix) -> complex:
    """The inner product ``tr A^H B``."""
    return complex(np.vdot(A, B))


def without(Omega: Matrix, *left_out: int) -> Matrix:
    return np.delete(Omega, left_out, axis=1)


def projector(X: Matrix) -> Matrix:
    """On the range of X."""
    Q = range_basis(X)
    return Q @ Q.conj().T


def krylov_samples(A: Matrix, Omega: Matrix, tested: int, *left_out: int) -> tuple[complex, float]:
    """Trace and squared norm by one probe and the Krylov block of the ones that are left."""
    n, others = len(A), without(Omega, *left_out)
    P = projector(np.concatenate([others, A @ others], axis=1))
    near, w = P @ A @ P, Omega[:, tested]
    beyond = w - P @ w
    scale = (n - 2 * others.shape[1]) / size2(beyond)
    trace = np.trace(near) + scale * np.vdot(beyond, A @ beyond)
    return trace, size2(near) + size2((A - near) @ w)


def krylov(A: Matrix, Omega: Matrix) -> tuple[Vector, Vector]:
    """Traces and squared norms, once without each probe."""
    samples = [krylov_samples(A, Omega, i, i) for i in range(Omega.shape[1])]
    return np.array([t for t, _ in samples]), np.array([f for _, f in samples])


def krylov_left_out(A: Matrix, Omega: Matrix) -> tuple[Vector, Vector]:
    """The mean traces and squared norms of all probes but one."""
    each = [krylov(A, without(Omega, i)) for i in range(Omega.shape[1])]
    return np.array([t.mean() for t, _ in each]), np.array([f.mean() for _, f in each])


def shared(A: Matrix, B: Matrix, Y: Matrix, Omega: Matrix) -> Vector:
    """Inner products; both operators are deflated by the range of the same sketch Y."""
    n, b = Omega.shape
    samples = []
    for i in range(b):
        P = projector(without(Y, i))
        beyond = Omega[:, i] - P @ Omega[:, i]
        scale = (n - b + 1) / size2(beyond)
        samples.append(dot(A @ P, B @ P) + scale * np.vdot(A @ beyond, B @ beyond))
    return np.array(samples)


def nystrom_pairs(A: Matrix, B: Matrix, Omega: Matrix) -> Vector:
    """Inner products of two positive semidefinite operators, each deflated by its own sketch."""
    samples = []
    for i, w in enumerate(Omega.T):
        near = [nystrom(X, without(Omega, i)) for X in (A, B)]
        rest = np.vdot(A @ w, B @ w) - np.vdot(near[0] @ w, near[1] @ w)
        samples.append(dot(near[0], near[1]) + rest)
    return np.array(samples)


def two_sided(A: Matrix, Omega: Matrix) -> Vector:
    """Squared norms of any A: the Nystrom approximation of A^H A, resphered."""
    n, b = Omega.shape
    samples = []
    for i, w in enumerate(Omega.T):
        others = without(Omega, i)
        near = projector(A @ others) @ A
        beyond = w - projector(others) @ w
        scale = (n - b + 1) / size2(beyond)
        samples.append(size2(near) + scale * (size2(A @ w) - size2(near @ w)))
    return np.array(samples)


def zonal(V: Matrix, A: Matrix, B: Matrix) -> tuple[float, float]:
    """``tr A B`` and ``tr A tr B`` by solving for them what their mean over Haar V would be.

    The means of ``tr K1 K2`` and ``tr K1 tr K2`` are linear in both; the 2 by 2 matrix is found
    from operators of rank one, for which the moments of the entries of a Haar unitary are known.
    """
    n, m = V.shape
    K1, K2 = (V.conj().T @ X @ V for X in (A, B))
    seen = np.array([np.trace(K1 @ K2).real, (np.trace(K1) * np.trace(K2)).real])
    return tuple(np.linalg.solve(zonal_means(n, m, cplx=np.iscomplexobj(V)), seen))


def zonal_means(n: int, m: int, *, cplx: bool) -> Matrix:
    """What ``(tr A B, tr A tr B)`` become in the mean when A and B are compressed to m dimensions.

    For ``A = B = e e^H`` and for ``A = e e^H, B = f f^H``, with e and f orthogonal unit vectors,
    ``K = x x^H`` with x a row of V: the moments of squared lengths of rows.
    """
    beta = 1 if cplx else 2
    both = m * (m + beta) / (n * (n + beta))  # E |x|^4
    # E |x|^2 |y|^2 and E |x^H y|^2 of two rows, from the sums over all rows of V V^H
    apart = (m * m / n - both) / (n - 1)
    across = (m / n - both) / (n - 1)
    # columns: the contributions of tr A B and of tr A tr B
    return np.array([[both - across, across], [both - apart, apart]])
