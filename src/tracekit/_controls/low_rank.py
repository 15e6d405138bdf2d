"""Low rank plus diagonal, which kernels with noise are close to, and pivoted Cholesky factors."""

from __future__ import annotations

from typing import Any

from .._arrays import (
    Array,
    abs2,
    adjoint,
    device_of,
    householder_qr,
    inner,
    is_array,
    is_traced,
    namespace,
    real,
    real_dtype,
    refuse_traced,
    to_number,
    unit_columns,
)
from .._estimates import checked_budget
from .._operators import LinearOperator, gram, square
from .preconditioner import Preconditioner


def low_rank_plus_diagonal(F: Array, diagonal: Any) -> Preconditioner:
    r"""The preconditioner :math:`P = F F^H + D`, D diagonal and positive.

    Parameters
    ----------
    F : (n, r) array
        The low rank part: of `pivoted_cholesky`, features of a kernel, leading eigenvectors times
        roots of eigenvalues, gradients of a few samples.
    diagonal : float or (n,) array
        D: the noise of a covariance, the damping of a Fisher matrix.

    Returns
    -------
    Preconditioner
        With its root, its log-determinant and the trace of its inverse, in F's library, dtype and
        device.

    Raises
    ------
    ValueError
        If F is no array of two dimensions, or `diagonal` no positive number or array (n,).

    Notes
    -----
    By the singular values of :math:`D^{-1/2} F`: O(n r^2) operations once, O(n r) for each column
    that is multiplied, and memory for n r numbers.

    References
    ----------
    Gardner, Pleiss, Bindel, Weinberger, Wilson (2018), arXiv:1809.11165.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> P = tk.low_rank_plus_diagonal(np.ones((3, 1)), 1.0)
    >>> (P.inverse @ np.ones(3)).round(6).tolist(), round(float(P.logdet), 6)
    ([0.25, 0.25, 0.25], 1.386294)
    """
    if not is_array(F) or F.ndim != 2:
        raise ValueError(f"`F` must be an array of shape (n, r), got {F!r:.50}; pass its columns")
    xp, n = namespace(F), F.shape[0]
    dtype = real_dtype(F.dtype, xp)
    if not is_array(diagonal):
        diagonal = xp.asarray(float(diagonal), dtype=dtype, device=device_of(F))
    if diagonal.ndim > 1 or (diagonal.ndim == 1 and diagonal.shape[0] != n):
        raise ValueError(
            f"`diagonal` must be a number or of shape ({n},), got shape {tuple(diagonal.shape)}; "
            "pass one number for each row"
        )
    d = xp.astype(real(diagonal), dtype, copy=False) + xp.zeros(n, dtype=dtype, device=device_of(F))
    if not is_traced(d) and not to_number(xp.min(d)).real > 0:
        raise ValueError(
            "`diagonal` must be positive, or P has no inverse; add a small multiple of the trace"
        )
    scale = xp.astype(d**-0.5, F.dtype, copy=False)[:, None]
    Q, R = householder_qr(scale * F)
    u, s, _ = xp.linalg.svd(R, full_matrices=False)
    U, root = Q @ u, xp.sqrt(1 + s * s)
    less = xp.astype(1 / root - 1, F.dtype, copy=False)[:, None]

    def whitened(X: Array) -> Array:  # (I + W W^H)^-1/2 X, W = D^-1/2 F
        return X + U @ (less * inner(U, X))

    def matmat(X: Array) -> Array:
        return scale * whitened(X)

    def rmatmat(X: Array) -> Array:
        return whitened(scale * X)

    space = {"dtype": F.dtype, "xp": xp, "device": device_of(F)}
    inverse = gram(LinearOperator((n, n), matmat, rmatmat, **space))
    share = s * s / (1 + s * s)
    trace = xp.sum(1 / d) - xp.sum(share * xp.sum(abs2(scale * U), axis=0))
    return Preconditioner(inverse, xp.sum(xp.log(d)) + 2 * xp.sum(xp.log(root)), trace)


def pivoted_cholesky(A: Any, rank: int, *, shift: float = 0.0) -> Array:
    r"""The partial Cholesky factor of :math:`A - c I` with pivots: F, whose :math:`F F^H` is close.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n: a kernel matrix, noise included. Its diagonal has to be known, by
        ``exact["diagonal"]``, or as the entries of a matrix with a method ``diagonal``.
    rank : int
        Columns r, at most n; fewer are taken where nothing is left.
    shift : float, optional
        The number c, such as the noise, for which :math:`A - c I` is positive semidefinite.

    Returns
    -------
    (n, r) array
        In A's library and dtype, on its device. With `low_rank_plus_diagonal` and the same shift it
        makes a preconditioner.

    Raises
    ------
    ValueError, TypeError
        If A is not square, `rank` no positive int, or the diagonal not known; under `jax.jit`.

    Notes
    -----
    Costs r products with unit vectors, that is r columns of A, and O(n r^2) operations. Each pivot
    is the largest entry of the diagonal that is left, which is looked at on the host.

    References
    ----------
    Harbrecht, Peters, Schneider (2012), Appl. Numer. Math. 62, doi:10.1016/j.apnum.2011.10.001.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> x = np.linspace(0, 1, 50)
    >>> K = np.exp(-((x[:, None] - x) ** 2) / 0.1) + 1e-3 * np.eye(50)
    >>> F = tk.pivoted_cholesky(K, 8, shift=1e-3)
    >>> bool(np.abs(F @ F.T + 1e-3 * np.eye(50) - K).max() < 1e-2)
    True
    """
    operator = square(A, "Cholesky factor")
    xp, n = operator.xp, operator.shape[0]
    left = _diagonal_of(A, operator) - shift
    refuse_traced(left)
    first = to_number(xp.max(left)).real
    floor = max(first, 0.0) * n * float(xp.finfo(left.dtype).eps)
    columns, F = list[Array](), None
    for _ in range(min(checked_budget(rank, "rank"), n)):
        pivot = int(to_number(xp.argmax(left)).real)
        size = to_number(left[pivot]).real
        if not size > floor:
            break
        unit = unit_columns(operator, n, 1, pivot)
        column = operator.matmat(unit) - shift * unit
        if F is not None:
            column = column - F @ adjoint(F[pivot : pivot + 1, :])
        columns.append(column / size**0.5)
        F = xp.concat(columns, axis=1)
        left = left - abs2(columns[-1][:, 0])
        left = xp.where(real(unit[:, 0]) > 0, xp.zeros_like(left), left)
    if F is None:
        raise ValueError(
            "nothing of A is left beside the shift, so that it has no Cholesky factor; pass a "
            "smaller `shift`"
        )
    return F


def _diagonal_of(A: Any, operator: LinearOperator) -> Array:
    """The diagonal, real, as it is known."""
    known, read = operator.exact or {}, getattr(A, "diagonal", None)
    if "diagonal" in known:
        found = known["diagonal"]()
    elif "entries" in known and callable(read):
        found = read()
    else:
        raise ValueError(
            "the diagonal of A is not known, and pivots are chosen by it; pass a matrix, or an "
            'operator with exact={"diagonal": ...}'
        )
    found = operator.xp.asarray(found, device=operator.device)
    return real(operator.xp.astype(found, operator.dtype, copy=False))
