"""The exact trace, by products with all coordinate vectors or in closed form."""

from __future__ import annotations

from functools import partial
from typing import Any

from .._arrays import Array, colnorm2
from .._estimates import Estimate, done, exact
from .._operators import (
    LinearOperator,
    blocks,
    columns_at_once,
    exact_cost,
    in_blocks,
    maker_price,
    square,
)


def exact_trace(A: Any, *, block_size: int | None = None) -> Estimate:
    """The exact trace, by products with all coordinate vectors.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.
    block_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given.

    Returns
    -------
    Estimate
        With standard error 0. The value is a 0-d array in A's library, dtype and device.

    Raises
    ------
    ValueError, TypeError
        If A is not square, is no operator, or returns something unusable; NotFiniteError if that is
        NaN or infinity.

    Notes
    -----
    Costs n products, and memory for one block of columns and its products. Where ``A = L L^H`` is
    made by `gram`, the products are with ``L^H``, or with L if that has fewer columns. Costs
    nothing where the operator's maker knows the trace.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> tk.exact_trace(np.diag([1.0, 2.0, 3.0]))
    Estimate(6.0 +- 0.0, 3 matvecs, exact_trace)
    """
    return exactly(in_blocks(square(A), block_size))


def exactly(A: LinearOperator) -> Estimate:
    """The trace by products with all coordinate vectors, or as the operator's maker knows it."""
    if A.exact and "trace" in A.exact:
        known = A.exact["trace"]
        name = getattr(known, "method", "exact_trace")
        return done(exact(known(), maker_price(A, "trace"), name), A)
    total, start, n = None, 0, exact_cost(A)
    for width in blocks(n, columns_at_once(A)):
        total = exact_part(A, start, width, total)
        start += width
    return done(exact(total, n), A)


def exact_part(A: LinearOperator, start: int, width: int, before: Array | None = None) -> Array:
    """The sum of some diagonal entries, added to that of the entries before."""
    L, quad, n = A.factor, A.quad, A.shape[0]
    if L is not None and L.shape[1] < n:  # tr(L L^H) = tr(L^H L)
        n = L.shape[1]
        quad = partial(_colnorm2_of, L)
    columns = A.xp.eye(n, width, k=-start, dtype=A.dtype, device=A.device)
    part = A.xp.sum(quad(columns))  # type: ignore[misc]
    return part if before is None else before + part


def _colnorm2_of(L: LinearOperator, X: Array) -> Array:
    return colnorm2(L.matmat(X))
