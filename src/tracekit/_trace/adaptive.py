"""Steps of a run that decides by its own products what to spend next, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .._arrays import (
    Array,
    abs2,
    adjoint,
    coldot,
    colnorm2,
    conj,
    eps_of,
    is_complex,
    magnitude,
    matrix_trace,
    namespace,
    real,
    refuse_traced,
    to_number,
)
from .._estimates import (
    Estimate,
    NotFiniteError,
    beyond_chance,
    done,
    mean,
    require_finite,
    scaled,
    standard_error,
    t_quantile,
)
from .._operators import LinearOperator, blocks, columns_at_once
from .._sketches import RangeSketch, leave_one_out, sketch_of_products
from ..probes import Source, distributions
from .checkpoint import load, save
from .exact import exact_part
from .spending import FIRST, half_width

GROWTH = 0.5  # products of a step, relative to those spent before
GAIN = 4.0  # sketching pays where it lowers the variance of a probe by more than this
PAYS = 1.15  # and is left alone where it lowers it by less, for it takes a product of each four
FAR = 4  # a sketch of 8 probes is tried where signs need so many times its products, or more
MANY = 5  # times the sign vectors: so many sketched probes do without testing by those
HELD = 2**29  # bytes of probes, products and sketch that are held; working on them takes as much

Callback = Callable[[Estimate], Any]
T = TypeVar("T")
_OUT_OF_MEMORY = "outofmemory", "out of memory", "resource_exhausted", "allocate memory"


class ProductError(Exception):
    """A product failed, or memory did; the cause is what was raised."""


@dataclass(frozen=True)
class State:
    """All that was paid for: probes and their products, the sketch of the first, exact sums.

    `Y` is A Omega, or L^H Omega for A = L L^H; `Z` is A Q, or L Q. The first 8 of the probes held
    are sign vectors, the others are uniform on the sphere. Of probes that are not held only their
    samples are: `plain` of sign vectors, and `tested` of others, by the sketch.
    """

    Omega: Array = None
    Y: Array = None
    Q: Array = None
    R: Array = None
    Z: Array = None
    scale: Array = None
    plain: Array = None
    tested: Array = None
    total: Array = None
    columns: int = 0
    spent: int = 0
    tried: bool = False  # whether a sketch was tried
    deflated: bool = False  # and whether it is used
    draws: Any = None

    @property
    def held(self) -> int:
        """Probes that are held."""
        return 0 if self.Omega is None else int(self.Omega.shape[1])

    @property
    def sketched(self) -> int:
        """Probes that are sketched, which are the first."""
        return 0 if self.Q is None else int(self.Q.shape[1])

    @property
    def sketch(self) -> RangeSketch | None:
        """The sketch of the first probes."""
        if self.Q is None:
            return None
        return RangeSketch(self.Omega[:, : self.sketched], self.Q, self.R, self.Z, self.scale)


@dataclass(frozen=True)
class Ask:
    """What the caller wants."""

    A: LinearOperator
    rtol: float
    atol: float
    limit: float
    cost: int
    mode: str  # how A is sketched: "range", "nystrom" if it is psd, "factor" if it is L L^H
    hermitian: bool
    callback: Callback | None
    checkpoint: Path | None

    @property
    def price(self) -> int:
        """Products for one sketched probe."""
        return 1 if self.mode == "nystrom" else 2

    @property
    def room(self) -> int:
        """Probes that may be held, each with its product and twice that if it is sketched."""
        rows = 2 * self.A.shape[0] if self.A.factor is None else sum(self.A.factor.shape)
        itemsize = int(self.A.xp.finfo(self.A.dtype).bits) // (4 if is_complex(self.A) else 8)
        return max(FIRST, HELD // (2 * rows * itemsize))

    def level(self, spent: int) -> float:
        """Of the interval at a look: 95 % over all, 97.5 % at the first."""
        if spent <= FIRST:
            return 0.975
        most = min(self.limit, self.cost) / FIRST
        return 1 - 0.025 / (1 + math.ceil(math.log(max(most, 1), 1 + GROWTH)))

    def wanted(self, estimate: Estimate) -> float:
        """The tolerance."""
        return self.atol + self.rtol * abs(to_number(estimate.value))


class Look(NamedTuple):
    """An estimate, by how much deflation lowers a probe's variance, and whether that is used."""

    estimate: Estimate
    gain: float
    deflated: bool


