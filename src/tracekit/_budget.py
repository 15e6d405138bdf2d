"""Spends a budget whole, or in growing steps until a tolerance is met."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from . import _xp
from ._estimate import Estimate, NotFiniteError
from ._typing import Array

FIRST = 8  # probes of the first look: fewer say too little about their own error


def checked_budget(num_matvecs: Any, name: str = "num_matvecs") -> int:
    """The budget as an int of at least 1."""
    try:
        budget = operator.index(num_matvecs)
    except TypeError:
        budget = 0
    if isinstance(num_matvecs, bool) or budget < 1:
        raise ValueError(
            f"{name}={num_matvecs!r} is no budget; pass the number of products to spend, "
            "an int of 1 or more"
        )
    return budget


def checked_tolerance(rtol: Any, atol: Any) -> None:
    """Refuse tolerances that are not numbers of 0 or more."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} is no tolerance; pass a number of 0 or more")


def blocks(total: int, size: int) -> Iterator[int]:
    """Sizes that add up to `total`, none above `size`."""
    for start in range(0, total, size):
        yield min(size, total - start)


def block_size(n: int, itemsize: int, wanted: int | None, *, megabytes: int = 128) -> int:
    """Columns to hold at a time: as asked, or as fit in some memory."""
    if wanted is None:
        return max(1, megabytes * 2**20 // (n * itemsize))
    try:
        size = operator.index(wanted)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(
            f"block_size={wanted!r} is no number of columns; pass an int of at least 1"
        )
    return size


def spend(
    step: Callable[[Any, int], tuple[Any, Estimate]],
    budget: int,
    exact: Callable[[], Estimate],
    *,
    price: int,
    cost: int,
    rtol: float,
    atol: float,
) -> Estimate:
    """Spend a budget whole; or, with a tolerance, widen a sketch until the interval is within it.

    ``step(sketch, k) -> (sketch, estimate)`` adds k probes of `price` products each; the first call
    gets None. ``exact()`` gives the exact answer for `cost` products: it ends a run whose sketch
    would come to cost as much.
    """
    if rtol == atol == 0:
        return exact() if budget >= cost else step(None, budget // price)[1]
    sketch, estimate, spent = None, None, 0
    looks = list(_looks(min(budget, cost - 1) // price))
    for size in looks:
        try:
            sketch, estimate = step(sketch, size)
        except NotFiniteError as error:
            raise NotFiniteError(str(error), estimate) from None
        if within(estimate, rtol, atol, len(looks)):
            return estimate
        spent = estimate.num_matvecs
        if budget - spent >= cost and spent + price * max(2 * size, FIRST) > cost:
            break
    if budget - spent >= cost:
        try:
            return replace(exact(), num_matvecs=spent + cost)
        except NotFiniteError as error:
            raise NotFiniteError(str(error), estimate) from None
    assert estimate is not None
    return replace(estimate, converged=False)


def within(estimate: Estimate, rtol: float, atol: float, looks: int) -> bool:
    """Whether the interval is inside the tolerance, at a level that allows for several looks."""
    refuse_traced(estimate.value)
    level = 1 - 0.05 / max(looks, 1)  # Bonferroni
    return half_width(estimate, level) <= atol + rtol * abs(_xp.number(estimate.value))


def refuse_traced(x: Array) -> None:
    """Raise TypeError where values are not known, so that nothing can be decided by them."""
    if _xp.is_traced(x):
        raise TypeError(
            "what to spend is decided by the values of products, which jax.jit and jax.grad hide; "
            "call an estimator with num_matvecs and without a tolerance there"
        )


def half_width(estimate: Estimate, level: float) -> float:
    """The longer side of the interval."""
    low, high = estimate.confidence_interval(level)
    center = _xp.real(estimate.value)
    return max(_xp.number(center - low).real, _xp.number(high - center).real)


def _looks(total: int) -> Iterator[int]:
    """Steps that double what was spent: 8, 8, 16, 32, ..."""
    done = 0
    while done < total:
        size = min(max(done, FIRST), total - done)
        yield size
        done += size
