"""Norm and effective rank, with the trace, out of one sketch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .._arrays import Array, Rng, abs2, conj, is_traced, namespace, real, to_number
from .._estimates import (
    Estimate,
    exact,
    finalize,
    with_method,
    with_origin,
)
from .._operators import LinearOperator, as_operator, square
from .._runs import Callback, Run, resumable
from .known import Way, moments_way
from .moment_samples import INFLATION, NORM_INFLATION, MomentSamples
from .one_sided import Columns, columns, read_norm, read_summary
from .sketches import Extend, sketching
from .summary import SpectralSummary


@with_origin
@resumable()
def spectral_summary(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> SpectralSummary:
    r"""Trace, Frobenius norm and effective rank of an operator from the same products.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, Hermitian or not.
    num_matvecs : int, optional
        Products m to spend; with a tolerance, at the most, and none is needed. For ``A = L L^H``,
        made by `gram`, columns through L or ``L^H``: ``m // 3`` probes; for other Hermitian
        operators (which the first products show) ``m // 2`` probes with a second Krylov block each;
        for any other ``m // 2`` probes.
        Products that do not fill a probe are left unspent. Exact from n products on (from as many
        as the lesser dimension of L), or from fewer where A knows its norm or all its entries (see
        ``exact`` of `LinearOperator`): ``reason`` tells from how many.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`, of all three; the sketch is kept and added to.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the sketch.

    Returns
    -------
    SpectralSummary
        A record of three `Estimate`: ``trace``, ``frobenius_norm``, ``effective_rank``. The trace
        and the squared norm are unbiased; the norm, its root, and the effective rank, a ratio
        with a bias-corrected numerator, are so up to the square of their relative errors.
        Standard errors are the geometric mean of leave-one-out spread and jackknife; where A is
        not Hermitian that of the norm is twice the spread, that of the rank 1.4 times (delta
        method): calibrated by experiment.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`; and if A is zero, whose effective rank is 0 / 0.

    Notes
    -----
    The effective rank is the participation ratio :math:`|\mathrm{tr} A|^2 / \|A\|_F^2`, between 0
    and n; n for the identity. Below 3 probes, independent probes are used (for ``A = L L^H``
    `one_sided_summary`). Memory for about 4 b columns, b probes; O(n b^2 + b^3) operations besides
    the products.

    References
    ----------
    Epperly, Tropp, Webber (2024), arXiv:2301.07825; Hallman (2025), arXiv:2512.02316.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 501.0) ** -2)
    >>> summary = tk.spectral_summary(A, 60, rng=0)
    >>> bool(abs(summary.frobenius_norm.value - np.linalg.norm(A)) < 1e-4)
    True
    >>> round(float(summary.effective_rank), 1)
    2.5
    """
    run = Run.of(square(A, "effective rank"), num_matvecs, rng, rtol, atol, callback, checkpoint)
    found: SpectralSummary = _summarised(run, lambda found: found)
    return found


@with_origin
@resumable()
def frobenius_norm(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The Frobenius norm :math:`\|A\|_F`.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Of any shape; real or complex.
    num_matvecs : int, optional
        Products m with A and its adjoint. Square operators: as for `spectral_summary`, except that
        one that is not Hermitian but has an adjoint product gets ``m // 2`` products each way;
        so do rectangular ones. Without an adjoint product these are tested with m independent
        probes. Exact from as many products on as A has columns, or rows if these are fewer and
        there is an adjoint product (for ``A = L L^H``: the lesser dimension of L), or from fewer
        where A knows its norm.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`, of the norm itself; the sketch is kept and added to.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the sketch.

    Returns
    -------
    Estimate
        Real. Its square is unbiased; the standard error as for `spectral_summary`.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`, but for the shape.

    Notes
    -----
    Where only products with ``L^H`` can be had, the norm of ``L L^H`` comes from
    `one_sided_summary`, and that of L from `one_sided`.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 501.0) ** -2)
    >>> estimate = tk.frobenius_norm(A, 60, rng=0)
    >>> bool(abs(estimate.value - np.linalg.norm(A)) < 1e-4)
    True
    """
    run = Run.of(as_operator(A), num_matvecs, rng, rtol, atol, callback, checkpoint)
    way = moments_way(run.A, norm_only=True)
    extend, read, each, cost = norm_sketching(run, way.cost)

    found: Estimate = run.spend(
        extend,
        lambda state: way.missed(read(state)),
        each,
        cost=cost,
        exact=partial(exact_norm, run.A, way),
    )
    return found


