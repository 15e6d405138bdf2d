"""Means over strata, each of which has independent samples of its own: colours of probing."""

from __future__ import annotations

import math

from .._arrays import Array, abs2, eps_of, is_traced, magnitude, namespace, to_number
from .estimate import Estimate
from .samples import doubt


def stratified(
    samples: Array,
    num_matvecs: int,
    method: str,
    weighted: Array | None = None,
    *,
    signs: bool = False,
) -> Estimate:
    r"""The mean of samples (..., draws, strata) over both axes, all independent.

    The squared standard error of a sum is :math:`\sum_s v_s / R`, v_s the variance of a stratum
    over R draws, with :math:`(R - 1) (\sum v_s)^2 / \sum v_s^2` degrees of freedom (Satterthwaite
    (1946), doi:10.2307/3002019), rounded down; R - 1 where values are not known. Samples of `signs`
    that are equal in all strata are not exact while that may be chance: see `beyond_chance`.
    """
    xp, R = namespace(samples), samples.shape[-2]
    draws = xp.mean(samples, axis=-1)
    error, dof = _error(samples)
    if signs and R > 1:
        instead = error + doubt(0.75 ** (R - 1))
        if weighted is not None:
            both = error + doubt(0.5 ** (R - 1))
            instead = xp.where(_tied(weighted, samples), both, _error(weighted)[0])
        tied = _tied(samples, samples if weighted is None else weighted)
        error = xp.where(tied, instead, error)
    return Estimate(xp.mean(draws, axis=-1), error, num_matvecs, method, draws, dof=dof)


def _error(samples: Array) -> tuple[Array, int]:
    """Of the mean; and how many degrees of freedom it has."""
    xp, (R, S) = namespace(samples), samples.shape[-2:]
    deviation = samples - xp.mean(samples, axis=-2, keepdims=True)
    if R == 1:
        return xp.sum(abs2(deviation), axis=(-2, -1)) + math.inf, 0
    scale = magnitude(deviation)
    v = xp.sum(abs2(deviation / scale), axis=-2)
    total = xp.sum(v, axis=-1)
    error = xp.sqrt(total * (1 / (R * (R - 1)))) * scale * (1 / S)
    if is_traced(total):
        return error, R - 1
    square = xp.sum(v * v, axis=-1)
    ratio = xp.where(square > 0, total * total / xp.where(square > 0, square, 1 + square), 1.0)
    return error, max(math.floor((R - 1) * to_number(xp.min(ratio)).real + 1e-6), R - 1)


def _tied(samples: Array, others: Array) -> Array:
    """Whether the samples of every stratum are equal, up to rounding."""
    xp = namespace(samples)
    rounding = 64 * eps_of(samples) * magnitude(xp.stack([samples, others]))
    return xp.max(xp.abs(samples - samples[..., :1, :]), axis=(-2, -1)) <= rounding
