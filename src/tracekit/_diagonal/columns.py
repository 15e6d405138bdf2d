"""Means over columns that random probes make: of an operator, and of its factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .._arrays import Array, Probes, Rng, conj, inner, is_complex, magnitude
from .._estimates import Estimate, Running, add, fitted, require_finite
from .._operators import LinearOperator, blocks, itemsize, matvecs_per_column, split, width
from .._runs import Callback, Paused, Run
from .._sketches import orthonormal_extension
from ..probes import Plan, Source, distributions

DEFLATE_FROM = 32  # columns through a factor from which a third goes into its range
KEPT, MOST = 2**26, 2**29  # bytes of columns that wait for a larger range: of a budget, else

Steps = tuple[Callable[[Any, int], Any], Callable[[Any], Estimate]]  # extend, and read


def is_exact(
    budget: int | None,
    cost: int,
    rng: Rng,
    rtol: float,
    atol: float,
    callback: Callback | None,
    checkpoint: Any,
) -> bool:
    """Whether nothing but the exact value is asked for, so that nothing is to be drawn."""
    looks = rtol != 0 or atol != 0 or callback is not None or checkpoint is not None
    return not looks and not isinstance(rng, Paused) and (budget is None or budget >= cost)


def begun(
    A: LinearOperator,
    budget: int | None,
    rng: Rng,
    rtol: float,
    atol: float,
    callback: Callback | None,
    checkpoint: Any,
    *,
    entrywise: bool,
) -> Run:
    """The call; without a budget nothing bounds it but the exact value."""
    unbounded = budget is None and not isinstance(rng, Paused)
    some = 1 if unbounded else budget
    run = Run.of(A, some, rng, rtol, atol, callback, checkpoint, entrywise=entrywise)
    if unbounded:
        run.budget = math.inf
    return run


def drawn(
    run: Run, probes: Probes, n: int | None, most: float, size: int
) -> Callable[[int], Iterator[Array]]:
    """A function of the next k probes, in blocks; orthogonal ones are made in one go."""
    take: Callable[[int], Array] | None = None

    def parts(k: int) -> Iterator[Array]:
        nonlocal take
        take = take or run.stream(probes, most, n)
        for columns in blocks(k, k if probes is distributions.orthogonal else size):
            yield from split(take(columns), size)

    return parts


def means(
    run: Run,
    probes: Probes,
    sample: Callable[[Array], tuple[Array, ...]],
    method: str,
    cost: float,
    **told: Any,
) -> Steps:
    """Samples of an operator, fitted with these options; `cost` is that of the exact value."""
    n = run.A.shape[0]
    parts = drawn(run, probes, None, min(run.budget, cost), width(run.A))

    def extend(running: Running | None, k: int) -> Running:
        for Omega in parts(k):
            running = add(running, *sample(Omega))
        assert running is not None
        return running

    def read(running: Running) -> Estimate:
        correction = distributions.finite_population(probes, running.count, n)
        return fitted(running, running.count, method, correction=correction, **told)

    return extend, read


class Beside(NamedTuple):
    """A range of a factor with its part, what probes beside it gave, and these while they fit."""

    running: Running | None
    basis: Array | None
    known: Array | None
    probes: Array | None
    products: Array | None


def outer_products(
    run: Run,
    A: LinearOperator,
    form: Callable[[Array], Array],
    probes: Probes,
    method: str,
    cost: float,
    rank: int | None = None,
) -> Steps:
    r"""The mean of what `form` makes of columns whose outer products average to :math:`A = L L^H`.

    The columns are L p. With b columns V, an orthonormal basis of the range of :math:`L^H \Omega`,
    that range is taken out: ``L V`` is summed exactly, and the columns are
    :math:`L (I - V V^H) p`. That is b products with L.H, b with L, and m - 2 b columns. `form`
    gives one entry a column, on its last axis.

    As the budget grows so does V, which is a third of it; columns that were made before are then
    projected anew, without a product. A `rank` is that of V, whose products are none of the run's.
    """
    L = A.factor
    assert L is not None
    (n, P), size = L.shape, width(A)
    joint = bool(getattr(probes, "joint", False))
    least = 0 if rank is not None or run.looks else 2 * min(_third(run.budget), P)
    parts = drawn(run, probes, P, min(run.budget - least, cost), size)
    room = (MOST if run.looks else KEPT) // ((n + P) * itemsize(A))

    def extend(before: Beside | None, k: int) -> Beside:
        now = before or Beside(None, None, None, None, None)
        waits = rank is None and not joint and (before is None or now.products is not None)
        if rank is not None:
            more = min(rank, P) if before is None else 0
        else:
            more = min(_third(run.count + k), P) - _columns(now.basis)
            more = max(0, min(more, k // 2)) if before is None or waits else 0
            k -= 2 * more
        if more > 0:
            now = _widened(run, A, now, more, form)
        running, kept = now.running, []
        if waits and (held := _columns(now.products)) + k <= room:
            kept = [(now.probes, now.products)] if held else []
        else:
            waits = False
        for X in parts(k):
            X = X if now.basis is None else X - now.basis @ inner(now.basis, X)
            Y = L.matmat(X)
            running = add(running, form(Y))
            if waits:
                kept.append((X, Y))
        X, Y = (_beside(A, each) for each in zip(*kept, strict=True)) if kept else (None, None)
        return Beside(running, now.basis, now.known, X, Y)

    def read(state: Beside) -> Estimate:
        assert state.running is not None
        plain, few = state.basis is None, distributions.few_valued(probes, complex_=is_complex(A))
        spent = run.count + (0 if rank is None else 2 * _columns(state.basis))
        return fitted(
            state.running,
            spent,
            method,
            known=state.known,
            correction=distributions.finite_population(probes, spent, P) if plain else 1.0,
            tie=0.75 if plain and few else None,
        )

    return extend, read


def _widened(
    run: Run, A: LinearOperator, now: Beside, more: int, form: Callable[[Array], Array]
) -> Beside:
    """The basis with more columns, and the probes that are kept beside it."""
    L, (_, V, known, X, Y) = A.factor, now
    assert L is not None
    G = L.H.matmat(distributions.normal(run.source, L.shape[0], more))
    require_finite(G, "diagonal", columns=G)
    jitter = None if V is None else run.source.signs((L.shape[1], more))
    new, _, _ = orthonormal_extension(G / magnitude(G), jitter, V)
    for part in split(new, width(A)):
        product = L.matmat(part)
        own = A.xp.sum(form(product), axis=-1)
        known = own if known is None else known + own
        if X is not None:
            across = inner(part, X)
            X, Y = X - part @ across, Y - product @ across
    running = None
    for part in [] if Y is None else split(Y, width(A)):
        running = add(running, form(part))
    return Beside(running, new if V is None else A.xp.concat([V, new], axis=1), known, X, Y)


def _beside(A: LinearOperator, parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else A.xp.concat(list(parts), axis=1)


def _third(m: float) -> int:
    return int(m) // 3 if DEFLATE_FROM <= m < math.inf else 0


def _columns(X: Array | None) -> int:
    return 0 if X is None else int(X.shape[1])


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