@with_origin
@resumable()
def effective_rank(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The effective rank :math:`|\mathrm{tr} A|^2 / \|A\|_F^2`, also called participation ratio.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.
    num_matvecs : int, optional
        As for `spectral_summary`, which also returns the other two.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`; the sketch is kept and added to.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the sketch.

    Returns
    -------
    Estimate
        Real, between 0 and n up to its error; the numerator is corrected for the variance of the
        trace, which would bias it upwards.

    Raises
    ------
    ValueError, TypeError
        As for `spectral_summary`.

    References
    ----------
    Hazelden (2025), arXiv:2511.10796. The effective rank of Roy and Vetterli (2007) is another.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.repeat([1.0, 0.0], [5, 95]))
    >>> round(float(tk.effective_rank(A, 30, rng=0)), 6)
    5.0
    """
    run = Run.of(square(A, "effective rank"), num_matvecs, rng, rtol, atol, callback, checkpoint)
    found: Estimate = _summarised(run, lambda found: found.effective_rank)
    return found


def exact_norm(A: LinearOperator, way: Way) -> Estimate:
    """The norm by an exact way."""
    _, f, scale = way.run()
    return exact(A.xp.sqrt(f) * scale, way.cost, "frobenius_norm", reason=way.reason)


class Sketching(NamedTuple):
    """What spends probes on a sketch, reads it, the products of a probe, and of the exact end.

    Products with ``L^H`` alone end exact by themselves.
    """

    extend: Extend
    read: Callable[[Any], Any]
    each: int
    cost: float


def norm_sketching(run: Run, cost: float) -> Sketching:
    """Of the sketch that the norm is read of."""
    A = run.A
    if _is_one_sided(run, cost):
        L: LinearOperator = A.factor  # type: ignore[assignment]
        extend, each = columns(run, L)
        return Sketching(extend, partial(read_norm, L=L), each, math.inf)
    extend, each = sketching(run, cost, norm_only=True)
    return Sketching(extend, lambda state: _norm(state.samples(A)), each, cost)


def _summary_sketching(run: Run, cost: float) -> Sketching:
    """Of the sketch that all three numbers are read of."""
    A = run.A
    if _is_one_sided(run, cost):
        L: LinearOperator = A.factor  # type: ignore[assignment]
        extend, each = columns(run, L)
        return Sketching(extend, partial(read_summary, L=L), each, math.inf)
    extend, each = sketching(run, cost)
    return Sketching(extend, partial(_summary, A=A), each, cost)


def _is_one_sided(run: Run, cost: float) -> bool:
    """Whether there are too few products to sketch L L^H."""
    few = isinstance(run.state, Columns) or run.is_short(3, cost)
    return run.A.factor is not None and few


def _summarised(run: Run, part: Callable[[SpectralSummary], Any]) -> Any:
    """What is asked for of the three numbers."""
    A, way = run.A, moments_way(run.A)
    extend, summary, each, cost = _summary_sketching(run, way.cost)

    def read(state: Any) -> Any:
        return part(SpectralSummary(*map(way.missed, summary(state))))

    return run.spend(extend, read, each, cost=cost, exact=lambda: part(_exact_summary(A, way)))


def _summary(state: Any, A: LinearOperator) -> SpectralSummary:
    got: MomentSamples = state.samples(A)
    assert got.traces is not None
    xp, traces, squares = A.xp, got.traces, got.squares
    t, f = xp.mean(traces), xp.mean(squares)
    error = got.error(traces, got.left_out[0], INFLATION)
    f = _nonzero(f, "the effective rank")
    variance = got.variance(traces, got.left_out[0], INFLATION)
    numerator = abs2(t) - xp.where(xp.isfinite(variance), variance, xp.zeros_like(variance))
    linearised = 2 * real(conj(t) * (traces - t)) / f - numerator * (squares - f) / (f * f)
    t_out, f_out = got.left_out
    ratios = None if t_out is None or f_out is None else abs2(t_out) / f_out
    dof, spent, method = squares.shape[0] - 1, got.spent, "spectral_summary"
    value = xp.astype(t * got.scale, A.dtype, copy=False)
    rank = Estimate(numerator / f, got.error(linearised, ratios, INFLATION), spent, method, dof=dof)
    trace = Estimate(value, error * got.scale, spent, method, samples=traces * got.scale, dof=dof)
    return SpectralSummary(
        finalize(trace), with_method(_norm(got), method), finalize(rank, quantity="effective rank")
    )


def _norm(got: MomentSamples) -> Estimate:
    """The root of the mean square; the error by the delta method."""
    squares = got.squares
    xp, square = namespace(squares), namespace(squares).mean(squares)
    error = got.error(squares, got.left_out[1], NORM_INFLATION)
    root = xp.sqrt(xp.where(square < 0, xp.zeros_like(square), square))
    safe = xp.where(root > 0, root, xp.ones_like(root))
    dof = squares.shape[0] - 1
    error = error / (2 * safe) * got.scale
    estimate = Estimate(root * got.scale, error, got.spent, "frobenius_norm", dof=dof)
    return finalize(estimate, quantity="norm")


def _nonzero(f: Array, what: str) -> Array:
    if not is_traced(f) and to_number(f) == 0:
        raise ValueError(f"the operator is zero, so {what} is 0 / 0; pass another operator")
    return f


def _exact_summary(A: LinearOperator, way: Way) -> SpectralSummary:
    t, f, scale = way.run()
    f = _nonzero(f, "the effective rank")
    value = A.xp.astype(t * scale, A.dtype, copy=False)
    numbers = value, A.xp.sqrt(f) * scale, abs2(t) / f
    made = (exact(x, way.cost, "spectral_summary", reason=way.reason) for x in numbers)
    return SpectralSummary(*made)
