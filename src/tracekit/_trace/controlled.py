"""The trace to a tolerance, with a control variate from the caller."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._arrays import Rng, to_number
from .._controls import read_control
from .._estimates import Estimate, standard_error
from .._runs import FIRST, Run
from ..probes import Source, distributions
from .hutchinson import girard_hutchinson
from .state import Request

PILOT = 2 * FIRST  # products after which the control is judged
SAVED = 0.5  # of the variance, for which the control is kept


def controlled_trace(
    request: Request,
    rng: Rng,
    control: Any,
    checkpoint: Any,
    without: Callable[[Source, int], Estimate],
) -> Estimate:
    """Probes that double in number, until the interval is within; `without`, if the control fails.

    The latter is given the source, to draw probes of its own, and the products that were spent.
    """
    A, known = request.A, read_control(control, request.A, "trace")
    rtol, atol, callback = request.rtol, request.atol, request.callback
    most = None if request.limit == math.inf else int(request.limit)
    run = Run.of(A, most, rng, rtol, atol, callback, checkpoint)
    stays = run.begun or checkpoint is not None or rtol == atol == 0
    if stays or run.budget <= PILOT:
        return girard_hutchinson(run, distributions.rademacher, known)
    run.budget, run.callback = PILOT, None
    found = girard_hutchinson(run, distributions.rademacher, known)
    if found.converged:
        if callback is not None:
            callback(found)
        return found
    if not _saves(found, run):
        return without(run.source, PILOT)
    run.budget, run.callback = request.limit, callback
    return girard_hutchinson(run, distributions.rademacher, known)


def _saves(found: Estimate, run: Run) -> bool:
    """Whether the control is worth more than a sketch may be."""
    plain = to_number(standard_error(run.state[0, :])).real
    return to_number(found.standard_error).real ** 2 <= SAVED * plain**2
