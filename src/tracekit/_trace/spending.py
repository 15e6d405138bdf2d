"""One call of an estimator: a budget spent whole, or in growing steps until a tolerance is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .._arrays import Array, Probes, Rng, colnorm2, real, refuse_traced, to_number, unit_columns
from .._estimates import (
    Estimate,
    NotFiniteError,
    checked_budget,
    checked_tolerance,
    exact,
    finalize,
)
from .._operators import (
    LinearOperator,
    blocks,
    columns_at_once,
    exact_trace_cost,
    in_blocks,
    known_cost,
    square,
)
from ..probes import Source, distributions

FIRST = 8  # probes of the first interim check: fewer say too little about their own error
LEAST = 3  # probes that leave-one-out samples are made of


@dataclass(frozen=True)
class Run:
    """One call of an estimator: the operator, the budget, the random source, the tolerances."""

    A: LinearOperator
    budget: int
    source: Source
    rtol: float = 0.0
    atol: float = 0.0

    @classmethod
    def of(
        cls,
        A: Any,
        num_matvecs: Any,
        rng: Rng,
        rtol: float = 0.0,
        atol: float = 0.0,
        chunk_size: int | None = None,
    ) -> Run:
        """The call, if all that it was given is usable."""
        checked_tolerance(rtol, atol)
        A, budget = square(A), checked_budget(num_matvecs)
        return cls(in_blocks(A, chunk_size), budget, Source(rng, A), rtol, atol)

    @property
    def affords_exact(self) -> bool:
        """Whether the budget suffices for the exact trace."""
        return self.budget >= exact_trace_cost(self.A)

    def is_short(self, per_probe: int) -> bool:
        """Whether there are too few probes to leave one out."""
        return self.budget // per_probe < LEAST and not self.affords_exact

    def draw(self, probes: Probes, count: int) -> Array:
        """The next probes."""
        return distributions.draw(probes, self.source, self.A.shape[0], count)

    def spend(
        self, step: Callable[[Any, int], tuple[Any, Estimate]], per_probe: int = 1
    ) -> Estimate:
        """Spend the budget whole; or, with a tolerance, until the interval is within it.

        ``step(sketch, k) -> (sketch, estimate)`` adds k probes of `per_probe` products each; the
        first call gets None. The exact trace is the answer where it is no more expensive.
        """
        if self.rtol == self.atol == 0:
            if self.affords_exact:
                return exact_trace_of(self.A)
            return step(None, self.budget // per_probe)[1]
        sketch, estimate, spent, cost = None, None, 0, exact_trace_cost(self.A)
        sizes = list(_steps(min(self.budget, cost - 1) // per_probe))
        try:
            for size in sizes:
                sketch, estimate = step(sketch, size)
                if within(estimate, self.rtol, self.atol, len(sizes)):
                    return estimate
                spent = estimate.num_matvecs
                next_costs = per_probe * max(2 * size, FIRST)
                if self.budget - spent >= cost and spent + next_costs > cost:
                    break
            if self.budget - spent >= cost:
                return replace(exact_trace_of(self.A), num_matvecs=spent + cost)
        except NotFiniteError as error:
            raise NotFiniteError(str(error), estimate) from None
        assert estimate is not None
        return replace(estimate, converged=False)


def exact_trace_of(A: LinearOperator) -> Estimate:
    """The trace by products with all coordinate vectors, or as it is known in closed form."""
    if A.exact and "trace" in A.exact:
        known = A.exact["trace"]
        name = getattr(known, "method", "exact_trace")
        return finalize(exact(known(), known_cost(A, "trace"), name), A)
    total, start, n = None, 0, exact_trace_cost(A)
    for width in blocks(n, columns_at_once(A)):
        total = exact_part(A, start, width, total)
        start += width
    return finalize(exact(total, n), A)


def exact_part(A: LinearOperator, start: int, width: int, before: Array | None = None) -> Array:
    """The sum of some diagonal entries, added to that of the entries before."""
    L, quad, n = A.factor, A.quad, A.shape[0]
    if L is not None and L.shape[1] < n:  # tr(L L^H) = tr(L^H L)
        n = L.shape[1]
        quad = partial(_colnorm2_of, L)
    part = A.xp.sum(quad(unit_columns(A, n, width, start)))  # type: ignore[misc]
    return part if before is None else before + part


def within(estimate: Estimate, rtol: float, atol: float, checks: int) -> bool:
    """Whether the interval is inside the tolerance, at a level that allows for several checks."""
    refuse_traced(estimate.value)
    level = 1 - 0.05 / max(checks, 1)  # Bonferroni
    return half_width(estimate, level) <= atol + rtol * abs(to_number(estimate.value))


def half_width(estimate: Estimate, level: float) -> float:
    """The longer side of the interval."""
    low, high = estimate.confidence_interval(level)
    center = real(estimate.value)
    return max(to_number(center - low).real, to_number(high - center).real)


def _steps(total: int) -> Iterator[int]:
    """Steps that double what was spent: 8, 8, 16, 32, ..."""
    spent = 0
    while spent < total:
        size = min(max(spent, FIRST), total - spent)
        yield size
        spent += size


def _colnorm2_of(L: LinearOperator, X: Array) -> Array:
    return colnorm2(L.matmat(X))
