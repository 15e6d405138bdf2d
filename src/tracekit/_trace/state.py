"""What a run to a tolerance was asked for, what it has spent, and its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._arrays import Array, is_complex, to_number
from .._estimates import Estimate, files
from .._operators import LinearOperator
from .._runs import FIRST, Callback
from .._sketches import NystromSketch, RangeSketch
from ..probes import Source

GROWTH = 0.5  # products of a step, relative to those spent before
HELD = 2**29  # bytes of probes, products and sketch that are held; working on them takes as much

Sketch = RangeSketch | NystromSketch


@dataclass(frozen=True)
class Request:
    """What the caller wants."""

    A: LinearOperator
    rtol: float
    atol: float
    limit: float
    cost: int
    kind: type[Sketch]  # how A is sketched: with products, if it is semidefinite, if it is L L^H
    hermitian: bool
    callback: Callback | None
    checkpoint: Path | None

    @property
    def room(self) -> int:
        """Probes that may be held, each with its product and twice that if it is sketched."""
        rows = 2 * self.A.shape[0] if self.A.factor is None else sum(self.A.factor.shape)
        itemsize = int(self.A.xp.finfo(self.A.dtype).bits) // (4 if is_complex(self.A) else 8)
        return max(FIRST, HELD // (2 * rows * itemsize))

    def level(self, spent: int) -> float:
        """Of the interval at an interim check: 95 % over all, 97.5 % at the first."""
        if spent <= FIRST:
            return 0.975
        most = min(self.limit, self.cost) / FIRST
        return 1 - 0.025 / (1 + math.ceil(math.log(max(most, 1), 1 + GROWTH)))

    def wanted(self, estimate: Estimate) -> float:
        """The tolerance."""
        return self.atol + self.rtol * abs(to_number(estimate.value))


@dataclass(frozen=True)
class State:
    """All results so far: probes and their products, the sketch of the first, exact sums.

    `Y` is A Omega, or L^H Omega for A = L L^H. The first 8 of the probes held are sign vectors, the
    others are uniform on the sphere. Of probes that are not held only their samples are: `plain` of
    sign vectors, and `tested` of others, by the sketch.
    """

    Omega: Array = None
    Y: Array = None
    sketch: Sketch | None = None
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
        return 0 if self.sketch is None else self.sketch.num_probes


_ARRAYS = ("Omega", "Y", "scale", "plain", "tested", "total")
_SKETCH = ("Q", "R", "Z")  # of the first probes
_FACTS = ("columns", "spent", "tried", "deflated", "draws")


def write(request: Request, state: State, source: Source) -> None:
    """Save the results so far."""
    arrays = {name: getattr(state, name) for name in _ARRAYS}
    arrays |= {name: getattr(state.sketch, name, None) for name in _SKETCH}
    held = {name: array for name, array in arrays.items() if array is not None}
    facts = {name: getattr(state, name) for name in _FACTS}
    files.save(request.checkpoint, held, facts | _identity(request, source))  # type: ignore[arg-type]


def saved(request: Request, source: Source) -> State:
    """Where the run was when the checkpoint was written; the beginning if there is none."""
    found = None if request.checkpoint is None else files.load(request.checkpoint, "checkpoint")
    if found is None:
        return State()
    arrays, facts = found
    for name, value in _identity(request, source).items():
        if facts.get(name) != value:
            raise ValueError(
                f"checkpoint {str(request.checkpoint)!r} is of a run with {name} "
                f"{facts.get(name)}, not {value}; pass another file or remove it"
            )
    A = request.A
    try:
        source.restore(facts["draws"])
        held = {name: A.xp.asarray(arrays[name], device=A.device) for name in arrays}
        parts = {name: held.pop(name) for name in _SKETCH if name in held}
        state = State(**{name: facts[name] for name in _FACTS}, **held)
        return replace(state, sketch=_sketch_of(request, state, **parts))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint {str(request.checkpoint)!r} is incompatible with this call ({error}); "
            "pass the same kind of rng, another file, or remove it"
        ) from None


def _sketch_of(request: Request, state: State, **parts: Array) -> Sketch | None:
    """The sketch that a run had, from the arrays that it saved."""
    if request.kind is NystromSketch:
        plain = state.Omega is None or state.plain is not None
        return None if plain else NystromSketch(state.Omega, state.Y, state.scale)
    if not parts:
        return None
    first = state.Omega[:, : parts["Q"].shape[1]]
    return request.kind(Omega=first, scale=state.scale, **parts)


def _identity(request: Request, source: Source) -> dict[str, Any]:
    """What has to be the same in the call that goes on from a file."""
    A = request.A
    made = {"dimension": A.shape[0], "dtype": str(A.dtype), "mode": request.kind.name}
    return source.identity | made
