"""The array operations that formulas need, in words."""

from __future__ import annotations

import math

import array_api_compat

from .libraries import (
    Array,
    Namespace,
    bits,
    constant,
    device_of,
    is_complex,
    namespace,
    real_dtype,
)
from .placement import row_blocks
from .row_array import RowArray


def adjoint(X: Array) -> Array:
    """Conjugate transpose of a matrix."""
    xp = namespace(X)
    Xt = xp.matrix_transpose(X)
    return xp.conj(Xt) if is_complex(X) else Xt


def conj(X: Array) -> Array:
    """Complex conjugate; a real array itself."""
    return namespace(X).conj(X) if is_complex(X) else X


def real(X: Array) -> Array:
    """Real part; a real array itself."""
    return namespace(X).real(X) if is_complex(X) else X


def abs2(X: Array) -> Array:
    """Squared modulus, real, without a square root."""
    xp = namespace(X)
    return xp.real(X) * xp.real(X) + xp.imag(X) * xp.imag(X) if is_complex(X) else X * X


def inner(X: Array, Y: Array) -> Array:
    """``X^H Y``, accurate however many rows there are."""
    return contract(adjoint(X), Y)


def contract(X: Array, Y: Array) -> Array:
    """``X @ Y``, accurate however long the inner dimension is.

    Libraries add the parts of a long inner dimension one after the other, which in single precision
    is off by 1e-4 at 10^7 equal terms: here they are products of their own, of rows that lie on one
    device.
    """
    if isinstance(X, RowArray) or isinstance(Y, RowArray):
        both = isinstance(X, RowArray) and isinstance(Y, RowArray) and X.axis == -1
        if not both or array_api_compat.is_dask_array(Y.local):
            return X @ Y
        return X.held.total(contract(X.local, Y.local))
    n = Y.shape[-2]
    if n < 2 * _LONG or X.ndim > 2 or bits(Y.dtype, xp := namespace(X, Y)) > 32:
        return X @ Y
    blocks, k = row_blocks(Y), X.shape[0]
    if blocks < 2 or n % blocks:
        return _in_parts(X, Y, xp)
    X = xp.permute_dims(xp.reshape(X, (k, blocks, n // blocks)), (1, 0, 2))
    return xp.sum(_in_parts(X, xp.reshape(Y, (blocks, n // blocks, -1)), xp), axis=0)


def _in_parts(X: Array, Y: Array, xp: Namespace) -> Array:
    """``X @ Y`` of matrices or stacks of them, the inner dimension in parts."""
    *stack, n, m = Y.shape
    k, parts = X.shape[-2], n // _LONG
    if parts < 2:
        return X @ Y
    long = parts * _LONG
    first = xp.reshape(X[..., :long], (*stack, k, parts, _LONG))
    first = xp.moveaxis(first, -2, -3)
    many = first @ xp.reshape(Y[..., :long, :], (*stack, parts, _LONG, m))
    result = xp.reshape(colsum(xp.reshape(many, (*stack, parts, k * m))), (*stack, k, m))
    return result if long == n else result + X[..., long:] @ Y[..., long:, :]


def coldot(X: Array, Y: Array) -> Array:
    """Inner product ``x_j^H y_j`` of every pair of columns."""
    return colsum(conj(X) * Y)


def colnorm2(X: Array) -> Array:
    """Squared Euclidean norm of every column, real."""
    return colsum(abs2(X))


def norm2(X: Array) -> Array:
    """Squared Frobenius norm of a matrix, real."""
    return namespace(X).sum(colnorm2(X), axis=-1)


def colsum(X: Array) -> Array:
    """Sums of columns, over the last axis but one; rounding grows with the log of their length.

    NumPy adds along a strided axis one entry after the other: of 10^7 equal ones in single
    precision it loses 4 %. Here blocks of rows are added, which is faster too where there are few
    columns. The other libraries sum in trees.
    """
    xp = namespace(X)
    if isinstance(X, RowArray):
        if X.axis == -2 and not array_api_compat.is_dask_array(X.local):
            return X.held.total(colsum(X.local))
        return xp.sum(X, axis=-2)
    if _sums_in_trees(X):
        return xp.sum(X, axis=-2)
    while (n := X.shape[-2]) > _FEW:
        rows = n // _FOLD
        total = X[..., :rows, :]
        for start in range(rows, rows * _FOLD, rows):
            total = total + X[..., start : start + rows, :]
        rest = X[..., rows * _FOLD :, :]
        X = total if rest.shape[-2] == 0 else xp.concat([total, rest], axis=-2)
    return xp.sum(X, axis=-2)


def weights(X: Array) -> Array:
    """A number between 1/2 and 3/2 for each row, in no simple relation to each other."""
    xp = namespace(X)
    if isinstance(X, RowArray) and X.axis == -X.ndim:
        rows = X.held.rows(X.shape[0])[:, 0]
    else:
        rows = xp.arange(X.shape[0], dtype=xp.int32, device=device_of(X))
    real = xp.astype(rows % 2**15 * 20251 % 2**15, real_dtype(X.dtype, xp))
    return xp.astype(real / 2**15 + 0.5, X.dtype, copy=False)


def matrix_diagonal(X: Array) -> Array:
    """The diagonal of a matrix."""
    return namespace(X).linalg.diagonal(X)


def matrix_trace(X: Array) -> Array:
    """The trace of a small dense matrix."""
    return namespace(X).linalg.trace(X)


def eye_like(X: Array, n: int) -> Array:
    """An n by n identity of the dtype of `X`, where `X` is."""
    return namespace(X).eye(n, dtype=X.dtype, device=device_of(X))


def magnitude(X: Array) -> Array:
    """The largest modulus as a real 0-d array, 1 where all entries are zero: divide by it first.

    A unit, and as such a constant to differentiation: what is divided by it is multiplied later.
    """
    xp = namespace(X)
    if math.prod(X.shape) == 0:
        return xp.ones((), dtype=real_dtype(X.dtype, xp), device=device_of(X))
    largest = xp.max(xp.abs(constant(X)))
    return xp.where(largest == 0, xp.ones_like(largest), largest)


def in_order(X: Array) -> Array:
    """The same entries, laid out in the order of the axes, for what reads them many times."""
    if isinstance(X, RowArray):
        return X if array_api_compat.is_dask_array(X.local) else X._like(in_order(X.local))
    if row_blocks(X) > 1:
        return X
    return namespace(X).reshape(namespace(X).reshape(X, (-1,)), X.shape)


def positive(x: Array) -> Array:
    """`x`, or 1 where it is not positive: divide by it where that is zero over zero. NaN stays."""
    xp = namespace(x)
    return xp.where(x <= 0, xp.ones_like(x), x)


_FEW, _FOLD = 64, 16  # rows that are added one after the other, and parts that are added at a time
_LONG = 2**10  # rows of one product with a long inner dimension in single precision


def _sums_in_trees(X: Array) -> bool:
    """Whether a library's sums over any axis are accurate: those of all but NumPy, and its like."""
    return (
        array_api_compat.is_jax_array(X)
        or array_api_compat.is_torch_array(X)
        or array_api_compat.is_cupy_array(X)
    )
