"""Exact log-determinants and traces of inverses of sparse matrices, by one factorisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._arrays import Array
from .._estimates import Estimate, exact, finalize
from .._operators import square

BLOCK = 2**24  # bytes of right-hand sides at a time
HERMITIAN = 1e-10  # difference from the adjoint, relative to the largest entry
SINGULAR = "the matrix is singular up to rounding; add a multiple of the identity, A + c I"


def log_determinant(A: Any, *, hermitian: bool) -> Estimate:
    """Of a sparse matrix; of its modulus, if it is not said to be Hermitian."""
    matrix = entries(A)
    lu = _factorised(matrix, definite=hermitian)
    value = float(np.sum(np.log(np.abs(lu.U.diagonal()))))
    told = "" if hermitian else "log |det A|, sign or phase unknown; "
    return _of(A, value, "logdet", told, "log-determinant")


def trace_of_inverse(A: Any) -> Estimate:
    """Of a positive definite sparse matrix, by solves with blocks of the identity."""
    matrix = entries(A)
    lu, n = _factorised(matrix, definite=True), matrix.shape[0]
    width, total = max(1, BLOCK // (matrix.dtype.itemsize * n)), 0.0
    for i in range(0, n, width):
        k = min(width, n - i)
        E = np.zeros((n, k), dtype=matrix.dtype)
        E[np.arange(i, i + k), np.arange(k)] = 1
        total += float(np.sum(lu.solve(E)[np.arange(i, i + k), np.arange(k)].real))
    return _of(A, total, "trace_inverse", "", "trace of f(A)")


def entries(A: Any) -> Any:
    """The sparse matrix in double precision, by columns."""
    if not is_sparse(A):
        raise TypeError(
            f"exact=True factorises a sparse matrix of SciPy, and the entries of this "
            f"{type(A).__name__} are not at hand; pass one, or a budget of n products"
        )
    complex_ = np.issubdtype(A.dtype, np.complexfloating)
    return A.tocsc().astype(np.complex128 if complex_ else np.float64)


def is_sparse(A: Any) -> bool:
    """Whether it is a sparse matrix or array of SciPy."""
    return type(A).__module__.startswith("scipy.sparse") and hasattr(A, "tocsc")


def with_advice(found: Estimate, A: Any, *, solves: bool = False) -> Estimate:
    """The estimate, whose reason says where a factorisation would have been cheaper."""
    if not is_sparse(A) or float(np.max(np.asarray(found.standard_error))) == 0:
        return found
    there, spent = factorisation_cost(A, solves=solves), 2 * A.nnz * int(found.num_matvecs)
    if there > spent:
        return found
    told = (
        f"a sparse factorisation takes {there:.1g} operations at most and these products "
        f"{spent:.1g}: exact=True is cheaper, and exact"
    )
    return replace(found, reason=f"{found.reason}; {told}" if found.reason else told)


def factorisation_cost(A: Any, *, solves: bool = False) -> float:
    """Operations of an LU factorisation in its envelope, by the order of Cuthill and McKee.

    All fill lies inside the envelope, so that a better order costs less.
    """
    import scipy.sparse as sp
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    n = A.shape[0]
    there = sp.csr_array(A).astype(bool).astype(np.int8)
    both = sp.csr_array(there + there.T)
    order = np.empty(n, dtype=np.int64)
    order[reverse_cuthill_mckee(both, symmetric_mode=True)] = np.arange(n)
    found = both.tocoo()
    i, j = order[found.coords[0]], order[found.coords[1]]
    first = np.arange(n)
    np.minimum.at(first, i, j)
    width = (np.arange(n) - first).astype(float)
    factor = float(np.sum(2 * width * (width + 1)))
    return factor + (n * float(np.sum(4 * width + 1)) if solves else 0.0)


def _factorised(matrix: Any, *, definite: bool) -> Any:
    """The LU factors; of a positive definite matrix without pivots, those of L D L^H."""
    from scipy.sparse.linalg import splu

    square(matrix, "determinant")
    largest = float(abs(matrix).max()) if matrix.nnz else 0.0
    if not np.isfinite(matrix.data).all():
        raise ValueError("the matrix has entries that are NaN or infinite; pass finite ones")
    if definite and float(abs(matrix - matrix.conj().T).max()) > HERMITIAN * largest:
        raise ValueError("the matrix is not Hermitian; pass a Hermitian one, or hermitian=False")
    options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0} if definite else {}
    try:
        lu = splu(matrix, **options, options={"SymmetricMode": True} if definite else {})
    except RuntimeError as error:
        raise ValueError(SINGULAR) from error
    unit = abs(matrix.diagonal() if definite else abs(matrix).max(axis=0).toarray().ravel())
    pivots = abs(lu.U.diagonal())[lu.perm_c]
    if np.any(pivots <= np.finfo(float).eps * matrix.shape[0] * unit):
        raise ValueError(SINGULAR)
    if definite and not _is_positive(lu):
        raise ValueError(
            "the matrix is not positive definite; pass one that is, A + c I, or hermitian=False to "
            "logdet"
        )
    return lu


def _is_positive(lu: Any) -> bool:
    """Whether the pivots are those of the diagonal, and positive."""
    d: Array = lu.U.diagonal()
    return bool(np.array_equal(lu.perm_r, lu.perm_c) and np.all(d.real > 0))


def _of(A: Any, value: float, method: str, told: str, quantity: str) -> Estimate:
    operator = square(A, "determinant")
    dtype = np.zeros((), dtype=operator.dtype).real.dtype
    reason = f"{told}by a sparse factorisation, without products"
    found = exact(np.asarray(value, dtype=dtype), 0, method, reason=reason)
    return finalize(found, quantity=quantity)
