"""What exact answers cost, in products with the operator or its factor."""

from __future__ import annotations

from .linear_operator import LinearOperator


def price(A: LinearOperator) -> int:
    """Products that one column of `A.matmat` costs."""
    return 1 if A.factor is None else 2


def exact_cost(A: LinearOperator) -> int:
    """Products that the exact trace costs."""
    if A.exact and "trace" in A.exact:
        return max(1, maker_price(A, "trace"))
    return min(A.shape) if A.factor is None else min(A.factor.shape)


def maker_price(A: LinearOperator, what: str) -> int:
    """Products that what the operator's maker knows costs: its attribute `num_matvecs`, or none."""
    return int(getattr(A.exact[what], "num_matvecs", 0))  # type: ignore[index]


def columns_cost(A: LinearOperator) -> int:
    """Products that everything exact costs here: all columns, or those of a narrow factor."""
    return A.shape[0] if A.factor is None else min(A.factor.shape)


def diagonal_cost(A: LinearOperator) -> int:
    """Products from which the exact diagonal is no dearer."""
    known = A.exact and "diagonal" in A.exact
    return max(1, maker_price(A, "diagonal")) if known else columns_cost(A)
