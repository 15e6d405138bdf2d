"""Stochastic Lanczos quadrature: spends a budget on a sketch, on Lanczos steps and on probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .._arrays import Array, Rng, abs2, coldot, is_differentiated, is_traced, to_host
from .._estimates import Estimate, finalize, of_probes, with_method
from .._operators import LinearOperator, counted, itemsize, matvecs_per_column, square
from .._runs import Callback, Run
from .._sketches import (
    FEWEST,
    LOOK_AHEAD,
    MEGABYTES,
    Arnoldi,
    ControlVariate,
    Krylov,
    Pairs,
    Space,
    Spaces,
    control_variate,
    deflated,
    dimension,
    gauss,
    is_independent,
    is_preconditioned,
    joined,
    lanczos,
    most_columns,
    rules,
    sketch_cost,
)
from ..functions import Function, inv, is_semidefinite, log, values
from ..probes import Source, description, distributions
from ..quadrature import Chebyshev, Lanczos
from .batch import evaluate
from .brackets import certified
from .growing import as_it_is, grown
from .near_zero import HIDDEN, allowing, conditioning, hidden
from .one_sketch import attempt
from .probing import by_draws, columns_of, require_plain
from .quadrature import (
    NOT_SETTLED,
    Depth,
    Verdict,
    and_slope,
    change_at_twice,
    combined,
    judged,
    judged_by_error,
    plainly,
    read,
    with_slope,
)
from .request import LEAST_DEPTH, PILOT, Request, Start, exactly, requested

PILOT_DEPTH = 6  # steps at which the first probes are first evaluated
DEFLATE_FROM = 100  # products: with fewer, a sketch leaves too little for probes
NEVER = 10**9  # steps
MAXIMUM_DEFAULT = 30  # steps where values are not known


def trace_estimate(
    A: Any,
    f: Function,
    num_matvecs: int | None,
    method: str,
    *,
    rng: Rng,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: Any = None,
    operator: LinearOperator | None = None,
    into: Callable[[Estimate], Estimate] = as_it_is,
    units: tuple[list[Array], ...] = (),
    **options: Any,
) -> Estimate:
    """What is made of the trace of f(A), or of several functions that f stacks on a first axis.

    A may be made of the caller's `operator`; its first products fix the `units`.
    """
    A = square(A, "function")
    run = Run.of(operator or A, num_matvecs, rng, rtol, atol, callback, checkpoint)
    quantity = "trace of f(A)"
    if hasattr(options.get("probes"), "plan"):
        run.refuse_looks("a trace of f(A) by probes in whole draws")
    if run.looks or run.begun:
        return grown(run, A, f, read, method, quantity, into=into, units=units, **options)
    request = requested(A, f, num_matvecs, **options)
    if request.is_affordable:
        return into(finalize(exactly(request, method), quantity=quantity))
    found = _in_draws if hasattr(request.probes, "plan") else within_bounds
    return into(finalize(found(request, rng, method)[0], quantity=quantity))


def _in_draws(request: Request, rng: Rng, method: str) -> tuple[Estimate, None]:
    """By probes in whole draws, at half as many steps again as a few plain signs need."""
    A, source, way = request.A, Source(rng, request.A), request.quadrature
    n, plan = A.shape[0], partial(distributions.plan, request.probes, source)
    require_plain(request.block, request.deflate, chebyshev=isinstance(way, Chebyshev))
    plan(n, max(request.budget // request.cost(request.depth or PILOT_DEPTH), 1))  # refuses early
    depth, left = Depth(request.depth or 0, request.depth == n), request.budget
    if request.depth is None:
        plain = request._replace(probes=distributions.rademacher, deflate=0)
        plain, start, _ = _first_probes(plain, source, None, 0)
        start, depth = choose_depth(plain, start)
        left -= start.spent + start.groups * request.cost(start.K.depth) + depth.num_matvecs
        if not depth.complete:
            depth = depth._replace(steps=min(depth.steps + depth.steps // 2, n), deep=None)
    cost = request.cost(depth.steps)
    draws = plan(n, max(left // cost, 1))
    assert draws is not None
    count = columns_of(draws, left, request.budget - left, cost)
    take, first = draws.stream(source, n, count), min(draws.size, count)
    spaces = Spaces(rules.begin(way, A, take(first)).advance(depth.steps), 0)
    spaces.grow(count - first, take, partial(rules.begin, way, A))
    spent, K = request.budget - left + count * cost, spaces.read()
    found = plainly(request.f, K, [], depth, request.probes, spent, method)
    found = by_draws(judged_by_error(found), draws, A, request.budget, depth.steps)
    told = found.reason if found.converged else f"{found.reason}; {NOT_SETTLED}"
    return replace(found, reason=told), None


def within_bounds(request: Request, rng: Rng, method: str) -> tuple[Estimate, Array | None]:
    """What `sampled` finds, begun again where an interval that was found is too narrow."""
    if not rules.needs_interval(request.quadrature):
        return sampled(request, rng, method)
    A, counter = counted(request.A)

    def found(margin: float) -> tuple[Estimate, Array | None]:
        again = request._replace(A=A, budget=request.budget - counter.total, margin=margin)
        estimate, terms = sampled(again, rng, method)
        # begun again, a generator has moved on: its probes are not known
        return replace(estimate, num_matvecs=counter.total, origin=None), terms

    return rules.widened(request.quadrature, found)


def sampled(request: Request, rng: Rng, method: str) -> tuple[Estimate, Array | None]:
    """The estimate, and for each probe a term of its gradient, if it may be asked for."""
    source = Source(rng, request.A)
    A, columns = request.A, _columns_that_fit(request) if request.leaves_choice else 0
    found, pairs, columns = attempt(
        A,
        request.f,
        request.budget,
        columns,
        source,
        shift=request.shift,
        gradient=request.gradient,
    )
    if found is not None:
        return with_method(found, method), None
    request, start, draw = _first_probes(request, source, pairs, columns)
    start = choose_deflation(request, start, source)
    start, depth = choose_depth(request, start)
    spent = start.spent + start.groups * request.cost(start.K.depth) + depth.num_matvecs
    unseen = 0.0
    if request.general and isinstance(start.K, Krylov) and not is_traced(start.K.seen):
        left = int(LOOK_AHEAD * (request.budget - spent)) if request.depth is None else 0
        unseen, further = hidden(start.K, left)
        spent += further
    more, f, cv = (request.budget - spent) // request.cost(depth.steps), request.f, start.cv
    crosses = request.deflate is None and not start.columns and is_independent(request.probes)
    crosses = crosses and start.K.held(2) == 2
    spaces = Spaces(start.K, most_columns(request.A) if crosses else 0)
    batches, terms = [], list[Array]()

    def each(K: Space, X: Array) -> None:
        if start.columns:
            batches.append(evaluate(f, cv, K, X, depth.steps, solves=request.gradient))
        if request.gradient:
            terms.append(_gradient_terms(request, cv, K, X))

    each(start.K, start.X)
    begin = partial(rules.begin, request.quadrature, start.K.operator, block=request.block)
    spaces.grow(more, draw, lambda X: begin(cv.start(X)), each)
    spent += more * request.cost(depth.steps)
    K, folds, probes = spaces.read(), spaces.folds(), request.probes
    if not start.columns:
        solves = request.gradient
        estimate = plainly(f, K, folds, depth, probes, spent, method, solves=solves)
    else:
        estimate = combined(f, cv, batches, folds, depth, probes, spent, method)
    estimate = judged_by_error(estimate)
    if cv.precondition is None and estimate.slope is None:
        estimate = with_slope(estimate, f, K, folds, depth, probes)
    elif cv.precondition is not None:  # the spaces are those of another operator
        xp, value = request.A.xp, estimate.value
        slope = (xp.full_like(value, request.A.shape[0]), xp.zeros_like(estimate.standard_error))
        if f is not log:
            slope = -value, estimate.standard_error
        estimate = replace(estimate, slope=slope[0], slope_error=slope[1])
    if request.bounds is not None:
        estimate = certified(estimate, f, K, request.bounds)
    estimate = allowing(estimate, unseen) if unseen else estimate
    reason = f"{spaces.groups * request.block} probes, depth {depth.steps}"
    reason += f", {start.columns} deflated" if start.columns else ""
    if request.general and not start.columns and not is_traced(K.seen):
        reason += f"; {conditioning(K)}"
    reason += f"; {HIDDEN}" if unseen else ""
    reason += "" if estimate.converged else f"; {NOT_SETTLED}"
    if not start.columns:  # a sketch is drawn before some of the probes
        n, m = request.A.shape[0], spaces.groups * request.block
        most = min(request.budget, n)
        estimate = of_probes(estimate, description.of_columns(probes, source, n, m, most))
    return replace(estimate, reason=reason), request.A.xp.concat(terms) if terms else None


def choose_deflation(request: Request, start: Start, source: Source) -> Start:
    """The start with a sketch, if that pays by the spectrum that the first probes see."""
    if start.columns or request.deflate is not None or is_traced(start.K.seen):
        return start
    if request.budget < DEFLATE_FROM or not is_semidefinite(request.f):
        return start
    depth = request.depth or _maximum_depth(request, start.groups, request.budget)
    K = start.K.advance(min(PILOT_DEPTH, depth))
    columns = _worthwhile(request, K)
    if not columns:
        return start._replace(K=K)
    A = lanczos.constant_operator(request.A) if request.gradient else request.A
    cv, spent = deflated(A, request.f, columns, source)
    if cv.precondition is not None:  # another operator: the first probes begin again
        spent += start.groups * request.block * lanczos.cost(A, K.depth)
        K = rules.begin(request.quadrature, cv.operator, cv.start(start.X), request.block)
        K = K.advance(1)
    return Start(cv, K, start.X, columns, spent)


def choose_depth(request: Request, start: Start) -> tuple[Start, Depth]:
    """The first spaces at the depth that all others will have, or deeper."""
    budget, complete = request.budget - start.spent, _complete_depth(request)
    chosen = request.depth is None and request.bounds is None  # probes may not depend on values
    if chosen and not is_traced(start.K.seen):
        K, depth = _settled(request, start, budget)
        return start._replace(K=K), depth
    steps = request.depth or _default_depth(request, start.groups, budget)
    K, settled = start.K.advance(steps), True
    if isinstance(K, Arnoldi):
        many = budget // request.cost(steps)
        settled = judged(request.f, evaluate(request.f, start.cv, K, None, steps), many).small
    return start._replace(K=K), Depth(steps, steps >= complete, settled)


def _first_probes(
    request: Request, source: Source, pairs: Pairs | None, sketched: int
) -> tuple[Request, Start, Callable[[int], Array]]:
    """The spaces of the first probes after a step, which shows if a gradient may be asked for."""
    A, b, columns = request.A, request.block, request.deflate or sketched
    cv, spent = ControlVariate(A), 0
    if pairs is not None:
        cv, spent = control_variate(A, request.f, pairs), columns * matvecs_per_column(A)
    elif columns:
        cv, spent = deflated(A, request.f, columns, source)
    draw = distributions.stream(request.probes, source, A.shape[0], min(request.budget, A.shape[0]))
    X = draw(_first_groups(request, request.budget - spent) * b)
    way, cost = rules.with_interval(
        request.quadrature, A, X, request.budget,
        semidefinite=is_semidefinite(request.f), margin=request.margin,
    )  # fmt: skip
    request, spent = request._replace(quadrature=way), spent + cost
    K = rules.begin(way, cv.operator, cv.start(X), b).advance(1)
    request = request._replace(gradient=request.gradient and is_differentiated(K.seen))
    if request.gradient:
        if K.held(2) != 2:
            raise ValueError(
                "the gradient takes the bases, which this quadrature does not keep; pass "
                "quadrature.lanczos(reorthogonalise=True)"
            )
        K = K.constant()
    each, left = request.cost(request.depth or 1), request.budget - spent
    if left < each:
        raise ValueError(
            f"num_matvecs={request.budget} leaves {left} products for probes of {each} each, that "
            "of the gradient included; pass more"
        )
    return request, Start(cv, K, X, columns, spent), draw


def _first_groups(request: Request, budget: int) -> int:
    """Groups to begin with: as few as have a spread, if that many are affordable."""
    b = request.block
    few = min(max(PILOT // b, 1), budget // (40 * b))
    least = FEWEST if budget >= FEWEST * LEAST_DEPTH else 2
    return max(1, min(max(few, -(-least // b)), budget // request.cost(request.depth or 1)))


def _complete_depth(request: Request) -> int:
    """Steps after which a Krylov space is all of the space."""
    if isinstance(request.quadrature, Chebyshev):
        return NEVER
    return -(-request.A.shape[0] // request.block)


def _maximum_depth(request: Request, groups: int, budget: int) -> int:
    """Steps that a budget allows so many groups, up to the dimension."""
    products = max(budget // (groups * request.block) - request.gradient_cost, 1)
    steps = products
    if request.A.factor is not None:
        lanczos_too = isinstance(request.quadrature, Lanczos)
        steps = max((products + lanczos_too) // 2, 1)
    return min(steps, _complete_depth(request))


def _default_depth(request: Request, groups: int, budget: int) -> int:
    """Steps where values are not known: for about eight probes."""
    few = max(-(-8 // request.block), groups)
    steps = max(_maximum_depth(request, few, budget), 3)
    return min(steps, _maximum_depth(request, groups, budget), MAXIMUM_DEFAULT)


def _settled(request: Request, start: Start, budget: int) -> tuple[Space, Depth]:
    """Steps until the rule of f(A) has settled, or as many as the budget allows.

    It has if it adds little to the error that the budget leaves at two depths in a row, and if
    some of the probes that go on to twice that depth change little.
    """
    K, most = start.K, _maximum_depth(request, start.groups, budget)
    f = request.f
    if is_differentiated(K.seen) and not start.columns:
        f = and_slope(f)
    depth, in_a_row, small_before = min(PILOT_DEPTH - 1, most), 0, False
    while True:
        K = K.advance(depth)
        if depth >= _complete_depth(request):
            return K, Depth(depth, complete=True)
        batch = evaluate(f, start.cv, K, start.X, depth, solves=request.gradient)
        verdict = judged(f, batch, max(budget * request.block // request.cost(depth), 1))
        fine, small = (bool(request.A.xp.all(x)) for x in (verdict.fine, verdict.small))
        in_a_row = in_a_row + 1 if fine and verdict.solved else 0
        if in_a_row == 2:
            left = budget - start.groups * request.cost(depth)
            K, found = _at_twice(request, f, start._replace(K=K), verdict, left, most)
            if found is not None:
                return K, found
            depth, in_a_row = K.depth, 0
        elif depth == most:
            return K, Depth(depth, settled=fine or (small and small_before))
        else:
            small_before = small
            depth = min(depth + max(1, depth // 6), most)


def _at_twice(
    request: Request, f: Function, start: Start, verdict: Verdict, left: int, most: int
) -> tuple[Space, Depth | None]:
    """The depth, if some of the probes change little at twice of it; else all spaces at that."""
    K, depth, groups = start.K, start.K.depth, start.groups
    few, twice = min(groups, -(-2 // request.block)), min(2 * depth, _complete_depth(request))
    further = few * (request.cost(twice) - request.cost(depth))
    if further > LOOK_AHEAD * left:
        return K, Depth(depth)
    deep = K.select(slice(few)).advance(twice)
    change = change_at_twice(f, deep, depth)
    fine = bool(request.A.xp.all(change <= verdict.allowed))
    if fine or twice > most:
        return K, Depth(depth, settled=fine, deep=deep.without_basis(), num_matvecs=further)
    if few == groups:
        return deep, None
    others = K.select(slice(few, None)).advance(twice)
    return joined([deep, others]), None


def _worthwhile(request: Request, K: Any) -> int:
    """Columns to sketch, by the spectral density of the first probes; 0 where that does not pay.

    A sketch for half of the budget is taken to capture half as many of the outermost eigenvalues as
    it has columns. The variance of what is left, over what may be spent on it, is to be less than
    half of that without a sketch.
    """
    A, f = request.A, request.f
    nodes, M = gauss.rule(K)
    at = values(f, nodes, squared=A.factor is not None)
    n, m, count = A.shape[0], request.budget, K.groups * request.block
    if is_preconditioned(f):  # the first probes begin again
        m -= count * lanczos.cost(A, K.depth)
    most = m - K.groups * request.cost(request.depth or K.depth)
    shares = to_host(A.xp.sum(abs2(M), axis=-2)).ravel()
    x, weight = to_host(nodes).ravel(), shares * (n / shares.sum())
    y = to_host(at).reshape(-1, x.size)
    y = y / np.maximum(np.abs(y).max(axis=-1, keepdims=True), np.finfo(float).tiny)
    order = np.argsort(-x if is_semidefinite(f) else -np.abs(x - np.average(x, weights=weight)))
    y, weight = y[:, order], weight[order]
    seen = np.cumsum(weight)
    most_columns = _columns_that_fit(request) // dimension(f, 1)

    def variance(captured: float, products: int) -> float:
        left = np.clip(seen - captured, 0, weight) + 1e-4 * weight
        center = (y * left).sum(axis=-1, keepdims=True) / left.sum()
        return float(np.max((np.abs(y - center) ** 2 * left).sum(axis=-1) / whole) / (m - products))

    center = (y * weight).sum(axis=-1, keepdims=True) / n
    whole = (np.abs(y - center) ** 2 * weight).sum(axis=-1)
    if not whole.min() > 0:
        return 0
    products = min(m // 2, most)
    b = min(products // sketch_cost(A, f), most_columns)
    pays = b > 1 and variance(b / 2, products) < 0.5 / request.budget
    return b if pays else 0


def _columns_that_fit(request: Request) -> int:
    """Columns of a sketch, at most, whose memory is bounded."""
    n = request.A.shape[0]
    return min(n // 2, MEGABYTES * 2**20 // (n * itemsize(request.A)))


def _gradient_terms(request: Request, cv: ControlVariate, K: Any, X: Array) -> Array:
    """``y^H A omega`` with ``y = A^{-1} omega`` constant, whose derivative is that of log det A."""
    solved = cv.applied(gauss.applied(K, inv))
    return coldot(solved, request.A.matmat(cv.applied(X)))
