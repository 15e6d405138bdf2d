"""Sums and running means over columns: what diagonals and partial traces share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import _xp
from . import probes as _probes
from ._budget import blocks
from ._estimate import CHANCE, Estimate, require_finite
from ._face import blocked, columns_at_once, maker_price
from ._leave_one_out import check_adjoint, inexactness
from ._operator import LinearOperator
from ._random import Source
from ._sketch import orthonormal_extension
from ._typing import Array, Probes

DEFLATE_FROM = 32  # columns through a factor from which a third goes into its range


@dataclass(frozen=True)
class Running:
    """The least-squares fit ``y_k = value * w_k`` over columns k, block by block; a mean if w is 1.

    `rest` is the sum of squared residuals, `third` that of the cubes of real ones about a mean.
    All are in units of `scale`. Blocks are merged as by Chan, Golub, LeVeque (1983), Am. Stat. 37,
    doi:10.1080/00031305.1983.10483115.
    """

    count: int
    weight: Array
    value: Array
    rest: Array
    third: Array | None
    scale: Array


def add(before: Running | None, y: Array, w: Array | None = None) -> Running:
    """Samples along the last axis of `y`, and of `w`, added to those before."""
    xp, plain = _xp.namespace(y), w is None and not _xp.is_complex(y)
    scale = _xp.magnitude(y) if before is None else before.scale
    w = xp.ones_like(y[(*[0] * (y.ndim - 1), ...)]) if w is None else w
    y, weight = y / scale, xp.sum(_xp.abs2(w), axis=-1)
    w = xp.broadcast_to(w, y.shape)
    value = xp.sum(_xp.conj(w) * y, axis=-1) / _xp.positive(weight)
    apart = y - value[..., None] * w
    rest = xp.sum(_xp.abs2(apart), axis=-1)
    third = xp.sum(apart * apart * apart, axis=-1) if plain else None
    if before is None:
        return Running(y.shape[-1], weight, value, rest, third, scale)
    total, step = before.weight + weight, value - before.value
    share = weight / _xp.positive(total)
    both = before.weight * share
    if before.third is not None and third is not None:
        mixed = step * step * both * (before.weight - weight) / total
        mixed = mixed + 3 * (before.weight * rest - weight * before.rest) / total
        third = before.third + third + step * mixed
    value = before.value + step * share
    rest = before.rest + rest + _xp.abs2(step) * both
    return Running(before.count + y.shape[-1], total, value, rest, third, scale)


def fitted(
    running: Running,
    num_matvecs: int,
    method: str,
    *,
    known: Array | None = None,
    correction: float = 1.0,
    tie: float | None = None,
    weighted: bool = False,
) -> Estimate:
    """The estimate ``known + value``; the standard error is multiplied by `correction`.

    `tie` is the largest probability of a value of a sample that is not constant, where probes take
    few values: entries whose samples are equal have an infinite error until that is no chance (see
    `beyond_chance`) for any of as many entries as have samples that differ. With `weighted`, the
    first axis holds the samples and the weighted ones.
    """
    xp, value, m, skewness = _xp.namespace(running.value), running.value, running.count, None
    value = value * running.scale
    variance = running.rest / (_xp.positive(running.weight) * max(m - 1, 1))
    error = xp.sqrt(variance) * running.scale * correction
    if tie is not None and correction > 0:
        unit = _xp.abs2(running.value) * running.weight
        tied = running.rest <= (64 * _xp.eps(error)) ** 2 * unit
        # as many entries as differ might have been tied: where many do, some are by chance
        differ = xp.sum(xp.astype(~(tied[1, ...] if weighted else tied), error.dtype))
        entries = xp.where(differ < 1, xp.ones_like(differ), differ)

        def unsure(chance: float) -> Array:
            return xp.where(entries * chance > CHANCE, xp.full_like(entries, math.inf), 0 * entries)

        instead = error + unsure(tie ** (m - 1))
        if not weighted and value.ndim == 1:  # squares vanish only where the products do
            instead = xp.where(running.rest + xp.abs(value) == 0, error + unsure(0.5**m), instead)
        if weighted:
            less = error[0, ...] + unsure(0.5 ** (m - 1))
            instead = xp.where(tied[1, ...], less, error[1, ...])
            tied, error, value = tied[0, ...], error[0, ...], value[0, ...]
        error = xp.where(tied, instead, error)
    if running.third is not None:
        skewness = running.third / m / _xp.positive(running.rest / m) ** 1.5
        skewness = skewness[0, ...] if weighted else skewness
    return Estimate(
        value if known is None else known + value,
        error if m > 1 else error + math.inf,
        num_matvecs,
        method,
        dof=m - 1,
        skewness=skewness,
    )


def drawn(probes: Probes, source: Source, n: int, m: int, size: int) -> Iterator[Array]:
    """The m probes, at most `size` columns at a time; orthogonal ones are made in one go."""
    take = _probes.stream(probes, source, n, m)
    for width in blocks(m, m if probes is _probes.orthogonal else size):
        yield from split(take(width), size)


def split(X: Array, size: int) -> Iterator[Array]:
    """The columns of X, at most `size` at a time."""
    n = X.shape[1]
    return (X[:, i : min(i + size, n)] for i in range(0, n, size))


def coordinates(A: LinearOperator, n: int, size: int) -> Iterator[Array]:
    """All n coordinate vectors, at most `size` at a time."""
    for start in range(0, n, size):
        yield A.xp.eye(n, min(size, n - start), k=-start, dtype=A.dtype, device=A.device)


def width(A: LinearOperator, wanted: int | None) -> int:
    """Columns in a block: as asked, or as fit in memory on both sides of the factor."""
    return columns_at_once(A if A.factor is None else A.factor, wanted)


def exact_cost(A: LinearOperator) -> int:
    """Products that everything exact costs here: all columns, or those of a narrow factor."""
    return A.shape[0] if A.factor is None else min(A.factor.shape)


def diagonal_cost(A: LinearOperator) -> int:
    """Products from which the exact diagonal is no dearer."""
    known = A.exact and "diagonal" in A.exact
    return max(1, maker_price(A, "diagonal")) if known else exact_cost(A)


def exact_diagonal(A: LinearOperator, block_size: int | None) -> tuple[Array, int]:
    """The diagonal, and what it cost."""
    if A.exact and "diagonal" in A.exact:
        return A.exact["diagonal"](), maker_price(A, "diagonal")
    size, cost = width(A, block_size), exact_cost(A)
    if A.factor is not None and cost < A.shape[0]:
        parts = (_xp.abs2(A.factor.matmat(E)) for E in coordinates(A, cost, size))
        return total(A.xp.sum(part, axis=-1) for part in parts), cost
    return A.xp.concat([A.quad(E) for E in coordinates(A, cost, size)]), cost  # type: ignore[misc]


def outer_products(
    A: LinearOperator,
    m: int,
    form: Callable[[Array], Array],
    source: Source,
    probes: Probes,
    size: int,
    method: str,
    rank: int | None = None,
) -> Estimate:
    r"""The mean of what `form` makes of columns whose outer products average to :math:`A = L L^H`.

    The columns are L p. With a rank b, the range of :math:`L^H \Omega` with its orthonormal basis V
    is taken out: ``L V`` is summed exactly, and the columns are :math:`L (I - V V^H) p`. That is b
    products with L.H, b with L, and m - 2 b columns. `form` gives one entry a column, on its last
    axis.
    """
    L = A.factor
    assert L is not None
    n, P = L.shape
    b = (m // 3 if m >= DEFLATE_FROM else 0) if rank is None else rank
    b = min(b, P)
    V, known = None, None
    if b > 0:
        G = blocked(L.H.matmat, size)(_probes.normal(source, n, b))
        require_finite(G)
        V, _ = _xp.orthonormalise(G / _xp.magnitude(G))
        known = total(A.xp.sum(form(L.matmat(part)), axis=-1) for part in split(V, size))
    running = None
    for X in drawn(probes, source, P, m - 2 * b, size):
        X = X if V is None else X - V @ _xp.inner(V, X)
        running = add(running, form(L.matmat(X)))
    assert running is not None
    correction = _probes.finite_population(probes, m, P) if V is None else 1.0
    few = V is None and _probes.few_valued(probes, complex_=_xp.is_complex(A))
    return fitted(running, m, method, known=known, correction=correction, tie=0.75 if few else None)


def adjoint_sketch(
    A: LinearOperator, Omega: Array, size: int
) -> tuple[Array, Array, Array, Array, bool]:
    """``Q R = A Omega`` and ``Z = A^H Q``, their unit, and whether A is known to be Hermitian.

    Where A has no product with its adjoint, A has to be Hermitian, which the sketch shows; what
    eager code refuses is not a number in compiled code.
    """
    xp = A.xp
    Y = blocked(A.matmat, size)(Omega)
    require_finite(Y)
    scale = _xp.magnitude(Y)
    Q, R, _ = orthonormal_extension(Y / scale, Omega)
    G = _xp.inner(Omega, Y / scale)
    apart = xp.sum(_xp.abs2(G - _xp.adjoint(G)))
    skew = apart > _xp.eps(G) ** (2 / 3) * xp.sum(_xp.abs2(G))
    hermitian = not _xp.is_traced(skew) and not bool(skew)
    if A.rmatmat is not None:
        Z = blocked(A.rmatmat, size)(Q) / scale
        check_adjoint(_xp.inner(Z, Omega), R)
        return Q, R, Z, scale, hermitian
    if not _xp.is_traced(skew) and not hermitian:
        raise TypeError(
            "this operator is not Hermitian, as its products show, and has no product with its "
            "adjoint, which is needed here; pass rmatmat=, X -> A.H @ X, to LinearOperator"
            + inexactness(G)
        )
    Z = blocked(A.matmat, size)(Q) / scale
    return Q, R, xp.where(skew, xp.ones_like(Z) * math.nan, Z), scale, True


def total(parts: Iterator[Array]) -> Array:
    """The sum of arrays of one shape."""
    result = next(parts)
    for part in parts:
        result = result + part
    return result
