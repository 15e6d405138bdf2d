"""The jackknife: errors from what a statistic is without each sample, and its bias."""

from __future__ import annotations

import math

from .._arrays import Array, abs2, magnitude, namespace

FEW = 8  # samples


def jackknife(whole: Array, replicates: Array, rest: float = 1.0) -> tuple[Array, Array, float]:
    """A statistic corrected for its bias, deviations of its replicates, and a factor.

    The sum of the squared deviations times the factor is the variance. `rest` is the
    finite-population correction of variances.
    """
    m, middle = replicates.shape[-1], namespace(replicates).mean(replicates, axis=-1)
    corrected = whole - (middle - whole) * ((m - 1) * rest)
    return corrected, replicates - middle, (m - 1) / m * rest


def combined_error(
    samples: Array, replicates: Array | None, spread: Array, few: int = FEW
) -> Array:
    """Geometric mean of the leave-one-out `spread` and the jackknife; of few samples the larger.

    The spread alone is too small, since the samples share their sketch; the jackknife is
    conservative (Efron and Stein, 1981). Below `few` samples either may be small by chance.
    """
    if replicates is None:
        return spread
    xp, b = namespace(samples), samples.shape[-1]
    deviation = replicates - xp.mean(replicates, axis=-1, keepdims=True)
    scale = magnitude(deviation)
    error = xp.sqrt(xp.sum(abs2(deviation / scale), axis=-1)) * scale * math.sqrt((b - 1) / b)
    if b < few:
        return xp.where(error < spread, spread, error)
    return xp.sqrt(error) * xp.sqrt(spread)


def mixed_error(
    samples: Array, replicates: list[tuple[float, Array | None]], spread: Array
) -> Array:
    """The geometric mean of two errors, where the jackknife's square is a mean by these shares."""
    xp = namespace(samples)
    errors = [
        (share, combined_error(samples, left_out, spread))
        for share, left_out in replicates
        if share > 0
    ]
    unit = magnitude(xp.stack([error for _, error in errors]))
    parts = [share * (error / unit) ** 4 for share, error in errors]
    return xp.sum(xp.stack(parts), axis=0) ** 0.25 * unit
