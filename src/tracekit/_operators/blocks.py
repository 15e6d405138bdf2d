"""Columns in blocks: how many fit in memory, and products, forms and coordinates block by block."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

from .._arrays import (
    Array,
    Product,
    colsum,
    conj,
    contract,
    is_complex,
    namespace,
    unit_columns,
    weights,
)
from .checked_product import Checked
from .linear_operator import LinearOperator


def blocks(total: int, size: int) -> Iterator[int]:
    """Sizes that add up to `total`, none above `size`."""
    for start in range(0, total, size):
        yield min(size, total - start)


def columns_that_fit(n: int, itemsize: int, wanted: int | None, *, megabytes: int = 128) -> int:
    """Columns to hold at a time: as asked, or as fit in some memory."""
    if wanted is None:
        return max(1, megabytes * 2**20 // (n * itemsize))
    try:
        size = operator.index(wanted)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(
            f"`chunk_size` must be a positive integer, got {wanted!r}; pass an int of 1 or more"
        )
    return size


def columns_at_once(A: LinearOperator, wanted: int | None = None) -> int:
    """Columns in a block: as asked, as the operator is cut, or as fit in memory."""
    return columns_that_fit(max(A.shape), _itemsize(A), A._columns if wanted is None else wanted)


def _itemsize(A: LinearOperator) -> int:
    return int(A.xp.finfo(A.dtype).bits) // 8 * (2 if is_complex(A) else 1)


def width(A: LinearOperator, wanted: int | None = None) -> int:
    """Columns in a block: as `columns_at_once`, on both sides of the factor."""
    return columns_at_once(A if A.factor is None else A.factor, wanted)


def split(X: Array, size: int) -> Iterator[Array]:
    """The columns of X, at most `size` at a time."""
    n = X.shape[1]
    return (X if n <= size else X[:, i : min(i + size, n)] for i in range(0, n, size))


def coordinates(A: LinearOperator, n: int, size: int | None = None) -> Iterator[Array]:
    """All n coordinate vectors, at most `size` at a time, or as many as `width` says."""
    size = width(A) if size is None else size
    for start in range(0, n, size):
        yield unit_columns(A, n, min(size, n - start), start)


def each_column(A: LinearOperator) -> Iterator[tuple[Array, Array]]:
    """Blocks of coordinate vectors and the products of A with them, until all columns are done."""
    n, start = A.shape[1], 0
    for width in blocks(n, columns_at_once(A, None)):
        E = unit_columns(A, n, width, start)
        yield E, A.matmat(E)
        start += width


def dense(A: LinearOperator) -> Array:
    """All columns of an operator, by products with coordinate vectors."""
    return A.xp.concat([Y for _, Y in each_column(A)], axis=1)


def blocked(product: Callable[[Array], Array], size: int) -> Callable[[Array], Array]:
    """The same product, at most `size` columns at a time."""

    def run(X: Array) -> Array:
        if X.shape[1] <= size:
            return product(X)
        return namespace(X).concat([product(part) for part in split(X, size)], axis=-1)

    return run


def in_blocks(A: LinearOperator, wanted: int | None) -> LinearOperator:
    """The same operator, its products and those of its factor cut into blocks of columns."""
    if wanted is None or A._columns == (size := columns_at_once(A, wanted)):
        return A
    quad: Product = blocked(A.quad, size)  # type: ignore[arg-type]
    plain = has_plain_form(A)
    cut: LinearOperator = A._like(
        A.shape,
        blocked(A.matmat, size),
        None if A.rmatmat is None else blocked(A.rmatmat, size),
        None if plain else quad,
        factor=None if A.factor is None else in_blocks(A.factor, size),
        dims=A.dims,
        exact=A.exact,
    )
    object.__setattr__(cut, "_columns", size)
    if plain:  # a form of products stays one
        object.__setattr__(cut, "quad", quad)
    return cut


def quadratic_forms(A: LinearOperator) -> Callable[[Array], Array]:
    """``x^H A x`` of every column; below it ``x^H W A x``, where A has no form of its own.

    W is diagonal, of weights about 1 (see `beyond_chance`).
    """

    def forms(X: Array) -> Array:
        return forms_of(X, A.matmat(X)) if has_plain_form(A) else A.quad(X)[None, :]  # type: ignore[misc]

    return blocked(forms, columns_at_once(A))


def has_plain_form(A: LinearOperator) -> bool:
    """Whether the quadratic form is that of the product, not one of its own."""
    return not isinstance(A.quad, Checked)


def forms_of(X: Array, Y: Array) -> Array:
    """``x^H y`` of every pair of columns, and ``x^H W y`` below it."""
    parts = conj(X) * Y
    weighted = contract(weights(parts)[None, :], parts)
    return namespace(X).concat([colsum(parts)[None, :], weighted], axis=0)


def total(parts: Iterator[Array]) -> Array:
    """The sum of arrays of one shape."""
    result = next(parts)
    for part in parts:
        result = result + part
    return result
