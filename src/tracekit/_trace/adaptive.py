"""Steps of a run that decides by its own products what to spend next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from .._arrays import (
    Array,
    abs2,
    conj,
    eps_of,
    inner,
    magnitude,
    namespace,
    refuse_traced,
    require_hermitian,
    to_number,
)
from .._estimates import (
    Estimate,
    NotFiniteError,
    beyond_chance,
    finalize,
    mean,
    mixed_error,
    require_finite,
    scaled,
    standard_error,
    t_quantile,
)
from .._operators import blocks, columns_at_once
from .._runs import FIRST, half_width
from .._sketches import NystromSketch, sketch_of_products
from ..probes import Source, distributions
from .state import GROWTH, Request, Sketch, State
from .sums import exact_part

GAIN = 4.0  # sketching pays where it lowers the variance of a probe by more than this
PAYS = 1.15  # and is left alone where it lowers it by less, for it takes a product of each four
FAR = 4  # a sketch of 8 probes is tried where signs need so many times its products, or more
MANY = 5  # times the sign vectors: so many sketched probes do without testing by those

T = TypeVar("T")
_OUT_OF_MEMORY = "outofmemory", "out of memory", "resource_exhausted", "allocate memory"


class ProductError(Exception):
    """A product failed, or memory did; the cause is what was raised."""


class Check(NamedTuple):
    """An estimate, by how much deflation lowers a probe's variance, and whether that is used."""

    estimate: Estimate
    gain: float
    deflated: bool


class Step(NamedTuple):
    """What to do next, and the products that it may spend."""

    kind: str  # "signs", "try" a sketch of what is held, "sketch" more, "sum" exactly, or "end"
    products: int = 0


def next_step(request: Request, state: State, check: Check | None) -> Step:
    """What to spend next."""
    if check is None:
        return Step("signs", FIRST)
    if state.columns > 0:
        return Step("sum")
    spent, room = state.spent, request.limit - state.spent
    wanted, needed = request.wanted(check.estimate), math.inf
    if wanted > 0:
        needed = spent * (_half_width_later(request, state, check.estimate) / wanted) ** 2
    if room >= request.cost:  # the exact sum can be paid for: is it the cheaper way on?
        hopeless = check.gain < GAIN and needed >= request.cost
        if (
            hopeless and 4 * spent >= request.cost
        ) or spent + request.kind.matvecs_per_probe >= request.cost:
            return Step("sum")
    room = int(min(room, max(request.cost - 1 - spent, 0)))
    step = max(math.ceil(GROWTH * spent), FIRST)
    if check.deflated:
        step = min(max(step, FIRST * request.kind.matvecs_per_probe), room)
        return Step("sketch", step) if step >= request.kind.matvecs_per_probe else Step("end")
    if not state.tried and needed - spent >= FAR * FIRST and room >= FIRST:
        return Step("try", FIRST)
    step = min(max(spent, FIRST) if needed >= 2 * spent else step, room)
    return Step("signs", step) if step > 0 else Step("end")


def _half_width_later(request: Request, state: State, estimate: Estimate) -> float:
    """The half width of the interval now, as later looks judge it.

    The skewness and the few degrees of freedom of the first look are not those of later ones.
    """
    if state.spent > FIRST:
        return half_width(estimate, request.level(state.spent))
    error = to_number(estimate.standard_error).real
    return error * t_quantile(request.level(2 * FIRST), 2 * estimate.dof)


def extend(request: Request, state: State, source: Source, step: Step, gain: float) -> State:
    """Spend products on sign probes, on sketching those that are held, or on both of a sketch."""
    if step.kind == "try":
        state = replace(_sketched(request, state, source, step.products), tried=True)
    elif step.kind == "signs":
        state = _with_signs(request, state, source, step.products)
    else:
        state = _with_sketch(request, replace(state, deflated=True), source, step.products, gain)
    return replace(state, draws=source.state())


