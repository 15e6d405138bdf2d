"""Steps of a run that decides by its own products what to spend next, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import _leave_one_out, _xp
from . import probes as _probes
from ._budget import FIRST, half_width, refuse_traced
from ._checkpoint import load, save
from ._estimate import Estimate, mean, require_finite, standard_error
from ._face import columns_at_once, done, exact_part, scaled
from ._operator import LinearOperator
from ._random import Source
from ._sketch import RangeSketch, sketch_of_products
from ._typing import Array

GROWTH = 0.5  # products of a step, relative to those spent before
GAIN = 4.0  # sketching pays where it lowers the variance of a probe by more than this

Callback = Callable[[Estimate], Any]


@dataclass(frozen=True)
class State:
    """All that was paid for: probes and their products, the sketch of the first, exact sums.

    `Y` is A Omega, or L^H Omega for A = L L^H; `Z` is A Q, or L Q.
    """

    Omega: Array = None
    Y: Array = None
    Q: Array = None
    R: Array = None
    Z: Array = None
    scale: Array = None
    total: Array = None
    columns: int = 0
    spent: int = 0
    draws: Any = None

    @property
    def sketched(self) -> int:
        """Probes that are sketched, which are the first."""
        return 0 if self.Q is None else int(self.Q.shape[1])

    @property
    def unsketched(self) -> int:
        """Probes that only test the sketch."""
        return 0 if self.Omega is None else int(self.Omega.shape[1]) - self.sketched

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
    seed: int | None = None

    @property
    def price(self) -> int:
        """Products for one sketched probe."""
        return 1 if self.mode == "nystrom" else 2

    def level(self, spent: int) -> float:
        """Of the interval at a look: 95 % over all, 96.5 % at the first."""
        if spent <= FIRST:
            return 0.965
        most = min(self.limit, self.cost) / FIRST
        return 1 - 0.015 / (1 + math.ceil(math.log(max(most, 1), 1 + GROWTH)))


def next_products(ask: Ask, state: State, estimate: Estimate | None, gain: float) -> int:
    """Products of the next step; -1 to sum exactly, 0 if nothing more can be spent."""
    if estimate is None:
        return FIRST
    if state.columns > 0:
        return -1
    spent, room = state.spent, ask.limit - state.spent
    step = max(math.ceil(GROWTH * spent), FIRST * ask.price)
    if room >= ask.cost:  # the exact sum can be paid for: is it the cheaper way on?
        wanted = ask.atol + ask.rtol * abs(_xp.number(estimate.value))
        width = half_width(estimate, ask.level(spent))
        needed = spent * (width / wanted) ** 2 if wanted > 0 else math.inf
        hopeless = gain < GAIN and needed >= ask.cost
        if (hopeless and 4 * spent >= ask.cost) or spent + ask.price >= ask.cost:
            return -1
    step = int(min(step, room, max(ask.cost - 1 - spent, 0)))
    return step if step >= ask.price else 0


def widen(ask: Ask, state: State, source: Source, products: int, gain: float) -> State:
    """Spend products on new probes, and on sketching as many as it pays to sketch."""
    new, chosen = products, 0
    if ask.mode != "nystrom" and state.Omega is not None:
        new, chosen = _shares(products, state.unsketched, gain)
    if new > 0:
        state = _with_probes(ask, state, source, new)
    if chosen > 0:
        L = ask.A.factor
        jitter = None if L is None else source.signs((L.shape[1], chosen))
        which = slice(state.sketched, state.sketched + chosen)
        Omega, Y, product = state.Omega[:, which], state.Y[:, which], (L or ask.A).matmat
        sketch = sketch_of_products(product, Omega, Y, state.scale, state.sketch, jitter)
        state = replace(state, Q=sketch.Q, R=sketch.R, Z=sketch.Z)
    return replace(state, spent=state.spent + new + chosen, draws=source.state())


def _shares(columns: int, unsketched: int, gain: float) -> tuple[int, int]:
    """How many new probes to draw, and how many probes to sketch, for so many products."""
    if gain < GAIN:  # sketching hardly pays: one of each three probes
        return columns - columns // 4, columns // 4
    waiting = min(unsketched, columns)
    new = (columns - waiting) // 2
    return new, waiting + new


def _with_probes(ask: Ask, state: State, source: Source, new: int) -> State:
    xp = ask.A.xp
    Omega = _probes.sphere(source, ask.A.shape[0], new)
    Y = (ask.A if ask.A.factor is None else ask.A.factor.H).matmat(Omega)
    refuse_traced(Y)
    require_finite(Y)
    if ask.hermitian and ask.A.factor is None:
        _leave_one_out.check_hermitian(_xp.adjoint(Omega) @ Y, _xp.eps(Y))
    scale = _xp.magnitude(Y) if state.scale is None else state.scale
    Y = Y / scale
    if state.Omega is not None:
        Omega, Y = xp.concat([state.Omega, Omega], axis=1), xp.concat([state.Y, Y], axis=1)
    return replace(state, Omega=Omega, Y=Y, scale=scale)


def sum_on(ask: Ask, state: State) -> State:
    """Add the next block of diagonal entries to the exact sum."""
    fits = columns_at_once(ask.A, None)
    width = min(max(ask.cost // 16, FIRST), fits, ask.cost - state.columns)
    total = exact_part(ask.A, state.columns, width, state.total)
    require_finite(total)
    return replace(state, total=total, columns=state.columns + width, spent=state.spent + width)


def read(ask: Ask, state: State) -> tuple[Estimate, float]:
    """The estimate that the state holds, and by how much deflation lowers a probe's variance."""
    b, s, left_out = state.sketched, state.unsketched, None
    scale = state.scale * state.scale if ask.mode == "factor" else state.scale
    if ask.mode == "factor":
        plain, reason = _xp.colnorm2(state.Y), "A = L L^H"
    else:
        plain = _xp.coldot(state.Omega, state.Y)
        reason = (
            "psd was declared" if ask.mode == "nystrom" else "not known to be positive semidefinite"
        )
    method = "xtrace" if ask.mode == "range" else "xnystrace"
    Omega = state.Omega[:, :b]
    if ask.mode == "nystrom":
        samples, left_out = _leave_one_out.xnystrace(state.Omega, state.Y, resphere=True)
    elif b == 0:
        samples, method, reason = plain, "hutchinson", f"{s} plain probes"
    elif ask.mode == "factor":
        samples, left_out = _leave_one_out.factored(Omega, state.R, state.Z, resphere=True)
    else:
        samples, left_out = _leave_one_out.xtrace(Omega, state.Q, state.R, state.Z, resphere=True)
    tested = samples
    estimate = mean(samples, state.spent, method, independent=method == "hutchinson")
    error = _leave_one_out.combined_error(samples, left_out, estimate.standard_error)
    estimate = replace(estimate, standard_error=error)
    if s > 0 and b > 0:
        tested = _tested(state) if ask.mode == "range" else _tested_one_sided(state)
        estimate = _pooled(estimate, mean(tested, 0, ""), b, s)
        reason += f"; flat spectrum: {b} of {b + s} probes are sketched"
    gain = math.inf if b == 0 else _ratio(_variance(plain), _variance(tested))
    estimate = done(scaled(estimate, scale), ask.A)
    width = half_width(estimate, ask.level(state.spent))
    converged = width <= ask.atol + ask.rtol * abs(_xp.number(estimate.value))
    return replace(estimate, reason=reason, converged=converged), gain


