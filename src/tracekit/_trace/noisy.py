r"""The trace of an operator whose products are noisy, and how much of its error is noise.

With forms :math:`Q_{ij} = \omega_i^H A_j \omega_i` of p probes and q batches, a two-way layout with
random effects: the mean squares

* MSP, q times the variance of the means of the probes,
* MSB, p times that of the means of the batches,
* MSE, the sum of squares of what both leave, over (p - 1)(q - 1),

are MSE on the average, and q or p times the variance of the effect of a probe or of a batch more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    Probes,
    Rng,
    abs2,
    dtype_name,
    eps_of,
    is_complex,
    is_traced,
    magnitude,
    namespace,
    to_number,
)
from .._estimates import Estimate, checked_budget, doubt, finalize, mean, with_origin
from .._operators import LinearOperator, exact_trace_cost, in_blocks, quadratic_forms, square
from ..probes import Source, distributions
from .sums import exact_trace_of

MORE = "pass num_batches of 8 or more"


class NoiseParts(NamedTuple):
    """What probes, batches, and both together add to a standard error, and the forms (p, q)."""

    probes: Array
    batches: Array
    both: Array
    forms: Array


@with_origin
def noisy_trace(
    draw: Callable[[int], Any],
    num_probes: int,
    num_batches: int,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The trace of an operator of which only noisy products are to be had, such as of batches.

    Parameters
    ----------
    draw : callable
        ``draw(j) -> operator``, for j from 0 to ``num_batches - 1``: what `as_operator` reads,
        square, all of one shape and dtype. Operators are independent of each other, and their mean
        is the operator that is meant: the Hessian of mini-batch j, a network with its own dropout
        mask.
    num_probes : int
        Probes p, the same for every batch: 8 or more, for an error to go by.
    num_batches : int
        Batches q: 8 or more, too.
    rng : None, int, or generator, optional
        Of the probes, as for `hutchinson`; the noise is that of `draw`.
    probes : callable, optional
        As for `hutchinson`.
    chunk_size : int, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        Unbiased, from p q products (n q, and no error of probes, where p is at least the dimension
        n). Its error is that of probes and noise; `reason` says whether more probes or more batches
        lower it at equal cost, and `kept` holds what each adds to the standard error: ``.probes``,
        ``.batches``, ``.both``, beside the forms (p, q). The error is infinite for one probe or one
        batch, and where all batches agree to rounding: nothing is known of their noise then.

    Raises
    ------
    ValueError, TypeError
        If `draw` is no function, or its operators are not square or differ in shape, dtype or
        library; as for `hutchinson`.

    See Also
    --------
    tracekit_ntk.minibatch_hessian_trace : Of a network's loss, a batch for each direction.

    Notes
    -----
    The name is that of noisy products; the design is the crossed two-way layout of the analysis of
    variance, "probes by batches". With :math:`Q_{ij} = \omega_i^H A_j \omega_i` and the mean
    squares of probes, batches and what both leave,

    .. math:: \mathrm{Var}(\bar Q) = (MS_P + MS_B - MS_E) / (p q),

    not taken below the larger of the first two alone, with ``min(p, q) - 1`` degrees of freedom.
    One batch for all probes has no error of its own to show: the spread over probes is that of the
    trace of this batch, and 95 % intervals by `hutchinson` held in 47 % of runs where batches vary.

    A batch for each probe needs no layout: `hutchinson` of an operator that draws anew for every
    column has both errors in its spread, and is the better design where batches cost nothing. Bias
    is not seen by either: norms, logarithms and inverses of a noisy operator, leave-one-out and
    sketched estimators, solvers that stop early; see the page on noisy products. Batches drawn
    without replacement from few make the error too large.

    Runs add up by `merge` if each has seeds and batches of its own, which only you can know.

    Cost: a loop over batches, each with one block of products. Memory: all probes.

    References
    ----------
    Searle, Casella, McCulloch (1992), Variance Components, chapter 4.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A, noise = np.diag(np.arange(100.0)) + 0.5, np.random.default_rng(0)
    >>> estimate = tk.noisy_trace(lambda j: noise.normal(1, 0.1) * A, 8, 8, rng=0)
    >>> low, high = estimate.confidence_interval()
    >>> bool(low < 5000 < high), estimate.reason.rpartition("; ")[2]
    (True, 'more batches lower it')
    """
    p, q = checked_budget(num_probes, "num_probes"), checked_budget(num_batches, "num_batches")
    if not callable(draw):
        raise TypeError(
            f"`draw` must be a function of the number of a batch, got {type(draw).__name__}; pass "
            "one such as lambda j: operators[j]"
        )
    A = square(draw(0))
    if p >= exact_trace_cost(A):
        parts = [exact_trace_of(in_blocks(X, chunk_size)) for X in _operators(draw, A, q)]
        spent = sum(part.num_matvecs for part in parts)
        return _of_batches(A.xp.stack([part.value for part in parts]), spent)
    source = Source(rng, A)
    X = distributions.draw(probes, source, A.shape[0], p)
    columns = [quadratic_forms(in_blocks(B, chunk_size))(X)[0, :] for B in _operators(draw, A, q)]
    Q = A.xp.stack(columns, axis=1)
    few = distributions.few_valued(probes, complex_=is_complex(A))
    correction = distributions.finite_population(probes, p, A.shape[0])
    return finalize(_two_way(Q, correction, few), A, columns=Q)


