"""What estimators share: checks at the face, products in blocks, the exact trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from . import _leave_one_out, _xp
from ._adapt import as_operator
from ._budget import block_size as _block_size
from ._budget import blocks, checked_budget, checked_tolerance
from ._checked import Checked
from ._estimate import Estimate, exact, mean, require_finite
from ._operator import LinearOperator
from ._typing import Array


def enter(
    A: Any, num_matvecs: Any, rtol: float = 0.0, atol: float = 0.0
) -> tuple[LinearOperator, int]:
    """The operator and the budget, if both are usable."""
    checked_tolerance(rtol, atol)
    return square(A), checked_budget(num_matvecs)


def square(A: Any, what: str = "trace") -> LinearOperator:
    """Read an operator that has to be square."""
    operator: LinearOperator = as_operator(A)
    if operator.shape[0] != operator.shape[1]:
        hint = (
            "; pass gram(A) for the trace of A A^H, which is the squared norm of A"
            if what == "trace"
            else ""
        )
        raise ValueError(
            f"the {what} needs a square operator, not one of shape {operator.shape}{hint}"
        )
    return operator


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


def exactly(A: LinearOperator, block_size: int | None = None) -> Estimate:
    """The trace by products with all coordinate vectors, or as the operator's maker knows it."""
    if A.exact and "trace" in A.exact:
        known = A.exact["trace"]
        name = getattr(known, "method", "exact_trace")
        return done(exact(known(), maker_price(A, "trace"), name), A)
    total, start, n = None, 0, exact_cost(A)
    for width in blocks(n, _block_size(max(A.shape), _itemsize(A), block_size)):
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
    return _xp.colnorm2(L.matmat(X))


def each_column(A: LinearOperator) -> Iterator[tuple[Array, Array]]:
    """Blocks of coordinate vectors and the products of A with them, until all columns are done."""
    n, start = A.shape[1], 0
    for width in blocks(n, columns_at_once(A, None)):
        E = A.xp.eye(n, width, k=-start, dtype=A.dtype, device=A.device)
        yield E, A.matmat(E)
        start += width


def dense(A: LinearOperator) -> Array:
    """All columns of an operator, by products with coordinate vectors."""
    return A.xp.concat([Y for _, Y in each_column(A)], axis=1)


def columns_at_once(A: LinearOperator, wanted: int | None) -> int:
    """Columns in a block: as asked, or as fit in memory."""
    return _block_size(max(A.shape), _itemsize(A), wanted)


def _itemsize(A: LinearOperator) -> int:
    return int(A.xp.finfo(A.dtype).bits) // 8 * (2 if _xp.is_complex(A) else 1)


def blocked(product: Callable[[Array], Array], size: int) -> Callable[[Array], Array]:
    """The same product, at most `size` columns at a time."""

    def run(X: Array) -> Array:
        if X.shape[1] <= size:
            return product(X)
        starts = range(0, X.shape[1], size)
        return _xp.namespace(X).concat(
            [product(X[:, i : min(i + size, X.shape[1])]) for i in starts], axis=-1
        )

    return run


def quadratic_forms(A: LinearOperator) -> Callable[[Array], Array]:
    """``x^H A x`` of every column; below it ``x^H W A x``, where A has no form of its own.

    W is diagonal, of weights about 1 (see `beyond_chance`).
    """
    if not has_plain_form(A):
        return lambda X: A.quad(X)[None, :]  # type: ignore[misc]

    return lambda X: forms_of(X, A.matmat(X))


def has_plain_form(A: LinearOperator) -> bool:
    """Whether the quadratic form is that of the product, not one of its own."""
    return not isinstance(A.quad, Checked)


def forms_of(X: Array, Y: Array) -> Array:
    """``x^H y`` of every pair of columns, and ``x^H W y`` below it."""
    parts = _xp.conj(X) * Y
    weighted = _xp.contract(_xp.weights(parts)[None, :], parts)
    return _xp.namespace(X).concat([_xp.colsum(parts)[None, :], weighted], axis=0)


def in_blocks(A: LinearOperator, wanted: int | None) -> LinearOperator:
    """The operator itself, or one whose products run over blocks of columns."""
    if wanted is None:
        return A
    size = columns_at_once(A, wanted)
    adjoint = None if A.rmatmat is None else blocked(A.rmatmat, size)
    return A._like(A.shape, blocked(A.matmat, size), adjoint)


def leave_one_out_estimate(
    samples: Array,
    left_out: Array | None,
    scale: Array,
    spent: int,
    method: str,
    A: LinearOperator,
    *,
    semidefinite: bool = False,
) -> Estimate:
    """A leave-one-out estimate in the operator's own units.

    Residuals of rank one, which are what is left where the rank is the number of probes, are
    chi-squared: the error of a `semidefinite` trace from `FEW` probes on allows for that. Entries
    of a diagonal have too few different samples below 5 probes of signs to say anything of their
    error.
    """
    b, entries = samples.shape[-1], samples.ndim > 1
    estimate = mean(samples, spent, method, independent=False)
    error = _leave_one_out.combined_error(samples, left_out, estimate.standard_error)
    if entries:
        error = error + math.inf if b < 5 else error
    elif semidefinite and b >= _leave_one_out.FEW:
        error = error * (1 + 2 / b)
    return done(scaled(replace(estimate, standard_error=error), scale), A)


def scaled(estimate: Estimate, scale: Array) -> Estimate:
    """The estimate in units that are `scale` times smaller."""
    return replace(
        estimate,
        value=estimate.value * scale,
        standard_error=estimate.standard_error * scale,
        samples=estimate.samples * scale,
    )


def done(estimate: Estimate, A: LinearOperator) -> Estimate:
    """The estimate in the operator's dtype, if it is finite."""
    require_finite(estimate.value)
    return replace(estimate, value=A.xp.astype(estimate.value, A.dtype, copy=False))


def renamed(estimate: Estimate, method: str) -> Estimate:
    """The same estimate under the name of the estimator that was called."""
    return replace(estimate, method=method)