def add_exact_block(request: Request, state: State) -> State:
    """Add the next block of diagonal entries to the exact sum."""
    fits = columns_at_once(request.A, None)
    width = min(max(request.cost // 16, FIRST), fits, request.cost - state.columns)
    total = _product(lambda _: exact_part(request.A, state.columns, width, state.total), None)
    require_finite(total, "trace")
    return replace(state, total=total, columns=state.columns + width, spent=state.spent + width)


def _with_signs(request: Request, state: State, source: Source, new: int) -> State:
    """Sign probes: the first are held, of the others only their samples."""
    n, parts = request.A.shape[0], [] if state.plain is None else [state.plain]
    if state.Omega is None:
        state = _with_probes(request, state, distributions.rademacher(source, n, new))
        return replace(state, tried=request.kind is NystromSketch)
    unit = _unit(request, state)
    for width in blocks(new, columns_at_once(request.A, None)):
        quad: Any = request.A.quad
        samples = _product(quad, distributions.rademacher(source, n, width)) / unit
        require_finite(samples, "trace", columns=samples)
        parts.append(samples)
        state = replace(state, spent=state.spent + width)
    return replace(state, plain=request.A.xp.concat(parts), sketch=None)


def _with_sketch(
    request: Request, state: State, source: Source, products: int, gain: float
) -> State:
    """Probes uniform on the sphere, and as many of all sketched as it pays to sketch.

    Once no more probes may be held, further ones test the sketch and are let go.
    """
    new, chosen = products, 0
    if request.kind is not NystromSketch:
        new, chosen = _shares(products, state.held - state.sketched, gain)
    kept = max(min(new, request.room - state.held), 0)
    if kept < new:
        chosen = min(chosen, state.held + kept - state.sketched)
    if kept > 0:
        state = _with_probes(request, state, distributions.sphere(source, request.A.shape[0], kept))
    if chosen > 0:
        state = _sketched(request, state, source, chosen)
    parts = [] if state.tested is None else [state.tested]
    streamed = products - kept - chosen if kept < new else 0
    for width in blocks(streamed, max(1, columns_at_once(request.A, None) // 4)):
        Omega = distributions.sphere(source, request.A.shape[0], width)
        Y = _products(request, Omega) / state.scale
        parts.append(state.sketch.tested_by(Omega, Y))  # type: ignore[union-attr]
        state = replace(state, spent=state.spent + width)
    return replace(state, tested=request.A.xp.concat(parts)) if parts else state


def _shares(columns: int, unsketched: int, gain: float) -> tuple[int, int]:
    """How many new probes to draw, and how many probes to sketch, for so many products."""
    if gain < GAIN:  # sketching hardly pays: one of each three probes
        return columns - columns // 4, columns // 4
    waiting = min(unsketched, columns)
    new = (columns - waiting) // 2
    return new, waiting + new


def _sketched(request: Request, state: State, source: Source, count: int) -> State:
    """The next of the probes held, sketched."""
    L = request.A.factor
    jitter = None if L is None else source.signs((L.shape[1], count))
    which = slice(state.sketched, state.sketched + count)
    Omega, Y, matmat = state.Omega[:, which], state.Y[:, which], (L or request.A).matmat
    sketch = sketch_of_products(  # type: ignore[type-var]
        request.kind,
        lambda Q: _product(matmat, Q),
        Omega,
        Y,
        state.scale,
        state.sketch,
        Omega if jitter is None else jitter,
    )
    return replace(state, sketch=sketch, spent=state.spent + count)


def _with_probes(request: Request, state: State, Omega: Array) -> State:
    """More probes that are held, with their products."""
    xp, Y = request.A.xp, _products(request, Omega)
    if request.hermitian and request.A.factor is None:
        require_hermitian(inner(Omega, Y), "call xtrace, or trace without psd and hermitian")
    scale = magnitude(Y) if state.scale is None else state.scale
    Y = Y / scale
    spent = state.spent + int(Omega.shape[1])
    if state.Omega is not None:
        Omega, Y = xp.concat([state.Omega, Omega], axis=1), xp.concat([state.Y, Y], axis=1)
    sketch = state.sketch
    if request.kind is NystromSketch:
        sketch = NystromSketch(Omega, Y, scale)
    return replace(state, Omega=Omega, Y=Y, scale=scale, sketch=sketch, spent=spent)


def _products(request: Request, Omega: Array) -> Array:
    """``A Omega``, or ``L^H Omega``."""
    Y = _product((request.A if request.A.factor is None else request.A.factor.H).matmat, Omega)
    refuse_traced(Y)
    require_finite(Y, "trace", columns=Y)
    return Y


def _product(product: Callable[[Any], Array], X: Any) -> Array:
    """What a product gives; what it raises is told from errors of ours."""
    try:
        return product(X)
    except NotFiniteError:
        raise
    except Exception as error:
        raise ProductError from error


def attempted(step: Callable[..., T], *arguments: Any) -> T:
    """The result of a step; ProductError where memory ran out, in whichever library."""
    try:
        return step(*arguments)
    except (MemoryError, RuntimeError) as error:  # of torch and JAX: RuntimeError
        told = f"{type(error).__name__} {error}".lower()
        if isinstance(error, MemoryError) or any(sign in told for sign in _OUT_OF_MEMORY):
            raise ProductError from error
        raise


def evaluate(request: Request, state: State) -> Check:
    """What the products are worth, by signs alone or deflated by the sketch."""
    forms = request.kind.forms(state.Omega, state.Y)
    signs, gain, deflated = forms[:FIRST], 0.0 if state.tried else math.inf, False
    if state.plain is not None:
        signs = namespace(signs).concat([signs, state.plain])
    estimate = _plain(request, state, signs)
    if state.sketch is not None:
        found, tested = _deflated(request, state, state.sketch)
        gain = _ratio(_variance(forms if state.deflated else signs), _variance(tested))
        deflated = state.deflated or gain >= (1 if request.kind is NystromSketch else PAYS)
        estimate = found if deflated else estimate
    estimate = finalize(scaled(estimate, _unit(request, state)), request.A)
    converged = half_width(estimate, request.level(state.spent)) <= request.wanted(estimate)
    return Check(replace(estimate, converged=converged), gain, deflated)


def _plain(request: Request, state: State, signs: Array) -> Estimate:
    """The mean of sign probes, which nothing is deflated of."""
    estimate = mean(signs, state.spent, "hutchinson")
    if request.A.factor is not None:
        estimate = beyond_chance(estimate)
    elif not bool(estimate.standard_error > 0):
        # equal samples are exact where the products show that A is diagonal, and luck elsewhere
        xp = namespace(state.Y)
        entries = conj(state.Omega[:, :FIRST]) * state.Y[:, :FIRST]
        entries = entries - xp.mean(entries, axis=1, keepdims=True)
        if bool(xp.max(xp.abs(entries)) > 100 * eps_of(entries)):
            off = xp.sum(abs2(entries)) / (FIRST - 1)
            error = xp.sqrt(2 * off / signs.shape[0])
            estimate = replace(estimate, standard_error=error, skewness=None)
    reason = f"{signs.shape[0]} plain probes"
    return replace(estimate, reason=reason + ", which vary less than with a sketch" * state.tried)


def _deflated(request: Request, state: State, sketch: Sketch) -> tuple[Estimate, Array]:
    """The estimate by the sketch, and the samples that tell how much deflation gains.

    Probes on the sphere are resphered; sign vectors, which may not be, are samples without it, and
    none at all once they are few among the others.
    """
    xp, b, reason = namespace(state.Y), sketch.num_probes, _WHY[sketch.name]
    samples, left_out = sketch.samples(resphere=True)
    if left_out is not None and b >= MANY * FIRST:
        samples = samples[FIRST:]
        middle = xp.mean(left_out, axis=-1)
        left_out = middle + (left_out[FIRST:] - middle) * math.sqrt(b / (b - FIRST))
        replicates = [(1.0, left_out)]
    else:
        plain, plain_left_out = sketch.samples(resphere=False)
        samples = xp.concat([plain[:FIRST], samples[FIRST:]])
        share = min(FIRST / b, 1.0)
        replicates = [(share, plain_left_out), (1 - share, left_out)]
    estimate = mean(samples, state.spent, sketch.method, independent=False)
    error = mixed_error(samples, replicates, estimate.standard_error)
    estimate = replace(estimate, standard_error=error)
    parts = [] if state.tested is None else [state.tested]
    if state.held > b:
        parts.append(sketch.tested_by(state.Omega[:, b:], state.Y[:, b:]))
    s = sum(part.shape[0] for part in parts)
    if s < 2:  # one alone does not know its error
        return replace(estimate, reason=reason), samples
    tested = xp.concat(parts)
    why = "flat spectrum" if state.held < request.room else "memory is bounded"
    reason += f"; {why}: {b} of {b + s} probes are sketched"
    estimate = _pooled(estimate, mean(tested, 0, ""), samples.shape[0], s)
    return replace(estimate, reason=reason), tested


def _pooled(first: Estimate, second: Estimate, b: int, s: int) -> Estimate:
    """The mean over b leave-one-out and s independent samples, which are uncorrelated."""
    xp = namespace(first.value)
    p, q = b / (b + s), s / (b + s)
    error = xp.sqrt((first.standard_error * p) ** 2 + (second.standard_error * q) ** 2)
    return replace(
        first,
        value=first.value * p + second.value * q,
        standard_error=error,
        samples=xp.concat([first.samples, second.samples]),
        dof=first.dof + second.dof,
    )


_WHY = {
    "range": "not known to be positive semidefinite",
    "factor": "A = L L^H",
    "nystrom": "psd was declared",
}


def _unit(request: Request, state: State) -> Array:
    """What samples are in units of."""
    return state.scale if request.A.factor is None else state.scale * state.scale


def _variance(samples: Array) -> float:
    return float(to_number(standard_error(samples)).real ** 2 * samples.shape[0])


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf
