"""Stochastic Lanczos quadrature: samples of tr f(A), and both errors of their mean."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .._arrays import (
    Array,
    Probes,
    colnorm2,
    conj,
    eps_of,
    is_traced,
    namespace,
    positive,
    real,
    to_number,
)
from .._estimates import ErrorParts, Estimate, finalize, mean, standard_error
from .._sketches import Fold, Krylov, Observed, Spaces, lanczos
from ..functions import Function, inv, is_semidefinite, values
from ..probes import distributions
from .deflation import ControlVariate, cross_fit

SAFETY = 2.5  # convergence may slow down from what the last steps show
QUADRATURE = 0.5  # of the Monte Carlo error, that of the quadrature may be
SHARE = 0.1  # of the trace of |f|(A), an error that tells that the rule has not seen the spectrum
APART = 4  # residuals between a Ritz value and the next that make it stand apart
SOLVED = 0.01  # relative error of a solve that is good enough for any gradient
NOT_SETTLED = "the quadrature has not settled at this depth, so the error is not known; pass more"
ROUNDING = 50  # in units of eps: below that changes of forms are rounding


class Depth(NamedTuple):
    """How many steps the quadrature took, and whether they suffice."""

    steps: int
    complete: bool = False  # the Krylov spaces are the whole space
    settled: Array | bool = True  # for each function, as far as that was judged
    deep: Krylov | None = None  # some of the spaces at twice the depth
    num_matvecs: int = 0  # that were used at twice the depth


class Batch(NamedTuple):
    """What the rule of so many steps says of each probe."""

    residuals: Array  # of the control variate
    shorter: tuple[Array, ...]  # the same by up to two shorter rules
    energy: Array | None  # of the probes in the range of the control variate
    forms: Array  # of f(A) itself
    size: Array  # the forms of |f|(A)
    unresolved: Array  # what clusters that one node stands for leave open
    ends: Array  # how much f may change where the outermost Ritz values still move
    solves: Solves | None  # where a gradient is made of them


class Solves(NamedTuple):
    """What Lanczos of so many steps says of ``A^-1 x`` for each probe."""

    forms: Array  # x^H A^-1 x
    changes: list[Array]  # since shorter rules, relative


class Verdict(NamedTuple):
    """What is said of a depth, for each function."""

    fine: Array  # the rule adds little to the error of the probes
    small: Array  # its error is small relative to the trace of |f|(A)
    solved: bool  # and so are those of the solves that a gradient is made of
    allowed: Array  # what the rule may add


def evaluate(
    f: Function,
    cv: ControlVariate,
    K: Krylov,
    X: Array | None,
    depth: int,
    *,
    solves: bool = False,
) -> Batch:
    """The rule of so many steps, and of up to two shorter ones, for probes X.

    Probes are read where the control variate is more than the operator.
    """
    depths = _and_shorter(depth)

    def at(x: Array) -> Array:
        return values(f, x, squared=K.operator.factor is not None)

    found = [lanczos.samples(K, steps, at) for steps in depths]
    nodes, M = lanczos.rule(K, depth)
    xp = namespace(nodes)
    unresolved, ends = _local_errors(f, K, depth)
    low, high = (_each_probe(end(nodes, axis=-1), K.block) for end in (xp.min, xp.max))
    beyond = cv.beyond(X, low, high)
    residuals, *shorter = (cv.residuals(x, X) for x in found)
    return Batch(
        residuals,
        tuple(shorter),
        cv.energy(X),
        found[0],
        lanczos.forms(nodes, M, xp.abs(at(nodes))),
        unresolved if beyond is None else unresolved + beyond,
        ends,
        _solves(K, depths) if solves else None,
    )


def quadrature_error(batches: list[Batch], complete: bool) -> Array:
    """How far shorter rules were off, carried on geometrically, and what is not resolved.

    Infinite where there is no shorter rule, or where the changes grow.
    """
    first = batches[0].residuals
    xp = namespace(first)
    zero = xp.zeros_like(real(first[..., 0]))
    if complete:
        return zero
    if not batches[0].shorter:
        return zero + math.inf

    def change(i: int) -> Array:
        rules = [(batch.residuals, *batch.shorter) for batch in batches]
        return _average([xp.abs(x[i] - x[i + 1]) for x in rules])

    rounding = ROUNDING * eps_of(zero) * _average([batch.size for batch in batches])
    changes = [change(i) for i in range(len(batches[0].shorter))]
    return _carried_on(changes, rounding) + _average([batch.unresolved for batch in batches])


def change_at_twice(f: Function, deep: Krylov, depth: int) -> Array:
    """How far the mean over some probes moves as they go on to more steps."""

    def at(x: Array) -> Array:
        return values(f, x, squared=deep.operator.factor is not None)

    after, before = (lanczos.samples(deep, steps, at) for steps in (deep.depth, depth))
    return _change(after, before)


def solve_error(batches: list[Batch]) -> Array | None:
    """The relative error of the solves, as that of the quadrature."""
    solves = [batch.solves for batch in batches if batch.solves is not None]
    if not solves:
        return None
    forms, changes = solves[0]
    if not changes:
        return real(forms[0]) * 0 + math.inf
    found = [_average([x.changes[i] for x in solves]) for i in range(len(changes))]
    return _carried_on(found, ROUNDING * eps_of(found[0]))


def judged(f: Function, batch: Batch, total: int) -> Verdict:
    """Whether a depth will do for so many probes.

    The spread of the residuals alone is no measure: a sketch with eigenvalues that the rule has not
    seen makes it large. So the error of the rule is compared with f(A) itself, too.
    """
    xp = namespace(batch.size)
    count, size = batch.residuals.shape[-1], xp.mean(batch.size, axis=-1)
    rounding = ROUNDING * eps_of(size) * size
    part = QUADRATURE * (count / total) ** 0.5
    allowed = xp.minimum(standard_error(batch.residuals) * part, SHARE * size)
    allowed = xp.maximum(allowed, rounding)
    error = quadrature_error([batch], complete=False)
    small = error <= SHARE * size
    if not is_semidefinite(f):  # next to a singularity the edge of a bulk never rests
        small = small & (xp.mean(batch.ends, axis=-1) <= xp.maximum(SHARE * size, rounding))
    solved, off = True, solve_error([batch])
    if batch.solves is not None and off is not None:
        forms = real(batch.solves.forms)
        spread = to_number(standard_error(forms) / xp.mean(forms)).real * part
        solved = bool(off <= max(min(spread, SHARE), SOLVED))
    return Verdict(small & (error <= allowed), small, solved, allowed)


def combined(
    f: Function,
    cv: ControlVariate,
    batches: list[Batch],
    folds: list[Fold],
    depth: Depth,
    probes: Probes,
    spent: int,
    method: str,
    *,
    change: Array | None = None,
) -> Estimate:
    """The mean of the samples, with the errors of both kinds."""
    xp, n = cv.operator.xp, cv.operator.shape[0]
    residuals = xp.concat([batch.residuals for batch in batches], axis=-1)
    energy = [batch.energy for batch in batches if batch.energy is not None]
    samples = cv.samples(residuals, xp.concat(energy) if energy else None)
    samples, factor = cross_fit(f, samples, folds, squared=cv.operator.factor is not None)
    found = mean(
        samples,
        spent,
        method,
        correction=distributions.finite_population(probes, samples.shape[-1], n),
        independent=not (folds or getattr(probes, "joint", False)),
    )
    monte_carlo = found.standard_error * factor
    quadrature = quadrature_error(batches, complete=depth.complete)
    if depth.deep is not None:
        change = change_at_twice(f, depth.deep, depth.steps)
    if change is not None:
        quadrature = xp.maximum(quadrature, change)
    if depth.settled is not True:
        size = xp.mean(xp.concat([batch.size for batch in batches], axis=-1), axis=-1)
        if cv.exact_part is not None and cv.surrogate is None:
            size = size + xp.abs(cv.exact_part)
        nothing = (quadrature > SHARE * size) | (size == 0)
        unknown = xp.where(nothing, xp.full_like(size, math.inf), size)
        quadrature = xp.where(depth.settled, quadrature, xp.hypot(quadrature, unknown))
    both = xp.hypot(monte_carlo, quadrature)
    return replace(
        found,
        standard_error=both,
        converged=depth.settled is True or bool(xp.all(depth.settled)),
        kept=ErrorParts(monte_carlo, quadrature, solve_error(batches)),
    )


def read(
    f: Function, spaces: Spaces, probes: Probes, spent: int, method: str, plain: bool
) -> Estimate:
    """The trace of f(A), or that of O f(A) where there is an observable O and nothing plain asked.

    The depth is enough where the error of the rule is small at two depths, and the change of some
    of the probes at twice the depth; all of that is part of the standard error.
    """
    K, depth = spaces.read(), spaces.depth
    A, observed = K.operator, None if plain else spaces.observed

    def batch(steps: int) -> Batch:
        found = evaluate(f, ControlVariate(A), K, None, steps)
        return found if observed is None else _observed(f, observed, K, steps, found)

    at, complete, settled = batch(depth), depth >= A.shape[0], True
    change: Array | None = None
    if observed is not None:
        twice = observed.at_twice(f, spaces.deep, depth)
        change = None if twice is None else _change(*twice)
    elif spaces.deep is not None:
        change = change_at_twice(f, spaces.deep, depth)
    if not complete and not is_traced(at.size):
        before, count = batch(max(depth - max(1, depth // 6), 1)), at.residuals.shape[-1]
        settled = judged(f, at, count).small & judged(f, before, count).small
        if change is not None:
            settled = settled & (change <= SHARE * A.xp.mean(at.size, axis=-1))
    folds = spaces.folds() if spaces.observed is None else []
    known = Depth(depth, complete, settled)
    found = combined(f, ControlVariate(A), [at], folds, known, probes, spent, method, change=change)
    if observed is None:
        found = with_slope(found, f, K, folds, known, probes)
    reason = f"{spaces.groups} probes, depth {depth}"
    reason += "" if found.converged else f"; {NOT_SETTLED}"
    return finalize(replace(found, reason=reason), quantity="trace of f(A)")


def with_slope(
    found: Estimate, f: Function, K: Krylov, folds: list[Fold], depth: Depth, probes: Probes
) -> Estimate:
    """The estimate with the derivative by the scale of A, where f has one and values are known."""
    if is_traced(found.value):
        return found
    A, f, K = K.operator, _by_scale(f), lanczos.constant_space(K)
    try:
        batch = evaluate(f, ControlVariate(A), K, None, depth.steps)
        slope = combined(f, ControlVariate(A), [batch], folds, depth, probes, 0, "")
    except ValueError:  # of a function that has no value beside an eigenvalue
        return found
    return replace(found, slope=slope.value, slope_error=slope.standard_error)


def _by_scale(f: Function) -> Function:
    """The function ``x f'(x)``, by differences of fourth order."""

    def slope(x: Array) -> Array:
        h = eps_of(x) ** 0.2
        near, far = (f(x * (1 + t)) - f(x * (1 - t)) for t in (h, 2 * h))
        return (8 * near - far) / (12 * h)

    for name in ("positive", "nonnegative"):
        setattr(slope, name, getattr(f, name, False))
    return slope


