"""The trace to a tolerance: picks the method, spends until the interval is within, says why."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._arrays import Rng
from .._estimates import (
    Estimate,
    checked_budget,
    checked_tolerance,
    exact,
    finalize,
    former_name,
    with_origin,
)
from .._operators import exact_trace_cost, square
from .._runs import FIRST, Callback, Paused, ended_by, resumable, within
from .._sketches import FactorSketch, NystromSketch, RangeSketch
from ..probes import Source
from .adaptive import (
    Check,
    ProductError,
    Step,
    add_exact_block,
    attempted,
    evaluate,
    extend,
    next_step,
)
from .hutchinson import hutchinson
from .state import Request, Sketch, State, saved, write
from .sums import exact_trace_of

log = logging.getLogger("tracekit")
SMALL = 64  # up to this dimension the exact trace costs no more than a few looks


@former_name("max_matvecs", "num_matvecs")
@with_origin
@resumable()
def trace(
    A: Any,
    *,
    rtol: float = 1e-2,
    atol: float = 0.0,
    num_matvecs: int | None = None,
    rng: Rng = None,
    psd: bool | None = None,
    hermitian: bool | None = None,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    """The trace of an operator, to a tolerance, by the method that suits it.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not. A matrix whose entries are at
        hand, dense or sparse, is not estimated: its diagonal is summed, at no product.
    rtol, atol : float, optional
        Products are spent until the 95 % interval is within ``atol + rtol |value|``; if both are 0,
        until `num_matvecs` are spent.
    num_matvecs : int, optional
        Products to spend at the most. Without it the exact trace, for n products more, is the end
        of a run that the tolerance does not end.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    psd : bool, optional
        True if A is Hermitian positive semidefinite: then one product a probe does. Known without
        it of operators made by `gram`.
    hermitian : bool, optional
        True to have that checked.
    callback : callable, optional
        Called with the `Estimate` after each step; the run ends if it returns True.
    checkpoint : path, optional
        An .npz file, replaced after each step; the same call goes on from it and ends with the
        same result, bit for bit, as if it had not been interrupted. The file does not know the
        operator: pass the same one. It knows the kind of `rng`, and the seed or key if that is an
        int or a JAX key, and is refused by another.

    Returns
    -------
    Estimate
        ``converged`` tells whether the tolerance is met, ``method`` and ``reason`` what was chosen
        and why. `resume` spends more products on it, after it was pickled or copied too (unless a
        CuPy generator drew for it: that cannot be pickled).

    Raises
    ------
    NotFiniteError
        If A returns NaN or infinity. It carries what was paid for as its attribute `estimate`, if
        that is enough for one; so do KeyboardInterrupt (Ctrl-C), memory that runs out, and whatever
        products raise. `resume` goes on from it.
    ValueError, TypeError
        If A is not square, an argument is unusable, or the products show that a hint is wrong.

    Notes
    -----
    The exact sum if n is at most 64. Otherwise the first check is at 8 sign vectors, the best plain
    probes: they do where the diagonal dominates, or the tolerance is rough. Where more would need
    40 products or more, these 8 are sketched, and the estimates of smaller variance are kept from
    then on: of plain sign vectors, or of XTrace, or of XNysTrace if A is positive semidefinite,
    whose further probes are uniform on the sphere. Of these, fewer are sketched (about a third in
    the long run) where that does not lower the variance much. The choice is made once, by the first
    8 probes; nothing is chosen between estimates that are both reported. Each further step spends
    half of what was spent, or as much again where plain vectors are far from the tolerance. The
    levels of all looks together allow for 5 % of misses, half of them at the first.

    Memory: probes, their products and the sketch, four numbers for each entry of a probe (two of n
    and two of P numbers for ``A = L L^H``, L with P columns), take at most 512 MB, or what 8
    probes take if that is more; working on them takes as much again. Further probes only test the
    sketch, in blocks, and are let go, as all plain ones are: the estimate stays right, and gains
    less by each product.

    The interval is calibrated by experiment: it is no guarantee.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> M = tk.testing.known_spectrum(np.arange(1.0, 1001.0) ** -2)
    >>> A = tk.LinearOperator(M.shape, lambda X: M @ X)  # known by its products
    >>> estimate = tk.trace(A, rtol=1e-2, rng=0)
    >>> bool(abs(float(estimate) - np.trace(M)) < 1e-2 * np.trace(M)), estimate.method
    (True, 'xtrace')
    >>> tk.trace(np.diag([1.0, 2.0, 3.0])).num_matvecs  # a matrix is read instead
    0
    """
    request = _request(A, rtol, atol, num_matvecs, psd, hermitian, callback, checkpoint)
    A = request.A
    if isinstance(rng, Paused):
        return _run(request, rng.source, _gone_on(request, rng))
    if A.exact is not None and "entries" in A.exact:
        found = exact(A.exact["entries"](), 0, "sum_of_diagonal")
        return finalize(replace(found, reason="the matrix is given: its diagonal is summed"), A)
    if request.limit >= request.cost and (request.cost <= SMALL or rtol == atol == 0):
        known = A.exact is not None and "trace" in A.exact
        found = exact_trace_of(A)
        free = known and not found.num_matvecs
        reason = "known in closed form" if free else f"exact for {found.num_matvecs} products"
        return replace(found, reason=reason)
    if request.limit < FIRST * request.kind.matvecs_per_probe:
        estimate = hutchinson(A, int(request.limit), rng=rng)
        reason = f"{request.limit} products are too few to sketch"
        converged = rtol == atol == 0 or within(estimate, rtol, atol, 1)
        return replace(estimate, reason=reason, converged=converged)
    source = Source(rng, A)
    if checkpoint is not None and not source.state():
        raise TypeError("the state of this generator cannot be saved; pass an int to rng")
    return _run(request, source, saved(request, source))


def _gone_on(request: Request, paused: Paused) -> State:
    """The state of a run that goes on, if it is of such an operator."""
    state, kind = paused.read(request.A)
    if kind is not request.kind:
        made = "made by gram" if kind is FactorSketch else "not made by gram"
        raise ValueError(
            f"the estimate is of an operator {made}, and this one is {request.A!r}; pass the "
            "operator it came from"
        )
    found: State = state
    return found


def _request(
    A: Any,
    rtol: float,
    atol: float,
    num_matvecs: int | None,
    psd: bool | None,
    hermitian: bool | None,
    callback: Callback | None,
    checkpoint: Any,
) -> Request:
    checked_tolerance(rtol, atol)
    operator = square(A)
    if (psd is False or hermitian is False) and operator.factor is not None:
        raise ValueError(
            "A = L L^H is Hermitian positive semidefinite; leave out psd and hermitian"
        )
    if psd and hermitian is False:
        raise ValueError("psd=True with hermitian=False is a contradiction; leave out one of them")
    limit = math.inf if num_matvecs is None else checked_budget(num_matvecs, "num_matvecs")
    path = None if checkpoint is None else checkpoint.path
    if operator.factor is not None:
        kind: type[Sketch] = FactorSketch
    else:
        kind = NystromSketch if psd else RangeSketch
    cost = exact_trace_cost(operator)
    return Request(operator, rtol, atol, limit, cost, kind, bool(hermitian), callback, path)


def _run(request: Request, source: Source, state: State) -> Estimate:
    """Spend, estimate and check, until one ends it; the loop knows only what `state` holds."""
    check: Check | None = None
    try:
        while True:
            if state.columns == request.cost:
                reason = "estimating would have cost more"
                return finalize(exact(state.total, state.spent, reason=reason), request.A)
            if state.Omega is not None:
                if check is None or state.columns == 0:
                    check = attempted(evaluate, request, state)
                check = check._replace(estimate=_kept(request, check.estimate, state, source))
                log.info("%s", check.estimate)
                told = request.callback is not None and request.callback(check.estimate)
                if check.estimate.converged:
                    return check.estimate
                if told:
                    return _ended(check.estimate, "ended by the callback")
            step = next_step(request, state, check)
            if check is not None and step.kind == "end":
                spent_all = request.rtol == request.atol == 0
                return replace(_ended(check.estimate, "the budget is spent"), converged=spent_all)
            state = attempted(_stepped, request, state, source, step, check)
            if request.checkpoint is not None:
                write(request, state, source)
    except ProductError as failed:
        cause = failed.__cause__ or failed
        _lose_nothing(cause, request, state, source, check)
        raise cause from cause.__cause__
    except BaseException as error:
        _lose_nothing(error, request, state, source, check)
        raise
    finally:
        if close := getattr(request.callback, "close", None):
            close()


def _stepped(
    request: Request, state: State, source: Source, step: Step, check: Check | None
) -> State:
    if step.kind == "sum":
        return add_exact_block(request, state)
    return extend(request, state, source, step, math.inf if check is None else check.gain)


def _kept(request: Request, estimate: Estimate, state: State, source: Source) -> Estimate:
    """The estimate, with the run that it is of."""
    paused = Paused.of((state, request.kind), source, (request.A,), state.spent, state.draws)
    return replace(estimate, num_matvecs=state.spent, paused=paused)


def _lose_nothing(
    error: BaseException, request: Request, state: State, source: Source, check: Check | None
) -> None:
    """Give an error the estimate by all that was paid for."""
    with suppress(Exception):
        if state.Omega is not None and (check is None or check.estimate.num_matvecs < state.spent):
            check = check if state.columns else evaluate(request, state)
        if check is not None:
            found = _kept(request, check.estimate, state, source)
            error.estimate = _ended(found, ended_by(error))  # type: ignore[attr-defined]


def _ended(estimate: Estimate, how: str) -> Estimate:
    return replace(estimate, converged=False, reason=f"{estimate.reason}; {how}")
