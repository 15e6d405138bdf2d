"""The trace to a tolerance: picks the method, spends until the interval is within, says why."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import _xp
from . import probes as _probes
from ._adaptive import Ask, Callback, State, next_products, read, saved, sum_on, widen, write
from ._budget import FIRST, checked_budget, checked_tolerance, within
from ._estimate import Estimate, NotFiniteError, exact
from ._face import done, exact_cost, exactly, square
from ._random import Source
from ._typing import Rng
from .estimators import hutchinson

SMALL = 64  # up to this dimension the exact trace costs no more than a few looks


def trace(
    A: Any,
    *,
    rtol: float = 1e-2,
    atol: float = 0.0,
    max_matvecs: int | None = None,
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
        Square, of dimension n; real or complex, symmetric or not.
    rtol, atol : float, optional
        Products are spent until the 95 % interval is within ``atol + rtol |value|``; if both are 0,
        until `max_matvecs` are spent.
    max_matvecs : int, optional
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
        operator: pass the same one.

    Returns
    -------
    Estimate
        ``converged`` tells whether the tolerance is met, ``method`` and ``reason`` what was chosen
        and why. `resume` spends more products on it. Ctrl-C ends the run with what was paid for,
        if that is enough for an estimate.

    Raises
    ------
    NotFiniteError
        If A returns NaN or infinity; it carries the estimate before that.
    ValueError, TypeError
        If A is not square, an argument is unusable, or the products show that a hint is wrong.

    Notes
    -----
    The exact sum if n is at most 64; XNysTrace if A is positive semidefinite; otherwise XTrace, of
    which fewer probes are sketched (about a third in the long run) where that does not lower the
    variance, as on flat spectra; plain orthogonal probes if the budget is too small to sketch. The
    first look is at 8 probes, not yet sketched unless A is positive semidefinite; each further step
    spends half of what was spent, and at least 16 products (8 if `psd`). The levels of all looks
    together allow for 5 % of misses, 3.5 % of them at the first. Memory for two arrays of shape
    (n, probes), four if A is not positive semidefinite; for ``A = L L^H`` two of those and two of
    as many rows as L has columns.

    The interval is calibrated by experiment: it is no guarantee.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 1001.0) ** -2)
    >>> estimate = tk.trace(A, rtol=1e-2, rng=0)
    >>> bool(abs(float(estimate) - np.trace(A)) < 1e-2 * np.trace(A)), estimate.method
    (True, 'xtrace')
    """
    ask = _asked(A, rtol, atol, max_matvecs, psd, hermitian, callback, checkpoint)
    ask = replace(ask, seed=int(rng) if isinstance(rng, int | np.integer) else None)
    A = ask.A
    if ask.limit >= ask.cost and (ask.cost <= SMALL or rtol == atol == 0):
        known = A.exact is not None and "trace" in A.exact
        found = exactly(A)
        free = known and not found.num_matvecs
        reason = "its maker knows it" if free else f"exact for {found.num_matvecs} products"
        return replace(found, reason=reason)
    if ask.limit < FIRST * ask.price:
        estimate = hutchinson(A, int(ask.limit), rng=rng, probes=_probes.orthogonal)
        reason = f"{ask.limit} products are too few to sketch"
        converged = rtol == atol == 0 or within(estimate, rtol, atol, 1)
        return replace(estimate, reason=reason, converged=converged)
    source = Source(rng, A)
    if checkpoint is not None and not source.state():
        raise TypeError("the state of this generator cannot be saved; pass an int to rng")
    return _run(ask, source, saved(ask, source))


