"""Estimators of the trace whose every probe both sketches and tests: XTrace and XNysTrace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .._arrays import Array, Probes, Rng
from .._estimates import (
    Estimate,
    former_name,
    with_method,
    with_origin,
)
from .._operators import exact_trace_cost, matvecs_per_column, square
from .._runs import Callback, Run, resumable
from .._sketches import (
    FactorSketch,
    NystromSketch,
    RangeSketch,
    factor_sketch,
    leave_one_out_estimate,
    nystrom_sketch,
    range_sketch,
)
from ..probes import distributions
from .hutchinson import girard_hutchinson
from .sums import exact_trace_of


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def xtrace(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.sphere,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """XTrace estimate of the trace: every probe sketches the range and tests that of the others.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int, optional
        Products m to spend: ``m // 2`` probes, two products each, an odd one is left unspent
        (``m // 4`` probes if A was made by `gram`). Below 3 probes there is nothing to leave out:
        `hutchinson` is used. From n on the trace is exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        Rotation-invariant distributions are resphered: their residuals are scaled to the sphere of
        the space that they lie in. Laws of dependent columns are refused: they would bias the
        estimate.
    rtol, atol : float, optional
        As for `hutchinson`; the probes are kept and added to, no product is spent twice.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the sketch.
    chunk_size : int, optional
        Columns in a block of products; all at once if not given.

    Returns
    -------
    Estimate
        Unbiased, in A's library, dtype and device as for `hutchinson`. The standard error is the
        geometric mean of the leave-one-out spread and the jackknife, below 8 probes the larger of
        them: calibrated by experiment.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`.

    Notes
    -----
    Costs about ``2.5 n m^2`` operations besides the products; memory for about 2.5 m columns.

    References
    ----------
    Epperly, Tropp, Webber (2024), SIAM J. Matrix Anal. Appl. 45, arXiv:2301.07825,
    doi:10.1137/23M1548323.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 101.0) ** -2)
    >>> estimate = tk.xtrace(A, 40, rng=0)
    >>> bool(abs(estimate.value - np.trace(A)) < 0.01)
    True
    """
    run = Run.of(
        square(A), num_matvecs, rng, rtol, atol, callback, checkpoint, chunk_size=chunk_size
    )
    extend = partial(range_sketch, run.A)
    return _leave_one_out(run, RangeSketch, extend, 2 * matvecs_per_column(run.A), probes)


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def xnystrace(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.sphere,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """XNysTrace estimate of the trace of a positive semidefinite operator, one product a probe.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian positive semidefinite, of dimension n.
    num_matvecs : int, optional
        Products m to spend: m probes (``m // 2`` if A was made by `gram`). Below 3 probes there is
        nothing to leave out: `hutchinson` is used. From n on the trace is exact.
    rng : None, int, or generator, optional
        As for `xtrace`.
    probes : callable, optional
        As for `xtrace`, but `probes.orthogonal` will do as well.
    rtol, atol : float, optional
        As for `xtrace`.
    callback : callable, optional
        As for `xtrace`.
    checkpoint : path, optional
        As for `xtrace`.
    chunk_size : int, optional
        As for `xtrace`.

    Returns
    -------
    Estimate
        Unbiased, in A's library, dtype and device as for `hutchinson`; the standard error as for
        `xtrace`.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`; and if the products show that A is not Hermitian or not positive
        semidefinite.

    Notes
    -----
    Costs about ``6 n m^2`` operations besides the products; memory for about 4 m columns.

    References
    ----------
    Epperly, Tropp, Webber (2024), SIAM J. Matrix Anal. Appl. 45, arXiv:2301.07825,
    doi:10.1137/23M1548323.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(0.7 ** np.arange(100.0))
    >>> estimate = tk.xnystrace(A, 60, rng=0)
    >>> bool(abs(estimate.value - np.trace(A)) < 1e-6)
    True
    """
    run = Run.of(
        square(A), num_matvecs, rng, rtol, atol, callback, checkpoint, chunk_size=chunk_size
    )
    L = run.A.factor
    if L is None:
        return _leave_one_out(run, NystromSketch, partial(nystrom_sketch, run.A), 1, probes)

    def extend(Omega: Array, sketch: FactorSketch | None) -> FactorSketch:
        jitter = run.source.signs((L.shape[1], Omega.shape[1]))
        return factor_sketch(L, Omega, jitter, sketch)

    return _leave_one_out(run, FactorSketch, extend, 2, probes)


def _leave_one_out(
    run: Run,
    kind: type[RangeSketch | NystromSketch],
    extend: Callable[[Array, Any], Any],
    per_probe: int,
    probes: Probes,
) -> Estimate:
    """The mean of leave-one-out samples of a sketch, which ``extend(Omega, sketch)`` makes."""
    cost = exact_trace_cost(run.A)
    if run.is_short(per_probe, cost):
        return with_method(girard_hutchinson(run, probes), kind.method)
    resphere = _resphered(probes, joint=kind.semidefinite)

    def grow(sketch: Any, count: int) -> Any:
        return extend(run.draw(probes, count), sketch)

    def read(sketch: Any) -> Estimate:
        samples, left_out = sketch.samples(resphere=resphere)
        spent = per_probe * sketch.num_probes
        return leave_one_out_estimate(
            samples,
            left_out,
            sketch.unit,
            spent,
            kind.method,
            run.A,
            semidefinite=kind.semidefinite,
        )

    exact = partial(exact_trace_of, run.A)
    found: Estimate = run.spend(grow, read, per_probe, cost=cost, exact=exact)
    return found


def _resphered(probes: Probes, *, joint: bool) -> bool:
    """Whether residuals may be resphered; refuses probes that would make the estimate biased."""
    spherical = bool(getattr(probes, "spherical", False))
    if getattr(probes, "joint", False) and not (joint and spherical):
        name = getattr(probes, "__name__", probes)
        raise ValueError(
            f"{name} draws columns that depend on each other, which biases this "
            "estimator; pass probes.sphere, probes.normal or probes.rademacher"
        )
    return spherical
