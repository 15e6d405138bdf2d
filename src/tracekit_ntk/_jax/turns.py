"""What is made of factors, in one program; through scans the samples go one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import tree_map

from tracekit._arrays import Array

from .._factors import Uses, stack

Reduce = Callable[[Uses], dict[str, Array]]


def samples_at_once(found: Any) -> int:
    """How many samples `reduced` holds the cotangents of."""
    return 1 if _goes_in_turn(found) else found.samples


def reduced(found: Any, start: int, stop: int, reduce: Reduce) -> dict[str, Array]:
    """What `reduce` makes of the uses by these outputs, arrays with samples on axis 0.

    A network with scans is reduced sample by sample, in a compiled program for each `reduce` that
    differs: what a sample needs stays in the cache.
    """
    if not _goes_in_turn(found):
        return reduce(found.uses(start, stop))
    plan, *given, steps = found.asked(start, stop)
    names = tuple(found.sizes)
    return plan.program(_in_turn)(*given, steps=steps, names=names, reduce=reduce)  # type: ignore[no-any-return]


def _in_turn(
    plan: Any, leaves: Any, consts: Any, x: Any, columns: Array, *, steps: Any, names: Any,
    reduce: Reduce,
) -> dict[str, Array]:  # fmt: skip
    def one(x: list[Array]) -> dict[str, Array]:
        _, found = plan.of_sample(leaves, consts, steps, x, columns)
        uses = [stack(some) for some in tree_map(lambda part: part[None], found)]
        return reduce(dict(zip(names, uses, strict=True)))

    made = jax.lax.map(one, x)
    return tree_map(lambda part: part.reshape(-1, *part.shape[2:]), made)  # type: ignore[no-any-return]


def _goes_in_turn(found: Any) -> bool:
    """Whether there are scans, on a processor that one sample keeps busy."""
    return getattr(found, "scans", False) and jax.default_backend() == "cpu"
