r"""The coefficient of a control variate, from the samples of other folds.

Samples y of what is wanted, and p of a control whose mean t is known, from the same probes: the
mean of :math:`y - c (p - t)` is that of y for any c that knows nothing of the sample. So the
samples are dealt into folds, and c of each fold is fitted to all others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._arrays import (
    Array,
    abs2,
    beside,
    conj,
    eps_of,
    magnitude,
    namespace,
    positive,
    real_dtype,
)

FOLDS = 8
FEWEST = 5  # samples that a coefficient may be fitted to
GAIN = 0.9  # of the variance without a control, what is left has to be less
# A control that is worth nothing seems to be worth something in few samples, and in those where it
# is small by chance: the squared t value of the coefficient has to be larger, by experiment.
T_VALUE, OF_FEW = 4.0, 10
ROUNDING = 1e3  # in units of eps: a spread below that is none


class Sums(NamedTuple):
    """Of each fold, about any center: its samples, and sums over these (and over entries)."""

    count: Array
    y: Array  # (folds, entries)
    p: Array
    yy: Array  # (folds,)
    pp: Array
    py: Array  # conj(p) y


def fold_of(start: int, count: int) -> np.ndarray:
    """The folds of samples, the first of which is number `start`."""
    return np.arange(start, start + count) % FOLDS


def membership(like: Array, start: int, count: int) -> Array:
    """Ones, (folds, samples), where a sample is in a fold, in the dtype of an array."""
    of = np.arange(FOLDS)[:, None] == fold_of(start, count)[None, :]
    return beside(like, of.astype(float), like.dtype)


def coefficients(sums: Sums, variance: Array | float = 0.0) -> Array:
    """For each fold, the coefficient from all others; 0 where it is not worth anything.

    `variance` is that of the value of the control, where it is an estimate, times the samples.
    """
    xp, others = namespace(sums.yy), [x[None, ...] for x in sums]
    count, y, p, yy, pp, py = (xp.sum(x, axis=1) - x[0, ...] for x in others)
    n, rounding = positive(count), ROUNDING * eps_of(yy)
    least_yy, least_pp = yy * rounding, pp * rounding
    yy = yy - xp.sum(abs2(y), axis=-1) / n
    pp = pp - xp.sum(abs2(p), axis=-1) / n
    py = py - xp.sum(conj(p) * y, axis=-1) / xp.astype(n, p.dtype, copy=False)
    c = py / xp.astype(positive(pp + n * variance), py.dtype, copy=False)
    explained = abs2(py) / positive(pp)
    left = xp.where(yy > explained, yy - explained, xp.zeros_like(yy))
    worth = explained * (count - 2) > left * (T_VALUE + OF_FEW * (OF_FEW / n) ** 4)
    # what is left, by a fit of two numbers, and what the value of the control adds
    added = left / positive(n - 2) + abs2(c) * variance
    worth = worth & (added < GAIN * yy / positive(n - 1)) & (count >= FEWEST)
    worth = worth & (yy > least_yy) & (pp > least_pp)  # equal samples tell nothing
    return xp.where(worth, c, xp.zeros_like(c))


def fitted(y: Array, p: Array, variance: Array | float = 0.0) -> Array:
    """For each of the samples (m,), the coefficient of ``p - t`` from the other folds.

    `variance` is that of t, if it is an estimate.
    """
    xp, m = namespace(y), y.shape[-1]
    unit_y, unit_p = magnitude(y), magnitude(p)
    y, p = (_spread(x / unit) for x, unit in ((y, unit_y), (p, unit_p)))
    scale = magnitude(xp.concat([xp.abs(y), xp.abs(p)]))
    y, p = y / scale, p / scale
    dtype = real_dtype(y.dtype, xp)
    of = membership(xp.astype(xp.abs(y), dtype, copy=False), 0, m)
    mixed = xp.astype(of, y.dtype, copy=False)

    def over(x: Array) -> Array:
        return xp.sum(x[None, :] * (of if x.dtype == dtype else mixed), axis=-1)

    sums = Sums(
        xp.sum(of, axis=-1), over(y)[:, None], over(p)[:, None],
        over(abs2(y)), over(abs2(p)), over(conj(p) * y),
    )  # fmt: skip
    c = coefficients(sums, m * variance / (unit_p * scale) ** 2)
    return xp.sum(c[:, None] * mixed, axis=0) * (unit_y / unit_p)


def _spread(x: Array) -> Array:
    """Samples of size 1 less their mean, where that is more than rounding."""
    xp = namespace(x)
    x = x - xp.mean(x)
    return xp.where(xp.abs(x) > ROUNDING * eps_of(x), x, xp.zeros_like(x))