def resume(
    A: Any,
    estimate: Estimate,
    *,
    rtol: float = 1e-2,
    atol: float = 0.0,
    max_matvecs: int | None = None,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    """Spend more products on an estimate of `trace`, repeating none.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        The operator of the estimate.
    estimate : Estimate
        What `trace` or `resume` returned, converged or not.
    rtol, atol : float, optional
        As for `trace`.
    max_matvecs : int, optional
        Products to spend at the most, those of `estimate` included.
    callback : callable, optional
        As for `trace`.
    checkpoint : path, optional
        As for `trace`.

    Returns
    -------
    Estimate
        The same as if `trace` had been called with this tolerance at the start.

    Raises
    ------
    ValueError, TypeError
        As for `trace`, and if `estimate` cannot be continued.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 1001.0) ** -2)
    >>> rough = tk.trace(A, rtol=0.1, rng=0)
    >>> fine = tk.resume(A, rough, rtol=1e-3)
    >>> rough.num_matvecs < fine.num_matvecs
    True
    """
    kept = getattr(estimate, "kept", None)
    if kept is None and getattr(estimate, "standard_error", None) == 0:
        return estimate  # exact
    if not (isinstance(kept, tuple) and len(kept) == 4 and isinstance(kept[0], State)):
        raise ValueError(
            f"{estimate!r} keeps no products to go on from; pass an estimate that trace or resume "
            "returned"
        )
    state, source, seed, mode = kept
    psd = True if mode == "nystrom" else None
    ask = _asked(A, rtol, atol, max_matvecs, psd, None, callback, checkpoint)
    ask = replace(ask, seed=seed)
    Omega, op = state.Omega, ask.A
    here = (op.shape[0], op.xp, op.dtype, ask.mode)
    if (Omega.shape[0], _xp.namespace(Omega), Omega.dtype, mode) != here:
        made = "made by gram" if mode == "factor" else "not made by gram"
        raise ValueError(
            f"the estimate is of an operator of dimension {Omega.shape[0]} and dtype {Omega.dtype} "
            f"of {_xp.namespace(Omega).__name__}, {made}, and this one is {op!r}; pass the "
            "operator it came from"
        )
    source.restore(state.draws)
    return _run(ask, source, state)


def _asked(
    A: Any,
    rtol: float,
    atol: float,
    max_matvecs: int | None,
    psd: bool | None,
    hermitian: bool | None,
    callback: Callback | None,
    checkpoint: str | Path | None,
) -> Ask:
    checked_tolerance(rtol, atol)
    operator = square(A)
    if (psd is False or hermitian is False) and operator.factor is not None:
        raise ValueError(
            "A = L L^H is Hermitian positive semidefinite; leave out psd and hermitian"
        )
    if psd and hermitian is False:
        raise ValueError("psd=True with hermitian=False is a contradiction; leave out one of them")
    limit = math.inf if max_matvecs is None else checked_budget(max_matvecs, "max_matvecs")
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.parent.is_dir():
        raise ValueError(
            f"checkpoint {str(path)!r} is in a folder that does not exist; make it first"
        )
    mode = "factor" if operator.factor is not None else "nystrom" if psd else "range"
    return Ask(
        operator, rtol, atol, limit, exact_cost(operator), mode, bool(hermitian), callback, path
    )


def _run(ask: Ask, source: Source, state: State) -> Estimate:
    """Spend, read and look, until one of them ends it; the loop knows only what `state` holds."""
    estimate, gain = None, math.inf
    try:
        while True:
            if state.columns == ask.cost:
                reason = "estimating would have cost more"
                return done(exact(state.total, state.spent, reason=reason), ask.A)
            if state.Omega is not None:
                if estimate is None or state.columns == 0:
                    estimate, gain = read(ask, state)
                kept = (state, source, ask.seed, ask.mode)
                estimate = replace(estimate, num_matvecs=state.spent, kept=kept)
                told = ask.callback is not None and ask.callback(estimate)
                if estimate.converged:
                    return estimate
                if told:
                    return _ended(estimate, "ended by the callback")
            step = next_products(ask, state, estimate, gain)
            if estimate is not None and step == 0:
                spent_all = ask.rtol == ask.atol == 0
                return replace(_ended(estimate, "the budget is spent"), converged=spent_all)
            state = widen(ask, state, source, step, gain) if step > 0 else sum_on(ask, state)
            if ask.checkpoint is not None:
                write(ask, state)
    except KeyboardInterrupt:
        if estimate is None:
            raise
        return _ended(estimate, "ended by Ctrl-C")
    except NotFiniteError as error:
        raise NotFiniteError(str(error), estimate) from None


def _ended(estimate: Estimate, how: str) -> Estimate:
    return replace(estimate, converged=False, reason=f"{estimate.reason}; {how}")
