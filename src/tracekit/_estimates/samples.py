"""How samples become an estimate: their mean, its standard error, and what equal ones tell."""

from __future__ import annotations

import math
from dataclasses import replace

from .._arrays import Array, abs2, eps_of, magnitude, namespace, real
from .estimate import Estimate


def mean(
    samples: Array,
    num_matvecs: int,
    method: str,
    *,
    correction: float = 1.0,
    independent: bool = True,
) -> Estimate:
    """The mean of samples along their last axis; the spread is multiplied by `correction`."""
    m = samples.shape[-1]
    error = standard_error(samples) * correction
    value = namespace(samples).mean(samples, axis=-1)
    skewness = skewness_of(samples) if independent else None
    return Estimate(value, error, num_matvecs, method, samples, dof=m - 1, skewness=skewness)


def standard_error(samples: Array) -> Array:
    """Of the mean of uncorrelated samples along their last axis; infinite for one sample."""
    xp, m = namespace(samples), samples.shape[-1]
    deviation = samples - xp.mean(samples, axis=-1, keepdims=True)
    if m == 1:
        return xp.sum(abs2(deviation), axis=-1) + math.inf
    scale = magnitude(deviation)  # squares of tiny and huge numbers stay in range
    return xp.sqrt(xp.sum(abs2(deviation / scale), axis=-1)) * scale * (m * (m - 1)) ** -0.5


def skewness_of(samples: Array) -> Array:
    """Of the real parts of samples along their last axis."""
    xp, samples = namespace(samples), real(samples)
    deviation = samples - xp.mean(samples, axis=-1, keepdims=True)
    deviation = deviation / magnitude(deviation)
    variance = xp.mean(deviation * deviation, axis=-1)
    third = xp.mean(deviation * deviation * deviation, axis=-1)
    positive = xp.where(variance > 0, variance, xp.ones_like(variance))
    return third / positive / namespace(samples).sqrt(positive)  # the power might vanish


CHANCE = 0.02  # of calling samples exact that are equal by chance


def beyond_chance(
    estimate: Estimate,
    weighted: Array | None = None,
    *,
    correction: float = 1.0,
    rest: Array | None = None,
    surplus: int = 0,
) -> Estimate:
    r"""A mean of quadratic forms in signs, whose error is not 0 because of ties.

    A form that is not constant takes each value with probability 3/4 at most: m samples are equal
    with probability :math:`(3/4)^{m-1}`. The `weighted` forms :math:`x^H W A x`, W diagonal, tell
    more: they are equal only where A x is d x for one diagonal d, which for an A that is not
    diagonal has probability :math:`2^{1-m}`. The `rest` that is estimated beside an exact part, a
    form of A where A is semidefinite and the weighted form elsewhere, vanishes only where its
    products do: with probability :math:`2^{-m}`, less by `surplus` where a sketch had that many
    columns too many. Above CHANCE the error is infinite; or that of the weighted forms, where these
    differ.
    """
    samples, error = estimate.samples, estimate.standard_error
    assert samples is not None
    m = samples.shape[-1]
    if m == 1 or correction == 0:
        return estimate
    xp = namespace(samples)
    unit = magnitude(samples if weighted is None else xp.stack([samples, weighted]))
    rounding = 64 * eps_of(samples) * unit

    def tied(x: Array) -> Array:
        return xp.max(xp.abs(x - x[:1])) <= rounding

    if weighted is None:
        instead = error + doubt(0.75 ** (m - 1))
    else:
        other = standard_error(weighted) * correction
        instead = xp.where(tied(weighted), error + doubt(0.5 ** (m - 1)), other)
    if rest is not None:
        gone = xp.max(xp.abs(rest)) <= rounding
        instead = xp.where(gone, error + doubt(0.5 ** (m + surplus)), instead)
    return replace(estimate, standard_error=xp.where(tied(samples), instead, error))


def doubt(chance: float) -> float:
    """What is added to the error of equal samples, given the probability of a tie."""
    return math.inf if chance > CHANCE else 0.0


def few(m: int) -> float:
    """What the error from m samples that one direction may dominate is multiplied by.

    Such samples are skewed, and their spread is small where their mean is; calibrated by experiment
    on spectra of one spike.
    """
    return 1 + 8 / m**2
