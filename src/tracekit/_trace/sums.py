"""The trace by products with all coordinate vectors."""

from __future__ import annotations

from functools import partial

from .._arrays import Array, colnorm2, unit_columns
from .._estimates import Estimate, exact, finalize
from .._operators import LinearOperator, blocks, columns_at_once, exact_trace_cost, known_cost


def exact_trace_of(A: LinearOperator) -> Estimate:
    """The trace by products with all coordinate vectors, or as it is known in closed form."""
    if A.exact and "trace" in A.exact:
        known = A.exact["trace"]
        name = getattr(known, "method", "exact_trace")
        return finalize(exact(known(), known_cost(A, "trace"), name), A)
    total, start, n = None, 0, exact_trace_cost(A)
    for width in blocks(n, columns_at_once(A)):
        total = exact_part(A, start, width, total)
        start += width
    return finalize(exact(total, n), A)


def exact_part(A: LinearOperator, start: int, width: int, before: Array | None = None) -> Array:
    """The sum of some diagonal entries, added to that of the entries before."""
    L, quad, n = A.factor, A.quad, A.shape[0]
    if L is not None and L.shape[1] < n:  # tr(L L^H) = tr(L^H L)
        n = L.shape[1]
        quad = partial(_colnorm2_of, L)
    part = A.xp.sum(quad(unit_columns(A, n, width, start)))  # type: ignore[misc]
    return part if before is None else before + part


def _colnorm2_of(L: LinearOperator, X: Array) -> Array:
    return colnorm2(L.matmat(X))