def _tested(state: State) -> Array:
    """Estimates by the probes that are not sketched: exact on the sketch, resphered on the rest."""
    b, n = state.sketched, state.Omega.shape[0]
    Omega, Y, Qh = state.Omega[:, b:], state.Y[:, b:], _xp.adjoint(state.Q)
    W = Qh @ Omega
    rest = Omega - state.Q @ W
    form = _xp.coldot(rest, Y - state.Z @ W) * ((n - b) / _xp.colnorm2(rest))
    return _xp.trace(Qh @ state.Z) + form


def _tested_one_sided(state: State) -> Array:
    """The same for L L^H, by what the sketch leaves of ``L^H omega``."""
    xp, b, n = _xp.namespace(state.Z), state.sketched, state.Omega.shape[0]
    sketched, Omega, Y = state.Omega[:, :b], state.Omega[:, b:], state.Y[:, b:]
    rest = Y - state.Q @ (_xp.adjoint(state.Q) @ Y)
    W = _xp.adjoint(sketched) @ Omega
    inside = _xp.real(_xp.coldot(W, xp.linalg.solve(_xp.adjoint(sketched) @ sketched, W)))
    form = _xp.colnorm2(rest) * ((n - b) / (_xp.colnorm2(Omega) - inside))
    return xp.sum(_xp.abs2(state.Z)) + form


def _pooled(first: Estimate, second: Estimate, b: int, s: int) -> Estimate:
    """The mean over b leave-one-out and s independent samples, which are uncorrelated."""
    xp = _xp.namespace(first.value)
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
    return float(_xp.number(standard_error(samples)).real ** 2 * samples.shape[0])


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf


_ARRAYS = ("Omega", "Y", "Q", "R", "Z", "scale", "total")


def write(ask: Ask, state: State) -> None:
    """Save all that was paid for."""
    arrays = {name: getattr(state, name) for name in _ARRAYS if getattr(state, name) is not None}
    facts = {"columns": state.columns, "spent": state.spent, "draws": state.draws}
    save(ask.checkpoint, arrays, facts | _identity(ask))  # type: ignore[arg-type]


def saved(ask: Ask, source: Source) -> State:
    """Where the run was when the checkpoint was written; the beginning if there is none."""
    found = None if ask.checkpoint is None else load(ask.checkpoint)
    if found is None:
        return State()
    arrays, facts = found
    for name, value in _identity(ask).items():
        if facts.get(name) != value:
            raise ValueError(
                f"checkpoint {str(ask.checkpoint)!r} is of a run with {name} {facts.get(name)}, "
                f"not {value}; pass another file or remove it"
            )
    try:
        source.restore(facts["draws"])
        held = {name: ask.A.xp.asarray(arrays[name], device=ask.A.device) for name in arrays}
        return State(columns=facts["columns"], spent=facts["spent"], draws=facts["draws"], **held)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint {str(ask.checkpoint)!r} does not go with this call ({error}); pass the "
            "same kind of rng, another file, or remove it"
        ) from None


def _identity(ask: Ask) -> dict[str, Any]:
    """What has to be the same in the call that goes on from a file."""
    found = {"dimension": ask.A.shape[0], "dtype": str(ask.A.dtype), "mode": ask.mode}
    return found if ask.seed is None else found | {"seed": ask.seed}
