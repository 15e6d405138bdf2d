"""The trace by probes that come in whole draws, and bring their own error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .._arrays import Array, is_complex
from .._estimates import Estimate, finalize, stratified
from .._operators import blocks, columns_at_once, exact_trace_cost, quadratic_forms
from .._runs import Run
from ..probes import Plan


def in_draws(
    run: Run, plan: Plan, take: Callable[[int], Array], exact: Callable[[], Estimate]
) -> Estimate:
    """The mean of quadratic forms; without a look, what does not fill a draw is not spent."""
    A, budget, cost = run.A, run.budget, exact_trace_cost(run.A)
    forms, size = quadratic_forms(A), columns_at_once(A)
    if not run.looks and budget < cost:
        run.budget = plan.whole(int(budget))

    def extend(before: Array | None, k: int) -> Array:
        parts = [] if before is None else [before]
        parts += [forms(take(width)) for width in blocks(k * plan.size, size)]
        return A.xp.concat(parts, axis=1)

    def read(samples: Array) -> Estimate:
        arranged, spent = plan.draws(samples), samples.shape[1]
        weighted = arranged[1, ...] if samples.shape[0] > 1 else None
        signs = plan.signs and not is_complex(A)
        found = stratified(arranged[0, ...], spent, "hutchinson", weighted, signs=signs)
        left = 0 if run.rtol > 0 or run.atol > 0 else int(min(budget, cost)) - spent
        told = plan.says(arranged.shape[-2], spent, spent + left)
        return finalize(replace(found, reason=told), A, columns=samples[0, :])

    found: Estimate = run.spend(extend, read, plan.size, cost=cost, exact=exact)
    return found
