"""Where a function reads its parameters, and the zeros to differentiate by there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tracekit._arrays import Array

from .._factors import Use


@dataclass(frozen=True)
class Rule:
    """What becomes of an operation that reads a parameter.

    `factor` takes the derivatives of C outputs by its result (or, without `other`, by the operand
    itself), of shape (C, *loops, *result), and the value of the operand number `other`, of shape
    (*loops, *operand), of one sample.
    """

    factor: Callable[[Array, Array], Use]
    other: int | None = None


Eps = dict[int, Any]


@dataclass(frozen=True)
class Read:
    """An operation that reads a parameter; its factors come of the derivative by slot `slot`."""

    leaf: int
    operation: str
    slot: int
    rule: Rule
    reason: str  # why there is no rule for the operation; empty if there is


@dataclass(frozen=True)
class Slot:
    """A value to which a zero `eps` is added, to differentiate by it."""

    shape: tuple[int, ...]
    dtype: Any
    same: int | None = None  # number of a slot with the same derivative, whose eps will do


@dataclass(frozen=True)
class Loop:
    """A scan around slots and reads, itself in a slot."""

    length: int
    reverse: bool
    layered: bool  # whether it goes over slices of a parameter
    slots: list[Slot | Loop]
    reads: list[Read | int]
    carried: int  # how many of the results it carries
    results: list[Any]  # shapes of what it carries, and then of what it stacks

    def result_eps(self) -> list[Array]:
        """Zeros to add to the results, to differentiate by them."""
        return [
            jnp.zeros(r.shape, r.dtype if jnp.issubdtype(r.dtype, jnp.inexact) else jnp.float32)
            for r in self.results
        ]

    def up_to(self, steps: int) -> int:
        """So many steps rounded up to quarters of all."""
        quarter = -(-self.length // 4)
        return min(self.length, -(-steps // quarter) * quarter)

    def needed(self, derivatives: Sequence[Array]) -> Array:
        """How many steps there is a derivative by the results of, for some of several samples."""
        reached = jnp.zeros(self.length, bool)
        for k, G in enumerate(derivatives):
            if k < self.carried:
                reached |= jnp.any(G != 0)
            else:
                reached |= jnp.any(jnp.moveaxis(G, 1, 0).reshape(self.length, -1) != 0, axis=1)
        steps = jnp.arange(self.length, 0, -1) if self.reverse else jnp.arange(1, self.length + 1)
        return jnp.max(jnp.where(reached, steps, 1))


@dataclass(frozen=True)
class FunctionReads:
    """Where a function reads its parameters; an int among reads is the slot of a loop."""

    slots: list[Slot | Loop]
    reads: list[Read | int]


def zeros(slots: Sequence[Slot | Loop], steps: dict[int, int], around: tuple[int, ...] = ()) -> Eps:
    """The eps of all slots; with only so many steps of the loops in the slots of these numbers."""
    eps: Eps = {}
    for k, slot in enumerate(slots):
        if isinstance(slot, Loop):
            eps[k] = zeros(slot.slots, {}, (*around, steps.get(k, slot.length)))
        elif slot.same is None:
            eps[k] = jnp.zeros((*around, *slot.shape), slot.dtype)
    return eps


def pulled(back: Callable[[Array], Any], columns: Array, eps: Eps) -> Eps:
    """Derivatives of the outputs that the rows of `columns` pick by all eps: outputs first.

    They leave the pullback where scans stack them, behind the steps: so no copy is made if what is
    done with them puts them there again.
    """

    def depths(eps: Eps, depth: int = 0) -> Eps:
        return {
            k: depths(part, depth + 1) if isinstance(part, dict) else depth
            for k, part in eps.items()
        }

    places = depths(eps)
    (found,) = jax.vmap(back, out_axes=(places,))(columns)
    made: Eps = jax.tree.map(_outputs_first, places, found)
    return made


def _outputs_first(depth: int, G: Array) -> Array:
    if depth == 0:
        return G
    flat = jnp.reshape(G, (*G.shape[: depth + 1], -1))  # no other axes between those that move
    return jnp.moveaxis(flat, depth, 0).reshape(
        G.shape[depth], *G.shape[:depth], *G.shape[depth + 1 :]
    )


def each_read(
    found: FunctionReads | Loop, values: Eps, kept: Sequence[Any]
) -> Iterator[tuple[Read, Array, Any]]:
    """The reads one by one, with the derivative and what was kept of each."""
    for read, keep in zip(found.reads, kept, strict=True):
        number = read.slot if isinstance(read, Read) else read
        while isinstance(slot := found.slots[number], Slot) and slot.same is not None:
            number = slot.same
        if isinstance(read, Read):
            yield read, values[number], keep
        elif isinstance(slot, Loop):
            yield from each_read(slot, values[number], keep)
