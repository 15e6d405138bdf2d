"""What exact answers cost, in products with the operator or its factor."""

from __future__ import annotations

from .._arrays import is_complex
from .linear_operator import LinearOperator


def matvecs_per_column(A: LinearOperator) -> int:
    """Products that one column of `A.matmat` costs."""
    return 1 if A.factor is None else 2


def known_cost(A: LinearOperator, what: str) -> int:
    """Products that a quantity known in closed form costs: its attribute `num_matvecs`, or none."""
    cost = getattr(A.exact[what], "num_matvecs", 0)  # type: ignore[index]
    return int(cost() if callable(cost) else cost)


def exact_trace_cost(A: LinearOperator) -> int:
    """Products that the exact trace costs."""
    if A.exact and "trace" in A.exact:
        return max(1, known_cost(A, "trace"))
    return min(A.shape) if A.factor is None else min(A.factor.shape)


def exact_diagonal_cost(A: LinearOperator) -> int:
    """Products that the exact diagonal costs."""
    if A.exact and "diagonal" in A.exact:
        return max(1, known_cost(A, "diagonal"))
    return all_columns_cost(A)


def exact_norm_cost(A: LinearOperator) -> int:
    """Products that the exact norm costs, where it is not known in closed form."""
    if A.factor is not None:
        return min(A.factor.shape)
    return min(A.shape) if A.rmatmat is not None else A.shape[1]


def all_columns_cost(A: LinearOperator) -> int:
    """Products that everything exact costs: all columns, or those of a narrow factor."""
    return A.shape[0] if A.factor is None else min(A.factor.shape)


def itemsize(A: LinearOperator) -> int:
    """Bytes of an entry."""
    return int(A.xp.finfo(A.dtype).bits) // 8 * (2 if is_complex(A) else 1)
