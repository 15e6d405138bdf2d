"""Spends a budget whole, or in growing steps until a tolerance is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .._arrays import real, refuse_traced, to_number
from .._estimates import Estimate, NotFiniteError, checked_budget, checked_tolerance
from .._operators import LinearOperator, square


def enter(
    A: Any, num_matvecs: Any, rtol: float = 0.0, atol: float = 0.0
) -> tuple[LinearOperator, int]:
    """The operator and the budget, if both are usable."""
    checked_tolerance(rtol, atol)
    return square(A), checked_budget(num_matvecs)


FIRST = 8  # probes of the first look: fewer say too little about their own error


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
    return half_width(estimate, level) <= atol + rtol * abs(to_number(estimate.value))


def half_width(estimate: Estimate, level: float) -> float:
    """The longer side of the interval."""
    low, high = estimate.confidence_interval(level)
    center = real(estimate.value)
    return max(to_number(center - low).real, to_number(high - center).real)


def _looks(total: int) -> Iterator[int]:
    """Steps that double what was spent: 8, 8, 16, 32, ..."""
    done = 0
    while done < total:
        size = min(max(done, FIRST), total - done)
        yield size
        done += size