class Step(NamedTuple):
    """What to do next, and the products that it may spend."""

    kind: str  # "signs", "try" a sketch of what is held, "sketch" more, "sum" exactly, or "end"
    products: int = 0


def next_step(ask: Ask, state: State, look: Look | None) -> Step:
    """What to spend next."""
    if look is None:
        return Step("signs", FIRST)
    if state.columns > 0:
        return Step("sum")
    spent, room = state.spent, ask.limit - state.spent
    wanted, needed = ask.wanted(look.estimate), math.inf
    if wanted > 0:
        needed = spent * (_half_width_later(ask, state, look.estimate) / wanted) ** 2
    if room >= ask.cost:  # the exact sum can be paid for: is it the cheaper way on?
        hopeless = look.gain < GAIN and needed >= ask.cost
        if (hopeless and 4 * spent >= ask.cost) or spent + ask.price >= ask.cost:
            return Step("sum")
    room = int(min(room, max(ask.cost - 1 - spent, 0)))
    step = max(math.ceil(GROWTH * spent), FIRST)
    if look.deflated:
        step = min(max(step, FIRST * ask.price), room)
        return Step("sketch", step) if step >= ask.price else Step("end")
    if not state.tried and needed - spent >= FAR * FIRST and room >= FIRST:
        return Step("try", FIRST)
    step = min(max(spent, FIRST) if needed >= 2 * spent else step, room)
    return Step("signs", step) if step > 0 else Step("end")


def _half_width_later(ask: Ask, state: State, estimate: Estimate) -> float:
    """The half width of the interval now, as later looks judge it.

    The skewness and the few degrees of freedom of the first look are not those of later ones.
    """
    if state.spent > FIRST:
        return half_width(estimate, ask.level(state.spent))
    error = to_number(estimate.standard_error).real
    return error * t_quantile(ask.level(2 * FIRST), 2 * estimate.dof)


def widen(ask: Ask, state: State, source: Source, step: Step, gain: float) -> State:
    """Spend products on sign probes, on sketching those that are held, or on both of a sketch."""
    if step.kind == "try":
        state = replace(_sketched(ask, state, source, step.products), tried=True)
    elif step.kind == "signs":
        state = _with_signs(ask, state, source, step.products)
    else:
        state = _with_sketch(ask, replace(state, deflated=True), source, step.products, gain)
    return replace(state, draws=source.state())


