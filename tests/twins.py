"""Naive textbook versions of the estimators in plain NumPy: every left-out probe done over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.generic]
Vector = NDArray[np.generic]


def range_basis(Y: Matrix) -> Matrix:
    """Orthonormal basis of the range, by singular vectors above rounding level."""
    U, s, _ = np.linalg.svd(Y, full_matrices=False)
    return U[:, s > s.max(initial=0.0) * max(Y.shape) * np.finfo(Y.dtype).eps]


def tall_skinny_qr(Y: Matrix, blocks: int) -> tuple[Matrix, Matrix]:
    """TSQR (arXiv:0808.2664): the QR of every block of rows, and that of the triangles."""
    parts = [np.linalg.qr(part) for part in np.array_split(Y, blocks)]
    C, R = np.linalg.qr(np.vstack([R for _, R in parts]))
    k = Y.shape[1]
    return np.vstack([Q @ C[i * k : (i + 1) * k] for i, (Q, _) in enumerate(parts)]), R


def quadratic_forms(A: Matrix, X: Matrix) -> Vector:
    """``x_j^H A x_j``, one column after the other."""
    return np.array([x.conj() @ A @ x for x in X.T])


def hutchinson(A: Matrix, Omega: Matrix) -> Vector:
    """Girard-Hutchinson: one sample a probe."""
    return quadratic_forms(A, Omega)


def hutchpp(A: Matrix, S: Matrix, G: Matrix) -> Vector:
    """Hutch++ (arXiv:2010.09649): exact on the range of A S, plain probes G on what is left."""
    Q = range_basis(A @ S)
    P = np.eye(len(A)) - Q @ Q.conj().T
    return np.trace(Q.conj().T @ A @ Q) + quadratic_forms(P @ A @ P, G)


def xtrace(A: Matrix, Omega: Matrix, *, resphere: bool) -> Vector:
    """XTrace (arXiv:2301.07825): each probe tests what the range of the others leaves."""
    n, k = Omega.shape
    samples = []
    for i in range(k):
        Q = range_basis(A @ np.delete(Omega, i, axis=1))
        w = Omega[:, i] - Q @ (Q.conj().T @ Omega[:, i])
        scale = (n - k + 1) / np.vdot(w, w).real if resphere else 1.0
        samples.append(np.trace(Q.conj().T @ A @ Q) + scale * (w.conj() @ A @ w))
    return np.array(samples)


def nystrom(A: Matrix, Omega: Matrix) -> Matrix:
    """Nystrom approximation of a positive semidefinite matrix."""
    Y = A @ Omega
    return Y @ np.linalg.pinv(Omega.conj().T @ Y, hermitian=True) @ Y.conj().T


def xnystrace(A: Matrix, Omega: Matrix, *, resphere: bool) -> Vector:
    """XNysTrace (arXiv:2301.07825): as `xtrace`, with Nystrom approximations."""
    n, k = Omega.shape
    samples = []
    for i in range(k):
        others, w = np.delete(Omega, i, axis=1), Omega[:, i]
        near = nystrom(A, others)
        Q = range_basis(others)
        beyond = w - Q @ (Q.conj().T @ w)
        scale = (n - k + 1) / np.vdot(beyond, beyond).real if resphere else 1.0
        samples.append(np.trace(near) + scale * (w.conj() @ (A - near) @ w))
    return np.array(samples)


def xnysdiag(A: Matrix, Omega: Matrix) -> Matrix:
    """XNysDiag (arXiv:2301.07825): each probe tests what the Nystrom of the others leaves."""
    samples = []
    for i, w in enumerate(Omega.T):
        near = nystrom(A, np.delete(Omega, i, axis=1))
        tested = w.conj() * ((A - near) @ w) / np.abs(w) ** 2
        samples.append(np.real(np.diagonal(near) + tested))
    return np.array(samples).T


def standard_error(samples: Vector) -> float:
    """Of the mean of independent samples."""
    return float(
        np.sqrt(np.sum(np.abs(samples - samples.mean()) ** 2) / (len(samples) - 1) / len(samples))
    )


def jackknife(estimator: Callable[[Matrix], Vector], Omega: Matrix) -> float:
    """Spread of the whole estimator without one probe."""
    k = Omega.shape[1]
    without = np.array([estimator(np.delete(Omega, i, axis=1)).mean() for i in range(k)])
    return float(np.sqrt((k - 1) / k * np.sum(np.abs(without - without.mean()) ** 2)))


def combined_error(estimator: Callable[[Matrix], Vector], Omega: Matrix) -> float:
    """The larger of spread and jackknife below 8 probes, their geometric mean from there on."""
    spread, jack = standard_error(estimator(Omega)), jackknife(estimator, Omega)
    return max(spread, jack) if Omega.shape[1] < 8 else float(np.sqrt(spread * jack))


def combined_errors(estimator: Callable[[Matrix], Matrix], Omega: Matrix) -> Vector:
    """The same of every row; below 5 probes of signs the entries of a diagonal have none."""
    if Omega.shape[1] < 5:
        return np.full(Omega.shape[0], np.inf)
    return np.array(
        [
            combined_error(lambda X, i=i: estimator(X)[i], Omega)
            for i in range(len(estimator(Omega)))
        ]
    )


def haar(rng: np.random.Generator, n: int, m: int, *, cplx: bool = False) -> Matrix:
    """Orthonormal columns, uniform: QR of a Gaussian with the signs of R's diagonal fixed."""
    X = rng.standard_normal((n, m))
    if cplx:
        X = X + 1j * rng.standard_normal((n, m))
    Q, R = np.linalg.qr(X)
    d = np.diagonal(R)
    return Q * (d / np.abs(d))


def decaying_rows(X: Matrix) -> Matrix:
    """The product with a diagonal matrix of dimension 500, after a shift, which is not diagonal."""
    d = np.arange(1.0, 501) ** -2
    return d[:, None] * (X + 0.5 * np.roll(X, 1, axis=0))


def estimated_elsewhere(seed: int) -> object:
    """What a worker process computes and sends back."""
    import tracekit as tk

    return tk.trace(tk.LinearOperator((500, 500), decaying_rows), rtol=0.05, rng=seed)
