"""Incomplete Cholesky factors of sparse matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._arrays import Array, colnorm2
from .._operators import LinearOperator, as_operator, coordinates, gram, total
from .preconditioner import Preconditioner

SWEEPS = 100  # at most; convergence is that of the longest chain of entries, and fast
SHIFTS = (0.0, *(10.0**k for k in range(-3, 3)))  # of the scaled diagonal, where there is no factor


def incomplete_cholesky(A: Any) -> Preconditioner:
    """The preconditioner :math:`P = L L^H`, L lower triangular with the pattern of A: IC(0).

    Parameters
    ----------
    A : SciPy sparse matrix or array
        Hermitian positive definite, of dimension n.

    Returns
    -------
    Preconditioner
        With its root and its log-determinant, in NumPy and A's dtype. The trace of its inverse is
        computed by n solves, when it is asked for.

    Raises
    ------
    TypeError
        If A is no sparse matrix of SciPy.
    ValueError
        If it is not square, or its diagonal is not positive.

    Notes
    -----
    By sweeps over all entries at once, of sparse products, until they rest: whatever these are, P
    is positive definite. Where there is no such factor (A is no M-matrix, and far from one), a
    multiple of the diagonal is added first. Fill is not an option: for a better P reorder A, or
    pass a `Preconditioner` of your own.

    References
    ----------
    Meijerink, van der Vorst (1977), Math. Comp. 31, doi:10.2307/2005786; Chow, Patel (2015), SIAM
    J. Sci. Comput. 37, doi:10.1137/140968896; Manteuffel (1980), Math. Comp. 34,
    doi:10.2307/2006097.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp, tracekit as tk
    >>> A = sp.diags_array([-1.0, 2.5, -1.0], offsets=[-1, 0, 1], shape=(300, 300))
    >>> P = tk.incomplete_cholesky(A)  # complete, of a tridiagonal matrix
    >>> bool(np.isclose(P.logdet, np.linalg.slogdet(A.toarray())[1]))
    True
    """
    import scipy.sparse as sp

    if not sp.issparse(A):
        raise TypeError(
            f"`A` must be a sparse matrix of SciPy, got {type(A).__name__}; pass "
            "scipy.sparse.csc_array(A)"
        )
    operator = as_operator(A)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"a Cholesky factor needs a square matrix, got shape {A.shape}")
    S = sp.csc_array(A, dtype=operator.dtype)
    d = S.diagonal().real
    if not d.min() > 0:
        raise ValueError(
            f"a positive definite matrix has a positive diagonal, and that of A goes down to "
            f"{d.min():.3g}; add a multiple of the identity"
        )
    scale = sp.diags_array(d**-0.5)
    lower = sp.tril(scale @ S @ scale, format="csc").astype(S.dtype)
    found = next(filter(lambda L: L is not None, (_swept(lower, shift) for shift in SHIFTS)))
    L = sp.csc_array(sp.diags_array(d**0.5) @ found).astype(S.dtype)
    return _of_factor(L, operator)


def _swept(lower: Any, shift: float) -> Any:
    """The factor of a matrix of unit diagonal plus a shift; None where a pivot vanishes."""
    import scipy.sparse as sp

    eye = sp.eye_array(lower.shape[0], format="csc", dtype=lower.dtype)
    target, pattern = lower + shift * eye, lower != 0
    L, eps = target.copy(), float(np.finfo(lower.dtype).eps)
    for _ in range(SWEEPS):
        left = (target - (L @ L.conj().T).multiply(pattern)).tocsc()
        pivots = L.diagonal().real
        squares = pivots**2 + left.diagonal().real
        if not squares.min() > 1e-6:
            return None
        step = (left - sp.diags_array(left.diagonal())) @ sp.diags_array(1 / pivots)
        L = (L + step + sp.diags_array(np.sqrt(squares) - pivots)).tocsc()
        if abs(left).max() <= 10 * eps:
            break
    return L


def _of_factor(L: Any, like: LinearOperator) -> Preconditioner:
    """The preconditioner of a sparse lower triangle."""
    from scipy.sparse.linalg import splu

    n, options = L.shape[0], {"SymmetricMode": True, "Equil": False}
    solver = splu(L, permc_spec="NATURAL", diag_pivot_thresh=0.0, options=options)

    def solve(X: Array, trans: str) -> Array:
        Y: Array = solver.solve(np.ascontiguousarray(X), trans)
        return Y

    F = like._like((n, n), lambda X: solve(X, "H"), lambda X: solve(X, "N"))
    inverse = gram(F)

    def trace() -> Array:
        return total(np.sum(colnorm2(F.H.matmat(E))) for E in coordinates(F, n))

    logdet = 2 * float(np.sum(np.log(L.diagonal().real)))
    return Preconditioner(replace(inverse, exact={"trace": trace}), logdet)