def _observed(f: Function, observed: Observed, K: Krylov, depth: int, plain: Batch) -> Batch:
    """What the rule of so many steps says of the traces of O f(A)."""
    xp = namespace(plain.forms)
    forms, *shorter = (observed.forms(f, K, steps) for steps in _and_shorter(depth))
    norm = observed.norm
    return plain._replace(
        residuals=forms,
        shorter=tuple(shorter),
        forms=forms,
        size=xp.abs(forms),
        unresolved=plain.unresolved * norm,
        ends=plain.ends * norm,
    )


def _change(after: Array, before: Array) -> Array:
    """Of a mean over probes."""
    xp = namespace(after)
    return SAFETY * xp.abs(xp.mean(after - before, axis=-1))


def _and_shorter(depth: int) -> list[int]:
    """A depth, and up to two lesser ones whose rules it is compared with."""
    step = max(1, depth // 4)
    return [steps for steps in (depth, depth - step, depth - 2 * step) if steps >= 1]


def _carried_on(changes: list[Array], rounding: Array | float) -> Array:
    """The error that the changes since shorter rules show, if they go on to shrink as they did.

    Infinite where they grow, unless by rounding.
    """
    last = changes[0]
    if len(changes) < 2:
        return last
    xp = namespace(last)
    ratio = last / positive(changes[1])
    grows = ratio >= 1
    ratio = xp.where(ratio > 0.9, xp.full_like(ratio, 0.9), ratio)
    error = SAFETY * last * ratio / (1 - ratio)
    error = xp.where(grows, xp.full_like(error, math.inf), error)
    return xp.where(last <= rounding, xp.zeros_like(error), error)


def _average(parts: list[Array]) -> Array:
    """Over all probes."""
    xp = namespace(parts[0])
    return xp.mean(xp.concat(parts, axis=-1), axis=-1)


def _solves(K: Krylov, depths: list[int]) -> Solves:
    xp = namespace(K.rest)
    found = [lanczos.coordinates(K, steps, inv) for steps in depths]
    size = xp.sqrt(colnorm2(found[0]))
    forms = xp.sum(conj(K.below[0]) * found[0][:, : K.block, :], axis=-2)

    def change(C: Array, shorter: Array) -> Array:
        same = shorter.shape[1]
        square = colnorm2(C[:, :same, :] - shorter) + colnorm2(C[:, same:, :])
        return xp.reshape(xp.sqrt(square) / positive(size), (-1,))

    return Solves(xp.reshape(forms, (-1,)), [change(*pair) for pair in pairwise(found)])


def _local_errors(f: Function, K: Krylov, depth: int) -> tuple[Array, Array]:
    """For each probe: what clusters leave open, and what the outermost Ritz values do.

    From the rule of a step less, whose residuals are known. A Ritz value that stands apart from its
    neighbours by more than its residual allows may stand for a cluster: the residual is the spread
    of that, and the Gauss rule of two points with that spread says
    what it is worth. An outermost Ritz value moves by its residual at most; by the square of that
    over its distance from the next one, if this is larger.
    """
    xp, depth = namespace(K.rest), max(depth - 1, 1)
    if K.depth <= depth:
        zero = xp.zeros_like(real(K.rest[:, 0, :]))
        zero = xp.reshape(zero, (-1,))
        return zero + math.inf, zero + math.inf
    nodes, M, rho = lanczos.residuals(K, depth)
    bounded = is_semidefinite(f)
    nodes = xp.where(nodes < 0, xp.zeros_like(nodes), nodes) if bounded else nodes
    steps = xp.abs(nodes[:, 1:] - nodes[:, :-1])
    far = xp.full_like(nodes[:, :1], math.inf)
    gap = xp.minimum(xp.concat([far, steps], axis=-1), xp.concat([steps, far], axis=-1))
    move = rho * xp.minimum(xp.ones_like(rho), rho / positive(gap - rho))
    move = xp.where(gap > rho, move, rho)
    least = nodes == xp.min(nodes, axis=-1, keepdims=True)
    most = nodes == xp.max(nodes, axis=-1, keepdims=True)
    # two points with the mean and the spread of the cluster, the lower one in the domain of f
    narrow = xp.ones_like(rho)
    if bounded:
        room = xp.maximum(nodes / (2 * positive(rho)), eps_of(rho) * narrow)
        narrow = xp.minimum(narrow, room)
    share = narrow * narrow / (1 + narrow * narrow)
    with np.errstate(all="ignore"):
        at = f(nodes)
        pair = (1 - share) * f(nodes - rho * narrow) + share * f(nodes + rho / narrow)
        down, up = f(nodes - move), f(nodes + move)

    def change(moved: Array, where: Array) -> Array:
        size = xp.abs(moved - at)
        size = xp.where(xp.isfinite(size), size, xp.abs(at))
        return lanczos.forms(nodes, M, xp.where(where, size, xp.zeros_like(size)))

    apart = (gap > APART * rho) & (rho > 0)
    ends = change(down, least) + change(up, most)
    blind = xp.all(at == 0, axis=-1) & xp.any(rho > 0, axis=-1)  # f may begin beyond what is seen
    unknown = xp.where(blind, math.inf + 0 * at[..., 0], 0 * at[..., 0])
    return change(pair, apart), ends + _each_probe(xp.abs(unknown), K.block)


def _each_probe(x: Array, block: int) -> Array:
    """A number of each group as one of each of its probes."""
    xp = namespace(x)
    return xp.reshape(xp.stack([x] * block, axis=-1), (*x.shape[:-1], -1))
