"""Whether an estimate is within a tolerance, and when a run looks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .._arrays import abs2, namespace, real, refuse_traced, to_number
from .._estimates import Estimate, t_quantile

FIRST = 8  # probes of the first look: fewer say too little about their own error


def within(estimate: Any, rtol: float, atol: float, looks: int, *, entrywise: bool = False) -> bool:
    """Whether the interval is inside the tolerance, at a level that allows for several looks.

    Of several estimates all have to be. Of an array, the Frobenius norm of the error is held
    against that of the value; or the largest of both, entry by entry.
    """
    if not isinstance(estimate, Estimate):
        return all(within(e, rtol, atol, looks, entrywise=entrywise) for e in estimate)
    refuse_traced(estimate.value)
    level = 1 - 0.05 / max(looks, 1)  # Bonferroni
    xp, size, error = namespace(estimate.value), abs(estimate.value), estimate.standard_error
    if not getattr(estimate.value, "ndim", 0):
        off, whole = half_width(estimate, level), size
    elif entrywise:
        level = 1 - (1 - level) / max(math.prod(estimate.value.shape), 1)
        off, whole = t_quantile(level, estimate.dof) * xp.max(error), xp.max(size)
    else:
        unit = xp.maximum(xp.max(size), xp.max(error))  # squares of what is large overflow
        if not 0 < to_number(unit).real < math.inf:
            return bool(to_number(unit).real == 0)
        off, whole = (xp.sqrt(xp.sum(abs2(x / unit))) for x in (error, size))
        off, atol = off * t_quantile(level, estimate.dof), atol / to_number(unit).real
    return bool(to_number(off).real <= atol + rtol * to_number(whole).real)


def half_width(estimate: Estimate, level: float) -> float:
    """The longer side of the interval."""
    low, high = estimate.confidence_interval(level)
    center = real(estimate.value)
    return max(to_number(center - low).real, to_number(high - center).real)


def looks(most: int) -> Iterator[int]:
    """The numbers of probes to look at: 8, 16, 32, ..., and the most there are."""
    size = FIRST
    while size < most:
        yield size
        size *= 2
    if most > 0:
        yield most
