"""Means over columns of a factor that random probes make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from .._arrays import Array, Probes, conj, inner, is_complex, magnitude, orthonormalise
from .._estimates import Estimate, add, fitted, require_finite
from .._operators import LinearOperator, blocks, matvecs_per_column, split, total, width
from ..probes import Plan, Source, distributions

DEFLATE_FROM = 32  # columns through a factor from which a third goes into its range


def drawn(
    A: LinearOperator, probes: Probes, source: Source, n: int, m: int, size: int | None = None
) -> Iterator[Array]:
    """The m probes, in blocks that suit the operator; orthogonal ones are made in one go."""
    take, size = distributions.stream(probes, source, n, m), width(A) if size is None else size
    for k in blocks(m, m if probes is distributions.orthogonal else size):
        yield from split(take(k), size)


def outer_products(
    A: LinearOperator,
    m: int,
    form: Callable[[Array], Array],
    source: Source,
    probes: Probes,
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
        G = L.H.matmat(distributions.normal(source, n, b))
        require_finite(G, "diagonal", columns=G)
        V, _ = orthonormalise(G / magnitude(G))
        known = total(A.xp.sum(form(L.matmat(part)), axis=-1) for part in split(V, width(A)))
    running = None
    for X in drawn(A, probes, source, P, m - 2 * b):
        X = X if V is None else X - V @ inner(V, X)
        running = add(running, form(L.matmat(X)))
    assert running is not None
    correction = distributions.finite_population(probes, m, P) if V is None else 1.0
    few = V is None and distributions.few_valued(probes, complex_=is_complex(A))
    return fitted(running, m, method, known=known, correction=correction, tie=0.75 if few else None)


def in_draws(A: LinearOperator, m: int, source: Source, plan: Plan) -> Estimate:
    """The diagonal by probes that come in whole draws, each of which makes one sample of it."""
    each = matvecs_per_column(A)
    whole, running, count = plan.whole(m // each), None, 0
    take = plan.stream(source, A.shape[0], whole)
    at_once = whole if plan.nested else plan.size * max(1, width(A) // plan.size)
    for k in blocks(whole, at_once):
        Omega = take(k)
        samples = A.xp.mean(plan.draws(conj(Omega) * A.matmat(Omega)), axis=-1)
        running, count = add(running, samples), count + samples.shape[-1]
    assert running is not None
    tie = 0.5 if plan.signs and not is_complex(A) else None
    estimate = fitted(running, each * whole, "diagonal", tie=tie)
    return replace(estimate, reason=plan.says(count, each * whole, m))
