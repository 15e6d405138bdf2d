"""Stochastic Lanczos quadrature: samples of tr f(A), and both errors of their mean."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from .._arrays import (
    Array,
    Probes,
    eps_of,
    is_differentiated,
    is_traced,
    namespace,
    positive,
    real,
    to_number,
)
from .._estimates import ErrorParts, Estimate, finalize, mean, standard_error
from .._sketches import (
    Arnoldi,
    ControlVariate,
    Fold,
    Krylov,
    Observed,
    Space,
    Spaces,
    cross_fit,
    samples,
)
from ..functions import Function, applied, is_semidefinite, values
from ..probes import distributions
from .batch import ROUNDING, Batch, evaluate, shorter_depths

SAFETY = 2.5  # convergence may slow down from what the last steps show
QUADRATURE = 0.5  # of the Monte Carlo error, that of the quadrature may be
SHARE = 0.1  # of the trace of |f|(A), an error that tells that the rule has not seen the spectrum
SLIGHT = 0.01  # of the trace of |f|(A), what rounding may be worth to be taken for the error
SOLVED = 0.01  # relative error of a solve that is good enough for any gradient
NOT_SETTLED = "the quadrature has not settled at this depth, so the error is not known; pass more"


class Depth(NamedTuple):
    """How many steps the quadrature took, and whether they suffice."""

    steps: int
    complete: bool = False  # the Krylov spaces are the whole space
    settled: Array | bool = True  # for each function, as far as that was judged
    deep: Space | None = None  # some of the spaces at twice the depth
    num_matvecs: int = 0  # that were used at twice the depth


class Verdict(NamedTuple):
    """What is said of a depth, for each function."""

    fine: Array  # the rule adds little to the error of the probes
    small: Array  # its error is small relative to the trace of |f|(A)
    solved: bool  # and so are those of the solves that a gradient is made of
    allowed: Array  # what the rule may add


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

    size = _average([batch.size for batch in batches])
    rounding = ROUNDING * eps_of(zero) * size
    changes = [change(i) for i in range(len(batches[0].shorter))]
    error = _carried_on(changes, rounding)
    moved = [batch.rounding for batch in batches if batch.rounding is not None]
    if moved:  # changes that rounding of the nodes explains say nothing of growth
        known = _average(moved)
        explained = (changes[0] <= known) & (known <= SLIGHT * size)
        error = xp.where(explained, xp.minimum(error, known), error)
    return error + _average([batch.unresolved for batch in batches])


def change_at_twice(f: Function, deep: Space, depth: int) -> Array:
    """How far the mean over some probes moves as they go on to more steps."""

    def at(x: Array) -> Array:
        return values(f, x, squared=deep.operator.factor is not None)

    g = f if isinstance(deep, Arnoldi) else at
    after, before = (samples(deep, steps, g) for steps in (deep.depth, depth))
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
    cv_samples = cv.samples(residuals, xp.concat(energy) if energy else None)
    averaged, factor = cross_fit(f, cv_samples, folds, squared=cv.operator.factor is not None)
    found = mean(
        averaged,
        spent,
        method,
        correction=distributions.finite_population(probes, averaged.shape[-1], n),
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
        unsettled = xp.hypot(quadrature, unknown)
        flags = depth.settled
        quadrature = unsettled if flags is False else xp.where(flags, quadrature, unsettled)
    both = xp.hypot(monte_carlo, quadrature)
    settled = depth.settled if isinstance(depth.settled, bool) else bool(xp.all(depth.settled))
    return replace(
        found,
        standard_error=both,
        converged=settled,
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

    complete = isinstance(K, Krylov) and depth >= A.shape[0]
    at, settled = batch(depth), True
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
    if observed is None:
        known = known._replace(deep=spaces.deep)
        found = plainly(f, K, folds, known, probes, spent, method, at=at)
    else:
        cv = ControlVariate(A)
        found = combined(f, cv, [at], folds, known, probes, spent, method, change=change)
    found = judged_by_error(found)
    reason = f"{spaces.groups * K.block} probes, depth {depth}"
    reason += "" if found.converged else f"; {NOT_SETTLED}"
    return finalize(replace(found, reason=reason), quantity="trace of f(A)")


def judged_by_error(found: Estimate) -> Estimate:
    """The estimate, not converged where the error of its quadrature is not known."""
    quadrature = found.kept.quadrature
    known = is_traced(quadrature) or bool(namespace(quadrature).all(quadrature < math.inf))
    return found if known else replace(found, converged=False)


def plainly(
    f: Function,
    K: Space,
    folds: list[Fold],
    depth: Depth,
    probes: Probes,
    spent: int,
    method: str,
    *,
    at: Batch | None = None,
    solves: bool = False,
) -> Estimate:
    """What spaces of the operator itself say of f, and of its slope, where values are known."""
    cv = ControlVariate(K.operator)

    def say(g: Function, batch: Batch) -> Estimate:
        return combined(g, cv, [batch], folds, depth, probes, spent, method)

    if not (isinstance(K, Arnoldi) or is_differentiated(K.seen) or solves):
        g = and_slope(f)
        try:
            both = say(g, evaluate(g, cv, K, None, depth.steps))
        except ValueError:  # f has no value beside an eigenvalue; or none there, told below
            pass
        else:
            return _split(both)
    return say(f, at or evaluate(f, cv, K, None, depth.steps, solves=solves))


def with_slope(
    found: Estimate, f: Function, K: Space, folds: list[Fold], depth: Depth, probes: Probes
) -> Estimate:
    """The estimate with the slope that the spaces say, without derivatives."""
    if is_traced(found.value) or isinstance(K, Arnoldi):
        return found
    plain = plainly(f, K.constant(), folds, depth, probes, 0, "")
    return replace(found, slope=plain.slope, slope_error=plain.slope_error)


def and_slope(f: Function) -> Function:
    """The function and ``x f'(x)``, by differences of fourth order, along a new first axis."""

    def both(x: Array) -> Array:
        h = eps_of(x) ** 0.2
        near, far = (applied(f, x * (1 + t)) - applied(f, x * (1 - t)) for t in (h, 2 * h))
        return namespace(x).stack([applied(f, x), (8 * near - far) / (12 * h)])

    for name in ("positive", "nonnegative"):
        setattr(both, name, getattr(f, name, False))
    return both


def _split(both: Estimate) -> Estimate:
    """The estimate of a function, and its slope beside it."""
    parts = both.kept
    assert both.samples is not None
    return replace(
        both,
        value=both.value[0, ...],
        standard_error=both.standard_error[0, ...],
        samples=both.samples[0, ...],
        skewness=None if both.skewness is None else both.skewness[0, ...],
        slope=both.value[1, ...],
        slope_error=both.standard_error[1, ...],
        kept=ErrorParts(parts.monte_carlo[0, ...], parts.quadrature[0, ...], parts.solves),
    )


def _observed(f: Function, observed: Observed, K: Space, depth: int, plain: Batch) -> Batch:
    """What the rule of so many steps says of the traces of O f(A)."""
    xp = namespace(plain.forms)
    forms, *shorter = (observed.forms(f, K, steps) for steps in shorter_depths(depth))
    norm = observed.norm
    return plain._replace(
        residuals=forms,
        shorter=tuple(shorter),
        forms=forms,
        size=xp.abs(forms),
        unresolved=plain.unresolved * norm,
        ends=plain.ends * norm,
        rounding=None if plain.rounding is None else plain.rounding * norm,
    )


def _change(after: Array, before: Array) -> Array:
    """Of a mean over probes."""
    xp = namespace(after)
    return SAFETY * xp.abs(xp.mean(after - before, axis=-1))


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
