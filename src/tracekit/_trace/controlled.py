"""The trace to a tolerance, with a control variate from the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .._arrays import Rng, to_number
from .._controls import read_control
from .._estimates import Estimate, NotFiniteError, standard_error
from ..probes import Source, distributions
from .hutchinson import Samples, steps
from .spending import FIRST, exact_trace_of, within
from .state import Request

PILOT = 2 * FIRST  # products after which the control is judged
SAVED = 0.5  # of the variance, for which the control is kept


def controlled_trace(
    request: Request, rng: Rng, control: Any, without: Callable[[Source, int], Estimate]
) -> Estimate:
    """Probes that double in number, until the interval is within; `without`, if the control fails.

    The latter is given the source, to draw probes of its own, and the products that were spent.
    """
    A, known = request.A, read_control(control, request.A, "trace")
    source, cost = Source(rng, A), request.cost
    budget = int(min(request.limit, cost - 1))
    step = steps(A, source, budget, distributions.rademacher, known)
    samples: Samples | None = None
    estimate: Estimate | None = None
    spent, sizes = 0, _sizes(budget)
    try:
        for size in sizes:
            samples, estimate = step(samples, size)
            spent += size
            if spent < budget and within(estimate, request.rtol, request.atol, len(sizes)):
                return estimate
            if request.callback is not None and request.callback(estimate):
                ended = f"{estimate.reason}; ended by the callback"
                return replace(estimate, converged=False, reason=ended)
            if spent == PILOT < budget and not _saves(estimate, samples):
                return without(source, spent)
            if request.limit - spent >= cost < spent + 2 * size:
                break
    except NotFiniteError as error:
        raise NotFiniteError(str(error), estimate) from None
    assert estimate is not None
    asked = request.rtol > 0 or request.atol > 0
    done = not asked or within(estimate, request.rtol, request.atol, len(sizes))
    if not done and request.limit - spent >= cost:  # probes would be no cheaper
        return replace(exact_trace_of(A), num_matvecs=spent + cost)
    return replace(estimate, converged=done)


def _sizes(total: int) -> list[int]:
    """Steps that double what was spent."""
    sizes, spent = list[int](), 0
    while spent < total:
        sizes.append(min(max(spent, FIRST), total - spent))
        spent += sizes[-1]
    return sizes


def _saves(estimate: Estimate, samples: Samples) -> bool:
    """Whether the control is worth more than a sketch may be."""
    plain = to_number(standard_error(samples.forms[0, :])).real
    return to_number(estimate.standard_error).real ** 2 <= SAVED * plain**2