def _operators(draw: Callable[[int], Any], first: LinearOperator, count: int) -> Any:
    """The operators of all batches, if they are of one kind."""
    yield first
    for j in range(1, count):
        B = square(draw(j))
        for name, x, y in (
            ("shape", first.shape, B.shape),
            ("dtype", dtype_name(first.dtype), dtype_name(B.dtype)),
            ("library", first.xp.__name__, B.xp.__name__),
        ):
            if x != y:
                raise ValueError(
                    f"`draw` must give operators of one {name}, got {x} for batch 0 and {y} for "
                    f"batch {j}; pass a function that does"
                )
        yield B


def _two_way(Q: Array, correction: float, few: bool) -> Estimate:
    """The mean of forms (p, q), with the error of both."""
    xp, (p, q) = namespace(Q), Q.shape
    value = xp.mean(Q)
    rows, columns = (xp.mean(Q, axis=k, keepdims=True) - value for k in (1, 0))
    rest = Q - value - rows - columns
    unit = magnitude(Q - value)

    def square_of(X: Array, count: int) -> Array:
        return xp.sum(abs2(X / unit)) / max(count, 1)

    probes = square_of(rows, p - 1) * q
    batches = square_of(columns, q - 1) * p
    both = square_of(rest, (p - 1) * (q - 1))
    zero = xp.zeros_like(both)
    drawn = correction**2
    least = xp.maximum(probes * drawn, batches)
    variance = xp.maximum((probes - both) * drawn + batches, least)
    of_probes, of_batches = (xp.maximum(x - both, zero) for x in (probes, batches))
    of_probes = of_probes * drawn
    scale = unit * (p * q) ** -0.5
    error = xp.sqrt(variance) * scale
    if min(p, q) == 1:
        error = error + math.inf
    rounding = 64 * eps_of(error) * magnitude(Q)
    agree = xp.max(xp.abs(Q - Q[:, :1])) <= rounding
    error = xp.where(agree, xp.full_like(error, math.inf), error)
    if few and doubt(0.75 ** (p - 1)) > 0:  # signs that agree by chance
        tied = xp.max(xp.abs(rows)) <= rounding
        error = xp.where(tied, xp.full_like(error, math.inf), error)
    added = [xp.sqrt(x) * scale for x in (of_probes, of_batches, both)]
    parts = NoiseParts(added[0], added[1], added[2], Q)
    told = f"{p} probes x {q} batches"
    converged, more = True, ""
    if not is_traced(value):
        converged, more = _advice(parts, error, agree)
    return Estimate(
        value,
        error,
        p * q,
        "noisy_trace",
        converged=converged,
        dof=min(p, q) - 1,
        reason=told + more,
        kept=parts,
    )


def _advice(parts: NoiseParts, error: Array, agree: Array) -> tuple[bool, str]:
    """Whether the error is known, and what to spend more on."""
    p, q = parts.forms.shape
    if q == 1:
        return False, f"; one batch for all probes does not show its own noise, {MORE}"
    if bool(agree):
        return False, (
            "; all batches agree, so that nothing is known of their noise: draw(j) must depend on "
            "j, and exact products are for hutchinson"
        )
    if p == 1 or not math.isfinite(to_number(error).real):
        return False, "; so few probes do not show their own error, pass num_probes of 8 or more"
    of_probes, of_batches, both = (to_number(x).real for x in parts[:3])
    more = "batches" if of_batches > of_probes else "probes"
    return True, (
        f", of which {of_probes:.2g} of probes, {of_batches:.2g} of batches, {both:.2g} of both; "
        f"more {more} lower it"
    )


def _of_batches(traces: Array, spent: int) -> Estimate:
    """The mean of the traces of batches, which are exact."""
    xp, q = namespace(traces), traces.shape[0]
    found = mean(traces, spent, "noisy_trace")
    told = f"exact traces of {q} batches"
    rounding = 64 * eps_of(found.standard_error) * magnitude(traces)
    agree = xp.max(xp.abs(traces - traces[:1])) <= rounding
    error = xp.where(agree, found.standard_error + math.inf, found.standard_error)
    converged, more = True, "; more batches lower it"
    if not is_traced(error) and not bool(xp.isfinite(error)):
        converged = False
        more = "; nothing is known of the noise of one batch, or of several that agree, " + MORE
    return replace(finalize(found), standard_error=error, converged=converged, reason=told + more)
