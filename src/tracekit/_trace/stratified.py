"""The trace by probes that come in whole draws, and bring their own error."""

from __future__ import annotations

from dataclasses import replace

from .._arrays import Array, is_complex
from .._estimates import Estimate, finalize, stratified
from .._operators import blocks, columns_at_once, quadratic_forms
from ..probes import Plan
from .spending import Run


def in_draws(run: Run, plan: Plan) -> Estimate:
    """The mean of quadratic forms; without a tolerance, what does not fill a draw is not spent."""
    A, budget = run.A, run.budget
    take, forms, size = plan.stream(run.source), quadratic_forms(A), columns_at_once(A)
    if run.rtol == run.atol == 0 and not run.affords_exact:
        run = replace(run, budget=plan.whole(budget))

    def step(before: Array | None, k: int) -> tuple[Array, Estimate]:
        parts = [] if before is None else [before]
        parts += [forms(take(width)) for width in blocks(k * plan.size, size)]
        samples = A.xp.concat(parts, axis=1)
        arranged, spent = plan.draws(samples), samples.shape[1]
        estimate = stratified(
            arranged[0, ...],
            spent,
            "hutchinson",
            arranged[1, ...] if samples.shape[0] > 1 else None,
            signs=plan.signs and not is_complex(A),
        )
        estimate = replace(estimate, reason=plan.says(arranged.shape[-2], spent, budget))
        return samples, finalize(estimate, A, columns=samples[0, :])

    return run.spend(step, per_probe=plan.size)