def sum_on(ask: Ask, state: State) -> State:
    """Add the next block of diagonal entries to the exact sum."""
    fits = columns_at_once(ask.A, None)
    width = min(max(ask.cost // 16, FIRST), fits, ask.cost - state.columns)
    total = _product(lambda _: exact_part(ask.A, state.columns, width, state.total), None)
    require_finite(total)
    return replace(state, total=total, columns=state.columns + width, spent=state.spent + width)


def _with_signs(ask: Ask, state: State, source: Source, new: int) -> State:
    """Sign probes: the first are held, of the others only their samples."""
    n, parts = ask.A.shape[0], [] if state.plain is None else [state.plain]
    if state.Omega is None:
        state = _with_probes(ask, state, distributions.rademacher(source, n, new))
        return replace(state, tried=ask.mode == "nystrom")
    scale = state.scale * state.scale if ask.mode == "factor" else state.scale
    for width in blocks(new, columns_at_once(ask.A, None)):
        quad: Any = ask.A.quad
        samples = _product(quad, distributions.rademacher(source, n, width)) / scale
        require_finite(samples)
        parts.append(samples)
        state = replace(state, spent=state.spent + width)
    return replace(state, plain=ask.A.xp.concat(parts), Q=None, R=None, Z=None)


def _with_sketch(ask: Ask, state: State, source: Source, products: int, gain: float) -> State:
    """Probes uniform on the sphere, and as many of all sketched as it pays to sketch.

    Once no more probes may be held, further ones test the sketch and are let go.
    """
    new, chosen = products, 0
    if ask.mode != "nystrom":
        new, chosen = _shares(products, state.held - state.sketched, gain)
    kept = max(min(new, ask.room - state.held), 0)
    if kept < new:
        chosen = min(chosen, state.held + kept - state.sketched)
    if kept > 0:
        state = _with_probes(ask, state, distributions.sphere(source, ask.A.shape[0], kept))
    if chosen > 0:
        state = _sketched(ask, state, source, chosen)
    parts = [] if state.tested is None else [state.tested]
    streamed = products - kept - chosen if kept < new else 0
    for width in blocks(streamed, max(1, columns_at_once(ask.A, None) // 4)):
        Omega = distributions.sphere(source, ask.A.shape[0], width)
        parts.append(_tests(ask, state, Omega, _products(ask, Omega) / state.scale))
        state = replace(state, spent=state.spent + width)
    return replace(state, tested=ask.A.xp.concat(parts)) if parts else state


def _shares(columns: int, unsketched: int, gain: float) -> tuple[int, int]:
    """How many new probes to draw, and how many probes to sketch, for so many products."""
    if gain < GAIN:  # sketching hardly pays: one of each three probes
        return columns - columns // 4, columns // 4
    waiting = min(unsketched, columns)
    new = (columns - waiting) // 2
    return new, waiting + new


def _sketched(ask: Ask, state: State, source: Source, count: int) -> State:
    """The next of the probes held, sketched."""
    L = ask.A.factor
    jitter = None if L is None else source.signs((L.shape[1], count))
    which = slice(state.sketched, state.sketched + count)
    Omega, Y, matmat = state.Omega[:, which], state.Y[:, which], (L or ask.A).matmat
    sketch = sketch_of_products(
        lambda Q: _product(matmat, Q), Omega, Y, state.scale, state.sketch, jitter
    )
    return replace(state, Q=sketch.Q, R=sketch.R, Z=sketch.Z, spent=state.spent + count)


def _with_probes(ask: Ask, state: State, Omega: Array) -> State:
    """More probes that are held, with their products."""
    xp, Y = ask.A.xp, _products(ask, Omega)
    if ask.hermitian and ask.A.factor is None:
        leave_one_out.check_hermitian(adjoint(Omega) @ Y, eps_of(Y))
    scale = magnitude(Y) if state.scale is None else state.scale
    Y = Y / scale
    spent = state.spent + int(Omega.shape[1])
    if state.Omega is not None:
        Omega, Y = xp.concat([state.Omega, Omega], axis=1), xp.concat([state.Y, Y], axis=1)
    return replace(state, Omega=Omega, Y=Y, scale=scale, spent=spent)


def _products(ask: Ask, Omega: Array) -> Array:
    """``A Omega``, or ``L^H Omega``."""
    Y = _product((ask.A if ask.A.factor is None else ask.A.factor.H).matmat, Omega)
    refuse_traced(Y)
    require_finite(Y)
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


def read(ask: Ask, state: State) -> Look:
    """What the products are worth, by signs alone or deflated by the sketch."""
    forms = colnorm2(state.Y) if ask.mode == "factor" else coldot(state.Omega, state.Y)
    signs, gain, deflated = forms[:FIRST], 0.0 if state.tried else math.inf, False
    if state.plain is not None:
        signs = namespace(signs).concat([signs, state.plain])
    estimate = _plain(ask, state, signs)
    if state.Q is not None or (ask.mode == "nystrom" and state.plain is None):
        found, tested = _deflated(ask, state)
        gain = _ratio(_variance(forms if state.deflated else signs), _variance(tested))
        deflated = state.deflated or gain >= (1 if ask.mode == "nystrom" else PAYS)
        estimate = found if deflated else estimate
    scale = state.scale * state.scale if ask.mode == "factor" else state.scale
    estimate = done(scaled(estimate, scale), ask.A)
    converged = half_width(estimate, ask.level(state.spent)) <= ask.wanted(estimate)
    return Look(replace(estimate, converged=converged), gain, deflated)


def _plain(ask: Ask, state: State, signs: Array) -> Estimate:
    """The mean of sign probes, which nothing is deflated of."""
    estimate = mean(signs, state.spent, "hutchinson")
    if ask.mode == "factor":
        estimate = beyond_chance(estimate)
    elif not bool(estimate.standard_error > 0):
        # equal samples are exact where the products show that A is diagonal, and luck elsewhere
        xp = namespace(signs)
        entries = conj(state.Omega[:, :FIRST]) * state.Y[:, :FIRST]
        entries = entries - xp.mean(entries, axis=1, keepdims=True)
        if bool(xp.max(xp.abs(entries)) > 100 * eps_of(entries)):
            off = xp.sum(abs2(entries)) / (FIRST - 1)
            error = xp.sqrt(2 * off / signs.shape[0])
            estimate = replace(estimate, standard_error=error, skewness=None)
    reason = f"{signs.shape[0]} plain probes"
    return replace(estimate, reason=reason + ", which vary less than with a sketch" * state.tried)


def _deflated(ask: Ask, state: State) -> tuple[Estimate, Array]:
    """The estimate by the sketch, and the samples that tell how much deflation gains.

    Probes on the sphere are resphered; sign vectors, which may not be, are samples without it, and
    none at all once they are few among the others.
    """
    xp, b = namespace(state.Y), state.held if ask.mode == "nystrom" else state.sketched
    left_out_by, method, reason = _LEAVE_ONE_OUT[ask.mode]
    samples, left_out = left_out_by(state, state.Omega[:, :b], resphere=True)
    if left_out is not None and b >= MANY * FIRST:
        samples = samples[FIRST:]
        middle = xp.mean(left_out, axis=-1)
        left_out = middle + (left_out[FIRST:] - middle) * math.sqrt(b / (b - FIRST))
        replicates = [(1.0, left_out)]
    else:
        plain, plain_left_out = left_out_by(state, state.Omega[:, :b], resphere=False)
        samples = xp.concat([plain[:FIRST], samples[FIRST:]])
        share = min(FIRST / b, 1.0)
        replicates = [(share, plain_left_out), (1 - share, left_out)]
    estimate = mean(samples, state.spent, method, independent=False)
    error = _mixed_error(samples, replicates, estimate.standard_error)
    estimate = replace(estimate, standard_error=error)
    parts = [] if state.tested is None else [state.tested]
    if state.held > b:
        parts.append(_tests(ask, state, state.Omega[:, b:], state.Y[:, b:]))
    s = sum(part.shape[0] for part in parts)
    if s < 2:  # one alone does not know its error
        return replace(estimate, reason=reason), samples
    tested = xp.concat(parts)
    why = "flat spectrum" if state.held < ask.room else "memory is bounded"
    reason += f"; {why}: {b} of {b + s} probes are sketched"
    estimate = _pooled(estimate, mean(tested, 0, ""), samples.shape[0], s)
    return replace(estimate, reason=reason), tested


def _mixed_error(
    samples: Array, replicates: list[tuple[float, Array | None]], spread: Array
) -> Array:
    """The geometric mean of two errors, where the jackknife's square is a mean by these shares."""
    xp = namespace(samples)
    errors = [
        (share, leave_one_out.combined_error(samples, left_out, spread))
        for share, left_out in replicates
        if share > 0
    ]
    unit = magnitude(xp.stack([error for _, error in errors]))
    parts = [share * (error / unit) ** 4 for share, error in errors]
    return xp.sum(xp.stack(parts), axis=0) ** 0.25 * unit


def _by_range(state: State, Omega: Array, *, resphere: bool) -> tuple[Array, Array | None]:
    return leave_one_out.xtrace(Omega, state.Q, state.R, state.Z, resphere=resphere)


def _by_factor(state: State, Omega: Array, *, resphere: bool) -> tuple[Array, Array | None]:
    return leave_one_out.factored(Omega, state.R, state.Z, resphere=resphere)


def _by_nystrom(state: State, Omega: Array, *, resphere: bool) -> tuple[Array, Array | None]:
    return leave_one_out.xnystrace(Omega, state.Y, resphere=resphere)


_LEAVE_ONE_OUT = {
    "range": (_by_range, "xtrace", "not known to be positive semidefinite"),
    "factor": (_by_factor, "xnystrace", "A = L L^H"),
    "nystrom": (_by_nystrom, "xnystrace", "psd was declared"),
}


def _tests(ask: Ask, state: State, Omega: Array, Y: Array) -> Array:
    """Samples by probes on the sphere: exact on the sketch, resphered on what it leaves."""
    xp, n = namespace(Y), Omega.shape[0]
    if ask.mode == "range":
        b, Qh = state.sketched, adjoint(state.Q)
        W = Qh @ Omega
        rest = Omega - state.Q @ W
        form = coldot(rest, Y - state.Z @ W) * ((n - b) / colnorm2(rest))
        return matrix_trace(Qh @ state.Z) + form
    b = state.held if ask.mode == "nystrom" else state.sketched
    sketched = state.Omega[:, :b]
    gram, W = adjoint(sketched) @ sketched, adjoint(sketched) @ Omega
    inside = real(coldot(W, xp.linalg.solve(gram, W)))
    grow = (n - b) / (colnorm2(Omega) - inside)
    if ask.mode == "factor":
        rest = Y - state.Q @ (adjoint(state.Q) @ Y)
        return xp.sum(abs2(state.Z)) + colnorm2(rest) * grow
    B, _, _, nu = leave_one_out.nystrom_factor(
        sketched, state.Y, gram, "xtrace, or trace without psd"
    )
    form = real(coldot(Omega, Y)) + colnorm2(Omega) * nu
    form = form - colnorm2(adjoint(B) @ Omega)
    return xp.astype(xp.sum(abs2(B)) - n * nu + form * grow, Y.dtype)


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


def _variance(samples: Array) -> float:
    return float(to_number(standard_error(samples)).real ** 2 * samples.shape[0])


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf


_ARRAYS = ("Omega", "Y", "Q", "R", "Z", "scale", "plain", "tested", "total")
_FACTS = ("columns", "spent", "tried", "deflated", "draws")


def write(ask: Ask, state: State, source: Source) -> None:
    """Save all that was paid for."""
    arrays = {name: getattr(state, name) for name in _ARRAYS if getattr(state, name) is not None}
    facts = {name: getattr(state, name) for name in _FACTS}
    save(ask.checkpoint, arrays, facts | _identity(ask, source))  # type: ignore[arg-type]


def saved(ask: Ask, source: Source) -> State:
    """Where the run was when the checkpoint was written; the beginning if there is none."""
    found = None if ask.checkpoint is None else load(ask.checkpoint)
    if found is None:
        return State()
    arrays, facts = found
    for name, value in _identity(ask, source).items():
        if facts.get(name) != value:
            raise ValueError(
                f"checkpoint {str(ask.checkpoint)!r} is of a run with {name} {facts.get(name)}, "
                f"not {value}; pass another file or remove it"
            )
    try:
        source.restore(facts["draws"])
        held = {name: ask.A.xp.asarray(arrays[name], device=ask.A.device) for name in arrays}
        return State(**{name: facts[name] for name in _FACTS}, **held)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint {str(ask.checkpoint)!r} does not go with this call ({error}); pass the "
            "same kind of rng, another file, or remove it"
        ) from None


def _identity(ask: Ask, source: Source) -> dict[str, Any]:
    """What has to be the same in the call that goes on from a file."""
    made = {"dimension": ask.A.shape[0], "dtype": str(ask.A.dtype), "mode": ask.mode}
    return source.identity | made
