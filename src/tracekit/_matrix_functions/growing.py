"""Krylov spaces that grow step by step: deeper first, then more of them; no product twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    abs2,
    is_differentiated,
    namespace,
    refuse_traced,
    to_number,
)
from .._estimates import Estimate, exact, finalize
from .._operators import LinearOperator, all_columns_cost
from .._runs import Run
from .._sketches import LOOK_AHEAD, Krylov, Spaces, is_independent, most_columns, rules
from ..functions import Function
from .near_zero import HIDDEN, allowing, conditioning, hidden, steps_to_see_zero
from .request import Request, exactly, is_affordable, requested
from .run_file import of_spaces, spaces_of

PILOTS, PILOT_DEPTH = 2, 6  # the first spaces, which go on to twice the depth, and their steps
LEAST = 4  # probes that tell their own spread
HALF = 0.5  # of what is asked for, that the error of the quadrature may be
LATE = 0.9  # the same where spaces would have to be let go for a greater depth
QUANTILES = 3  # about as many standard errors are asked for, as there are several looks
FASTER = 4  # a step deepens by that part of the depth


class Verdict(NamedTuple):
    """Whether spaces are to go deeper for a tolerance, which holds for so many of them."""

    shallow: bool
    groups: int
    tolerance: tuple[float, float]


class Grown(NamedTuple):
    """The arrays of the spaces, products spent and allowed so far, and units that they have."""

    held: dict[str, Array]
    spent: int
    allowed: int
    units: list[list[Array]]
    verdict: Verdict | None = None


def as_it_is(found: Estimate) -> Estimate:
    """The estimate itself."""
    return found


def grown(
    run: Run,
    A: LinearOperator,
    f: Function,
    read: Callable[..., Estimate],
    method: str,
    quantity: str,
    *,
    into: Callable[[Estimate], Estimate] = as_it_is,
    units: tuple[list[Array], ...] = (),
    **options: Any,
) -> Estimate:
    """What is made of the trace of f(A), by spaces that grow until it is within a tolerance.

    ``read(f, spaces, probes, spent, method, plain)`` is the trace that spaces say.
    """
    request = _requested(A, f, int(min(run.budget, all_columns_cost(A))), **options)
    return Growth(run, request, read, into, units, method, quantity).spend()


def _requested(A: LinearOperator, f: Function, budget: int, **options: Any) -> Request:
    """What is asked of spaces that grow, if it can be done."""
    if options.get("deflate") or options.get("bounds") is not None:
        raise ValueError(
            "`deflate` and `bounds` are of a budget that is spent at once; leave them out where "
            "there is a tolerance, a callback or a checkpoint"
        )
    request = requested(A, f, budget, **options)
    if rules.needs_interval(request.quadrature):
        raise ValueError(
            "moments that grow have one interval; pass quadrature.chebyshev(interval=(low, high)), "
            "or leave out the tolerance, the callback and the checkpoint"
        )
    return request._replace(gradient=False)


@dataclass(frozen=True)
class Growth:
    """How spaces grow for one function.

    `read` is the trace that they say, and `into` what is made of that; `units` are numbers that
    the first products fix.
    """

    run: Run
    request: Request
    read: Callable[..., Estimate]
    into: Callable[[Estimate], Estimate]
    units: tuple[list[Array], ...]
    method: str
    quantity: str

    def spend(self) -> Estimate:
        """Spend the budget of the run, or compute all eigenvalues where that costs no more."""
        A = self.request.A
        cost = all_columns_cost(A)
        fits = is_affordable(A, cost)
        take = self.run.stream(self.request.probes, min(self.run.budget, cost), A.shape[0])
        found: Estimate = self.run.spend(
            partial(self._extended, take),
            self._said,
            cost=cost if fits else math.inf,
            exact=self._exactly if fits else None,
        )
        return found

    def _exactly(self) -> Estimate:
        """By all eigenvalues; the run adds all that was allowed before, which is not all spent."""
        found = self.into(finalize(exactly(self.request, self.method), quantity=self.quantity))
        state: Grown | None = self.run.state
        unspent = 0 if state is None else state.allowed - state.spent
        return replace(found, num_matvecs=found.num_matvecs - unspent)

    @property
    def strict(self) -> bool:
        """Whether the run may end early, by what it says of its own error."""
        return self.run.rtol > 0 or self.run.atol > 0

    def _extended(self, take: Callable[[int], Array], before: Grown | None, more: int) -> Grown:
        """Spend so many products more at most; what is not enough for a step is kept for later."""
        state = before or Grown({}, 0, 0, [])
        allowed, spent = state.allowed + more, state.spent
        spaces = self._spaces(state)
        if spaces is None:
            spaces = self._begun(take, allowed)
            if spaces is None:
                return state._replace(allowed=allowed)
            spent = spaces.num_matvecs
        verdict, step = state.verdict, -1
        while step:
            verdict = self._judged(verdict, spaces, spent)
            at = spaces.depth, spaces.deep
            step = self._step(spaces, take, allowed - spent, spent, shallow=verdict.shallow)
            spent += step
            if at[0] != spaces.depth or at[1] is not spaces.deep:
                verdict = None
        units = [list(x) for x in self.units]
        return Grown(of_spaces(spaces), spent, allowed, units, verdict)

    def _judged(self, before: Verdict | None, spaces: Spaces, spent: int) -> Verdict:
        """Whether the spaces are deep enough, which is not asked again for a few more."""
        tolerance = (self.run.rtol, self.run.atol)
        if before and before.tolerance == tolerance and spaces.groups <= before.groups:
            return before
        shallow = self._is_shallow(self._raw(spaces, spent), spaces)
        return Verdict(shallow, spaces.groups + max(spaces.groups // 2, 1), tolerance)

    def _said(self, state: Grown) -> Estimate:
        """What the spaces say; with an infinite error if not settled, where a run may end by it."""
        spaces, A = self._spaces(state), self.request.A
        if spaces is None:
            nothing = exact(A.xp.zeros((), dtype=A.dtype, device=A.device), 0, self.method)
            return _unknown(replace(nothing, reason="the budget does not pay for a probe so far"))
        raw = self._raw(spaces, state.spent)
        known = self._settled(raw, spaces) and spaces.groups * self.request.block >= LEAST
        found = self.into(raw)
        return _unknown(found) if self.strict and not known else found

    def _raw(self, spaces: Spaces, spent: int) -> Estimate:
        """The trace that spaces say; one near zero that they would not have seen is allowed for."""
        request, deep = self.request, spaces.deep or spaces.kept[0]
        found = self.read(request.f, spaces, request.probes, spent, self.method, plain=True)
        if request.general and isinstance(deep, Krylov):
            unseen, _ = hidden(deep, 0)
            told = f"{found.reason}; {conditioning(spaces.read())}"
            found = replace(found, reason=f"{told}; {HIDDEN}" if unseen else told)
            found = allowing(found, unseen) if unseen else found
        return finalize(found, quantity=self.quantity)

    def _spaces(self, state: Grown) -> Spaces | None:
        for units, kept in zip(self.units, state.units, strict=False):
            units[:] = kept
        if not state.held:
            return None
        request = self.request
        return spaces_of(
            state.held,
            request.A,
            request.quadrature,
            crosses=self._crosses,
            most=most_columns(request.A),
        )

    @property
    def _crosses(self) -> bool:
        """Whether probes are deflated by each other's spaces."""
        bases = bool(getattr(self.request.quadrature, "reorthogonalise", False))
        return bases and self.request.deflate is None and is_independent(self.request.probes)

    def _begun(self, take: Callable[[int], Array], left: int) -> Spaces | None:
        """The first spaces, as deep as the first products allow."""
        request = self.request
        groups = max(1, min(PILOTS, left // request.cost(2)))
        most = min(request.depth or PILOT_DEPTH, self._complete)
        depths = [d for d in range(1, most + 1) if groups * request.cost(d) <= left]
        if not depths:
            return None
        K = self._begin(take(groups * request.block)).advance(depths[-1])
        refuse_traced(K.seen)
        if is_differentiated(K.seen):
            raise TypeError(
                "derivatives of a value to a tolerance are not known; pass num_matvecs without a "
                "tolerance, callback and checkpoint"
            )
        return Spaces(K, most_columns(request.A), crosses=self._crosses)

    def _begin(self, X: Array) -> Any:
        request = self.request
        return rules.begin(request.quadrature, request.A, X, request.block)

    @property
    def _complete(self) -> int:
        """Steps after which a space is all there is."""
        return -(-self.request.A.shape[0] // self.request.block)

    def _step(
        self,
        spaces: Spaces,
        take: Callable[[int], Array],
        left: int,
        spent: int,
        *,
        shallow: bool,
    ) -> int:
        """The next step, deeper or wider, and what it cost; none where that is too much so far."""
        request, depth = self.request, spaces.depth
        whole = request.budget - spent
        if shallow:
            if not spaces.all_kept:
                spaces.let_go()
            most = min(request.depth or self._complete, depth + max(1, depth // FASTER))
            for further in range(most, depth, -1):
                cost = spaces.deeper(further)
                if cost <= left:
                    spaces.deepen(further, cost)
                    return cost
            return 0
        ahead = self._ahead(spaces)
        cost = spaces.ahead(ahead)
        if cost and cost <= (whole if self.strict else LOOK_AHEAD * whole):
            return spaces.look_ahead(left, ahead)
        groups = min(left // request.cost(depth), max(spaces.groups, PILOTS))
        spaces.grow(groups, take, self._begin)
        return groups * request.cost(depth)

    def _ahead(self, spaces: Spaces) -> int:
        """How deep the first spaces are to be: twice, or until they would see a value near zero."""
        twice = min(2 * spaces.depth, self._complete)
        deep = spaces.deep or spaces.kept[0]
        if not self.request.general or deep.depth < twice or not isinstance(deep, Krylov):
            return twice
        steps, *_ = steps_to_see_zero(deep)
        return max(twice, min(steps, deep.depth + max(1, deep.depth // FASTER)))

    def _settled(self, raw: Estimate, spaces: Spaces) -> bool:
        """Whether the rule is, by its change at twice the depth too."""
        deep = spaces.deep or spaces.kept[0]
        return raw.converged and deep.depth >= min(2 * spaces.depth, self._complete)

    def _is_shallow(self, raw: Estimate, spaces: Spaces) -> bool:
        """Whether a greater depth is what is needed most."""
        depth, request = spaces.depth, self.request
        if request.depth is not None or depth >= self._complete:
            return depth < min(request.depth or 0, self._complete)
        if not raw.converged:
            return True
        parts, total = raw.kept, raw.standard_error
        share = _largest(parts.quadrature, total)
        found = self.into(raw)
        off, size = (_norm(x) for x in (found.standard_error, found.value))
        if not math.isfinite(off):
            return False
        probes = max(request.budget // request.cost(depth), spaces.groups)
        spread = off * math.sqrt(max(1 - share * share, 0) * spaces.groups / probes)
        asked = max((self.run.atol + self.run.rtol * size) / QUANTILES, spread)
        return share * off > (HALF if spaces.all_kept else LATE) * asked


def _unknown(found: Estimate) -> Estimate:
    """The estimate, with an infinite error."""
    error = found.standard_error
    infinite = namespace(error).full_like(error, math.inf)
    return replace(found, standard_error=infinite, converged=False)


def _norm(x: Array) -> float:
    xp = namespace(x)
    return to_number(xp.sqrt(xp.sum(abs2(x)))).real


def _largest(part: Array, whole: Array) -> float:
    """The largest share of parts; 0 where there is nothing, or where that is not known."""
    xp = namespace(part)
    known = (whole > 0) & xp.isfinite(whole)
    safe = xp.where(known, whole, xp.ones_like(whole))
    return to_number(xp.max(xp.where(known, part / safe, xp.zeros_like(part)))).real
