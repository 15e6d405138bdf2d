"""The Girard-Hutchinson estimator of the trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from .._arrays import Array, Probes, Rng, is_complex, namespace
from .._controls import Control, controlled, read_control, require_independent, told
from .._estimates import (
    Estimate,
    beyond_chance,
    finalize,
    former_name,
    mean,
    standard_error,
    with_origin,
)
from .._operators import LinearOperator, blocks, columns_at_once, exact_trace_cost, quadratic_forms
from ..probes import Source, distributions
from .spending import Run


@former_name("block_size", "chunk_size")
@with_origin
def hutchinson(
    A: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    rtol: float = 0.0,
    atol: float = 0.0,
    control: Any = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""Girard-Hutchinson estimate of the trace: the mean of :math:`\omega^H A \omega`.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int
        Products to spend, at least 1. From n on the trace is exact, with n products.
    rng : None, int, or generator, optional
        An int or NumPy generator draws the same probes in every library; a torch.Generator, JAX key
        or CuPy generator draws on the device.
    probes : callable, optional
        A distribution of `tracekit.probes`, or any function ``(source, n, m) -> (n, m)``.
    rtol, atol : float, optional
        If one is positive: look after 8, 16, 32, ... products, and stop when the 95 % interval is
        within ``atol + rtol |value|``.
    control : operator or (operator, value), optional
        An approximation P of A whose trace is known: by the operator itself (``exact``, or the
        entries of a matrix) or as the value, a number or an `Estimate`. The same probes go through
        it, and ``c (omega^H P omega - tr P)`` is subtracted (Notes).
    chunk_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given. The probes do not depend on it.

    Returns
    -------
    Estimate
        Unbiased. The value is a 0-d array in A's library and device, and in its dtype (integers are
        computed in the default float, half precisions in float32). The standard error is that of a
        mean, times ``sqrt(1 - m / n)`` for orthogonal and Hadamard probes. Equal samples of signs
        are not taken for exact while they may be so by chance: the error is then infinite, or that
        of differently weighted forms; 0 from 7 probes on where all products show a diagonal A (15
        where A has a quadratic form of its own).

    Raises
    ------
    ValueError, TypeError
        If A is not square, the budget is no positive int, or A returns something unusable;
        NotFiniteError if that is NaN or infinity.

    Notes
    -----
    Costs m products, and little else. Memory is one block of probes and one of products (and all m
    probes for `probes.orthogonal`).

    With a `control` the variance is that of :math:`A - c P`. The coefficient c comes from the
    samples: for each of eight folds of the probes from all others, so that the mean is unbiased
    whatever P is; 0 where that does not promise to save a tenth of the variance, and for fewer than
    six probes. ``reason`` says c and the gain. Products with P are taken to be cheap: they are not
    counted. Signs remove the diagonal already: a diagonal P gains nothing.

    The relative error falls as ``m ** -0.5``; use it for flat spectra or tiny budgets.

    References
    ----------
    Girard (1989), Numer. Math. 56, doi:10.1007/BF01395775; Hutchinson (1989), Commun. Stat. Simul.
    Comput. 18, doi:10.1080/03610918908812806.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.ones((50, 50)) + np.diag(np.arange(50.0))
    >>> estimate = tk.hutchinson(A, 20, rng=0)
    >>> estimate.num_matvecs
    20
    """
    run = Run.of(A, num_matvecs, rng, rtol, atol, chunk_size)
    known = None if control is None else read_control(control, run.A, "trace")
    return girard_hutchinson(run, probes, known)


def girard_hutchinson(run: Run, probes: Probes, control: Control | None = None) -> Estimate:
    """The mean of quadratic forms, for a call that is checked."""
    return run.spend(steps(run.A, run.source, run.budget, probes, control))


def steps(
    A: LinearOperator, source: Source, budget: int, probes: Probes, control: Control | None
) -> Callable[[Samples | None, int], tuple[Samples, Estimate]]:
    """What draws so many further probes, and estimates from these and from those before."""
    if control is not None:
        require_independent(probes)
    take = distributions.stream(probes, source, A.shape[0], min(budget, exact_trace_cost(A)))
    forms, size = quadratic_forms(A), columns_at_once(A)
    of_control = None if control is None else quadratic_forms(control.operator)

    def step(before: Samples | None, k: int) -> tuple[Samples, Estimate]:
        for width in blocks(k, k if probes is distributions.orthogonal else size):
            X = take(width)
            beside = None if of_control is None else of_control(X)
            before = joined(A, before, Samples(forms(X), beside))
        assert before is not None
        return before, estimated(A, before, probes, control)

    return step


class Samples(NamedTuple):
    """Quadratic forms of A and of a control, as `quadratic_forms` gives them."""

    forms: Array
    control: Array | None


def joined(A: LinearOperator, before: Samples | None, new: Samples) -> Samples:
    """Samples after those before."""
    if before is None:
        return new
    pairs = zip(before, new, strict=True)
    return Samples(*(None if x is None else A.xp.concat([x, y], axis=1) for x, y in pairs))


def estimated(
    A: LinearOperator, samples: Samples, probes: Probes, control: Control | None
) -> Estimate:
    """The mean of samples, less what a control tells of it."""
    forms, c, n = samples.forms, None, A.shape[0]
    if control is not None:
        forms, c = controlled(forms, samples.control, control.value, control.error)
    m = forms.shape[1]
    correction = distributions.finite_population(probes, m, n)
    found = mean(forms[0, :], m, "hutchinson", correction=correction)
    if distributions.few_valued(probes, complex_=is_complex(A)):
        found = beyond_chance(found, weighted_forms(forms), correction=correction)
    if control is not None and c is not None:
        found = with_control(found, samples, control, c)
    return finalize(found, A, columns=forms[0, :])


def with_control(found: Estimate, samples: Samples, control: Control, c: Array) -> Estimate:
    """The estimate with the error of the control's value, and what the control was worth."""
    xp, coefficient = namespace(c), namespace(c).mean(c)
    error = xp.hypot(found.standard_error, xp.abs(coefficient) * control.error)
    plain = standard_error(samples.forms[0, :])
    return replace(found, standard_error=error, reason=told(coefficient, error, plain, c.shape[0]))


def weighted_forms(forms: Array) -> Array | None:
    """Of what `quadratic_forms` gives, those that are weighted, where there are any."""
    return forms[1, :] if forms.shape[0] > 1 else None
