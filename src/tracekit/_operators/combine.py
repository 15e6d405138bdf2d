"""Operators made of other operators: Gram, stacked, block-diagonal, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import accumulate, pairwise
from operator import add
from typing import Any

from .._arrays import Array, Product, real_dtype
from .convert import as_operator
from .costs import known_cost
from .linear_operator import Known, LinearOperator, common_dtype, compose


def gram(L: LinearOperator) -> LinearOperator:
    """``L @ L.H``, whose quadratic form costs one product with ``L.H``.

    Parameters
    ----------
    L : LinearOperator or anything that `as_operator` reads
        Of any shape (n, P), with both products.

    Returns
    -------
    LinearOperator
        Positive semidefinite, n by n, with ``factor`` L: estimators then count and spend single
        products with L and L.H. In L's library and dtype, on its device.

    Raises
    ------
    TypeError
        If L has no product with its adjoint.

    Notes
    -----
    A product costs two (one with L.H, one with L), a quadratic form one.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> K = tk.gram(np.ones((3, 2)))
    >>> float(tk.exact_trace(K))
    6.0
    """
    L = as_operator(L)
    return compose(L, L.H)


def vstack(blocks: Sequence[Any]) -> LinearOperator:
    """Blocks of rows, one above the other, such as a Jacobian over batches of data.

    Parameters
    ----------
    blocks : sequence of LinearOperator or anything that `as_operator` reads
        Of shapes (m_i, n), with the same number of columns, library and device.

    Returns
    -------
    LinearOperator
        Of shape (sum of m_i, n), in the dtype that the blocks' dtypes promote to; with a product
        with its adjoint where all blocks have one.

    Raises
    ------
    ValueError
        If there are no blocks, or they differ in columns, library or device.

    Notes
    -----
    A product is one with every block.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> tk.vstack([np.ones((2, 3)), np.ones((4, 3))]).shape
    (6, 3)
    """
    parts = _parts(blocks)
    first, n = parts[0], parts[0].shape[1]
    for part in parts:
        if part.shape[1] != n:
            raise ValueError(f"blocks of {n} and {part.shape[1]} columns cannot be stacked")
    rows = _slices(part.shape[0] for part in parts)

    def matmat(X: Array) -> Array:
        return first.xp.concat([part.matmat(X) for part in parts], axis=0)

    def rmatmat(X: Array) -> Array:
        return reduce(add, (part.H.matmat(X[r, :]) for part, r in zip(parts, rows, strict=True)))

    reversible = all(part.rmatmat is not None for part in parts)
    return first._like(
        (rows[-1].stop, n),
        matmat,
        rmatmat if reversible else None,
        dtype=common_dtype(*parts),
        dims=first.dims,
    )


def block_diagonal(blocks: Sequence[Any]) -> LinearOperator:
    """Blocks down the diagonal, zero elsewhere; square blocks give a square operator.

    Parameters
    ----------
    blocks : sequence of LinearOperator or anything that `as_operator` reads
        Of any shapes, of the same library and device.

    Returns
    -------
    LinearOperator
        Of the shape that the blocks' shapes add up to, in the dtype that their dtypes promote to;
        with a `factor` where all blocks have one.

    Raises
    ------
    ValueError
        If there are no blocks, or they differ in library or device.

    Notes
    -----
    A product is one with every block, on its own rows of X.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.exact_trace(tk.block_diagonal([np.eye(2), 3 * np.eye(2)])))
    8.0
    """
    parts = _parts(blocks)
    rows, columns = (_slices(part.shape[axis] for part in parts) for axis in (0, 1))
    shape = rows[-1].stop, columns[-1].stop
    first = parts[0]
    factors = [part.factor for part in parts if part.factor is not None]
    if len(factors) == len(parts):
        return gram(block_diagonal(factors))

    def each(name: str, X: Array, slices: list[slice]) -> list[Array]:
        return [getattr(part, name)(X[s, :]) for part, s in zip(parts, slices, strict=True)]

    def matmat(X: Array) -> Array:
        return first.xp.concat(each("matmat", X, columns), axis=0)

    def rmatmat(X: Array) -> Array:
        return first.xp.concat(each("rmatmat", X, rows), axis=0)

    def quad(X: Array) -> Array:
        return reduce(add, each("quad", X, columns))

    return first._like(
        shape,
        matmat,
        rmatmat if all(part.rmatmat is not None for part in parts) else None,
        quad if all(part.shape[0] == part.shape[1] for part in parts) else None,
        dtype=common_dtype(*parts),
    )


def centered(A: Any) -> LinearOperator:
    r"""``C A C`` with :math:`C = I - 1 1^T / n`, as centred kernel alignment (CKA) needs it.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.

    Returns
    -------
    LinearOperator
        With a `factor` ``C L`` where A has one, L; all its entries are known where those of A are.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.exact_trace(tk.centered(np.ones((4, 4)))))
    0.0
    """
    A = as_operator(A)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"an operator of shape {A.shape} cannot be centred; pass a square one")
    n, xp = A.shape[0], A.xp

    def center(X: Array) -> Array:
        return X - xp.mean(X, axis=0, keepdims=True)

    C = A._like((n, n), center, center, dtype=real_dtype(A.dtype, xp), dims=A.dims)
    made = gram(C @ A.factor) if A.factor is not None else C @ A @ C
    if not A.exact or "matrix" not in A.exact:
        return made
    known = A.exact["matrix"]

    def matrix() -> Array:
        M = xp.matrix_transpose(center(known()))
        return xp.matrix_transpose(center(M))

    cost, method = partial(known_cost, A, "matrix"), getattr(known, "method", "centered")
    return replace(made, exact={"matrix": Known(matrix, cost, method)})


@dataclass
class Counter:
    """Columns that have gone through an operator, each counted where it was spent."""

    matvecs: int = 0
    rmatvecs: int = 0
    quads: int = 0

    @property
    def total(self) -> int:
        """All of them: the unit of `num_matvecs`."""
        return self.matvecs + self.rmatvecs + self.quads


def counted(A: Any) -> tuple[LinearOperator, Counter]:
    """An operator that counts the columns through it, for tests and benchmarks.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        If it carries a factor L, columns through L (matvecs) and L.H (rmatvecs) are counted.

    Returns
    -------
    operator : LinearOperator
        The same operator, in the same library, dtype and device.
    counter : Counter
        Its ``matvecs``, ``rmatvecs`` and ``quads`` grow as the operator is used, by one for a
        column; ``total`` is their sum, the unit of `Estimate.num_matvecs`.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A, counter = tk.counted(np.eye(8))
    >>> estimate = tk.hutchinson(A, 5, rng=0)
    >>> counter.quads == estimate.num_matvecs == 5
    True
    """
    A = as_operator(A)
    if A.factor is not None:
        L, counter = counted(A.factor)
        return replace(gram(L), dims=A.dims, exact=_counted_exact(A, counter)), counter
    counter = Counter()

    def count(name: str, product: Product | None) -> Product | None:
        if product is None:
            return None

        def counting(X: Array) -> Array:
            setattr(counter, name, getattr(counter, name) + X.shape[1])
            return product(X)

        return counting

    operator = A._like(
        A.shape,
        count("matvecs", A.matmat),
        count("rmatvecs", A.rmatmat),
        count("quads", A.quad),
        dims=A.dims,
        exact=_counted_exact(A, counter),
    )
    return operator, counter


def _counted_exact(A: LinearOperator, counter: Counter) -> dict[str, Callable[[], Array]] | None:
    """What is known in closed form, counted as quadratic forms where it costs something."""

    def count(name: str, known: Callable[[], Array]) -> Known:
        cost = partial(known_cost, A, name)

        def counting() -> Array:
            counter.quads += cost()
            return known()

        return Known(counting, cost, getattr(known, "method", "exact_trace"))

    return {name: count(name, known) for name, known in A.exact.items()} if A.exact else None


def _parts(blocks: Sequence[Any]) -> list[LinearOperator]:
    parts = [as_operator(block) for block in blocks]
    if not parts:
        raise ValueError("no blocks were given; pass at least one operator")
    return parts


def _slices(sizes: Iterable[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]
