"""Samples of f(A) by probes that come in whole draws, and bring their own error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .._arrays import is_complex
from .._estimates import ErrorParts, Estimate, stratified
from .._operators import LinearOperator
from ..probes import Plan


def require_plain(block: int, deflate: int | None, *, chebyshev: bool) -> None:
    """Refuse what is not combined with such probes."""
    if block > 1 or deflate or chebyshev:
        raise ValueError(
            "probes that come in whole draws take neither `block` nor `deflate` nor Chebyshev "
            "moments; leave these out"
        )


def columns_of(plan: Plan, left: int, spent: int, cost: int) -> int:
    """How many probes of a cost each are of whole draws, one at least."""
    if not (count := plan.whole(left // cost)):
        raise ValueError(
            f"a draw is of {plan.size} probes of {cost} products each, and {left} are left; pass "
            f"num_matvecs={spent + 2 * plan.size * cost} or more"
        )
    return count


def by_draws(found: Estimate, plan: Plan, A: LinearOperator, budget: int, steps: Any) -> Estimate:
    """The estimate with the error of the draws in the place of that of equal samples."""
    assert found.samples is not None
    arranged, spent, parts = plan.draws(found.samples), found.num_matvecs, found.kept
    own = stratified(arranged, spent, found.method, signs=plan.signs and not is_complex(A))
    return replace(
        found,
        value=own.value,
        standard_error=A.xp.hypot(own.standard_error, parts.quadrature),
        samples=own.samples,
        dof=own.dof,
        skewness=None,
        kept=ErrorParts(own.standard_error, parts.quadrature, parts.solves),
        reason=f"{plan.says(arranged.shape[-2], spent, budget)}; depth {steps}",
    )
