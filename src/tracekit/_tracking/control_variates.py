r"""Trace, norm and alignment from small compressions of operators to common probes.

W = [Q, V]: k orthonormal columns Q and s random ones V beyond them, of the complement's dimension
n. Of an operator A only ``K = W^H A W`` is known. The part on Q is exact; V estimates the rest. At
a calibration fresh probes estimate the errors of V, which later steps use as control variates.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._estimates import jackknife
from .._sketches import zonal

# The jackknife's errors of cosines, and of what a calibration leaves of a norm, are too small where
# the probes are few: calibrated along kernels of networks in training and random drifts.
INFLATION = 1.25


class Sizes(NamedTuple):
    """Of the complement of Q, of Q, and of the probes beyond it."""

    n: int
    k: int
    s: int
    complex_: bool

    @property
    def rest(self) -> float:
        """The finite-population factor of variances: 0 where the probes span everything."""
        return 1 - self.s / self.n if self.s else 0.0

    @property
    def factor(self) -> float:
        """Variance of ``n / s tr K`` in units of the squared norm of the deviatoric part of K.

        The variance of the diagonal of K, averaged over all bases of the span of V.
        """
        spread = self.s + 1 if self.complex_ else (self.s + 2) / 2
        return self.rest * self.n**2 / max(self.s * (self.s - 1) * spread, 1)

    @property
    def numbers(self) -> int:
        """Entries of a deviatoric K."""
        return self.s**2 - 1 if self.complex_ else (self.s - 1) * (self.s + 2) // 2


class Reading(NamedTuple):
    """A value, the variance of its error, and degrees of freedom of the latter."""

    value: float
    variance: float
    dof: int


class Readings(NamedTuple):
    """Readings by the probes alone, and deviations: their squares are variances."""

    trace: float
    deviation: NDArray[Any]  # the deviatoric part of K beyond Q, as a real vector
    norm: Reading
    norm_deviation: NDArray[Any]  # of its jackknife replicates
    alignment: Reading


class Calibration(NamedTuple):
    """Readings by the probes, and by fresh ones of the same operator."""

    readings: Readings
    trace: Reading
    norm: Reading
    ratio: float  # of the variances by fresh probes and by those that stay


def evaluate(sizes: Sizes, K: NDArray[Any], first: NDArray[Any]) -> Readings:
    """Readings from the compressions of an operator and of the first one."""
    k, s = sizes.k, sizes.s
    B = K[k:, k:]
    t = float(np.trace(B).real)
    flat = (B - np.eye(s) * (t / max(s, 1))).ravel()
    deviation = np.concatenate([flat.real, flat.imag]) if sizes.complex_ else flat
    cross, own, start = (_inner(sizes, *pair) for pair in ((first, K), (K, K), (first, first)))
    if not (own[0] > 0 and start[0] > 0):
        raise ValueError("the operator is zero, so its alignment is 0 / 0; leave this step out")
    norm, norm_deviation = _jackknife(sizes, np.sqrt(np.maximum(own, 0)))
    least = own[0] * start[0] * 1e-8
    cosine, _ = _jackknife(sizes, cross / np.sqrt(np.maximum(own * start, least)))
    cosine = cosine._replace(variance=cosine.variance * INFLATION**2)
    trace = float(np.trace(K[:k, :k]).real) + sizes.n / max(s, 1) * t
    return Readings(trace, deviation, norm, norm_deviation, cosine)


def calibration(sizes: Sizes, own: Readings, fresh: Sizes, K: NDArray[Any]) -> Calibration:
    """A calibration by the compression K to Q and fresh probes."""
    other = evaluate(fresh, K, K)
    variance = fresh.factor * float(other.deviation @ other.deviation)
    ratio = sizes.s / fresh.s * fresh.rest / sizes.rest
    return Calibration(own, Reading(other.trace, variance, fresh.s - 1), other.norm, ratio)


def trace(sizes: Sizes, now: Readings, anchors: list[Calibration]) -> tuple[Reading, float]:
    """The trace corrected by all calibrations, and the error that the change since them leaves."""
    X = np.array([anchor.readings.deviation for anchor in anchors])
    X = X.reshape(len(anchors), now.deviation.size).T
    c, left = _least_variance(now.deviation, X, [a.ratio for a in anchors], sizes.numbers)
    _, beyond = _least_variance(now.deviation, X, [0.0] * len(anchors), sizes.numbers)
    wrong = np.array([anchor.readings.trace - anchor.trace.value for anchor in anchors])
    known = np.array([anchor.trace.variance for anchor in anchors])
    variance = left * sizes.factor + float(c * c @ known)
    reading = Reading(now.trace - float(c @ wrong), variance, sizes.s - 1)
    return reading, math.sqrt(beyond * sizes.factor)


def norm(sizes: Sizes, now: Readings, anchors: list[Calibration]) -> Reading:
    """The norm corrected by the one calibration whose deviations are most like those now."""
    best, found, x = math.inf, now.norm, now.norm_deviation
    for anchor in anchors:
        X = anchor.readings.norm_deviation[:, None]
        (c,), left = _least_variance(x, X, [anchor.ratio], sizes.s - 1)
        c, reach = float(c), float(np.sum(X * X))
        if (aim := left + c * c * reach * anchor.ratio) < best:
            value = now.norm.value - c * (anchor.readings.norm.value - anchor.norm.value)
            best = aim
            variance = left * INFLATION**2 + c * c * anchor.norm.variance
            found = Reading(value, variance, sizes.s - 1)
    return found


def _inner(sizes: Sizes, K1: NDArray[Any], K2: NDArray[Any]) -> NDArray[Any]:
    """The inner product of two operators: of all probes, then without each beyond Q."""
    k, s, n = sizes.k, sizes.s, sizes.n
    on_Q = np.sum(K1[:k, :k].conj() * K2[:k, :k]).real
    if s == 0:
        return np.array([on_Q])
    sides = np.sum(K1[k:, :k].conj() * K2[k:, :k], axis=1).real
    B1, B2 = K1[k:, k:], K2[k:, k:]
    d1, d2 = np.diagonal(B1).real, np.diagonal(B2).real
    dots = np.sum(B1.conj() * B2, axis=1).real
    t1, t2, dot, c = d1.sum(), d2.sum(), dots.sum(), sizes.complex_
    whole = zonal(t1 * t2, dot, s, n, complex_=c)[0] + 2 * n / s * sides.sum()
    less = zonal((t1 - d1) * (t2 - d2), dot - 2 * dots + d1 * d2, s - 1, n, complex_=c)[0]
    less = less + 2 * n / (s - 1) * (sides.sum() - sides)
    values: NDArray[Any] = on_Q + np.concatenate([[whole], less])
    return values


def _jackknife(sizes: Sizes, values: NDArray[Any]) -> tuple[Reading, NDArray[Any]]:
    """A value corrected for its bias, and the deviations of the replicates."""
    whole, replicates = float(values[0]), values[1:]
    if replicates.size == 0:
        return Reading(whole, 0.0, 0), replicates
    corrected, deviation, share = jackknife(whole, replicates, sizes.rest)
    deviation = deviation * math.sqrt(share)
    return Reading(float(corrected), float(deviation @ deviation), sizes.s - 1), deviation


def _least_variance(
    x: NDArray[Any], X: NDArray[Any], ratios: list[float], numbers: int
) -> tuple[NDArray[Any], float]:
    """The c of least ``|x - X c|^2 + sum ratio c^2 |X|^2``, and the first term.

    A column of X holds the deviations at a calibration, whose error fresh probes estimate up to
    `ratio` times the variance. The first term is corrected for the freedom spent on c, of `numbers`
    altogether.
    """
    G = X.T @ X
    both = G + np.diag(np.diagonal(G) * ratios)
    solved = np.linalg.lstsq(both, np.column_stack([X.T @ x, G]), rcond=None)[0]
    c, used = solved[:, 0], float(np.trace(solved[:, 1:]))
    rest = x - X @ c
    return c, float(rest @ rest) * numbers / max(numbers - used, 1)
