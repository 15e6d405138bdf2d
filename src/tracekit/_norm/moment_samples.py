"""Trace and squared norm together: samples of both, with their errors, and both exact."""

from __future__ import annotations

from typing import NamedTuple

from .._arrays import (
    Array,
    RowArray,
    coldot,
    inner,
    magnitude,
    matrix_trace,
    norm2,
    real,
)
from .._estimates import combined_error, few, require_finite, standard_error
from .._operators import LinearOperator, dense, each_column

# Leave-one-out samples share their sketch, so that their spread is too small. Where there is no
# jackknife: by these factors, calibrated on decaying, flat and network spectra.
INFLATION = 1.4  # of traces, ratios and inner products
NORM_INFLATION = 2.0  # of squared norms


class MomentSamples(NamedTuple):
    """Samples of the trace and of the squared norm, in units of `scale` and its square."""

    traces: Array | None
    squares: Array
    scale: Array
    spent: int
    shared: bool  # whether the samples share a sketch
    left_out: tuple[Array | None, Array | None] = (None, None)  # jackknife replicates of both

    def error(self, samples: Array, left_out: Array | None, factor: float) -> Array:
        """Of the mean of samples: jackknife and spread, or the spread times a factor."""
        spread = standard_error(samples)
        if left_out is not None:
            return combined_error(samples, left_out, spread)
        return spread * few(samples.shape[-1]) * (factor if self.shared else 1.0)

    def variance(self, samples: Array, left_out: Array | None, factor: float) -> Array:
        """Of the mean of samples, as likely too small as too large: `error` is on the safe side."""
        spread = standard_error(samples)
        if left_out is not None:
            error = combined_error(samples, left_out, spread, few=0)
        else:
            error = spread * (factor if self.shared else 1.0)
        return error * error


def exact_moments(A: LinearOperator) -> tuple[Array, Array, Array]:
    """Trace and squared norm in units of a scale and its square, and the scale."""
    xp, L = A.xp, A.factor
    if L is not None:  # both from the Gram matrix of all columns of L or L^H
        G = dense(L.H if L.shape[0] <= L.shape[1] else L)
        require_finite(G, "norm", columns=G)
        scale = magnitude(G)
        K = inner(G / scale, G / scale)
        return real(matrix_trace(K)), norm2(K), scale * scale
    B = A if A.shape[1] <= A.shape[0] or A.rmatmat is None else A.H
    parts = []
    for E, Y in each_column(B):
        require_finite(Y, "norm", columns=Y)
        scale = magnitude(Y)
        least = min(Y.shape[0], E.shape[0])
        square = norm2(Y / scale)
        if isinstance(Y, RowArray) != isinstance(E, RowArray):  # no trace, and rows held apart
            t = xp.zeros_like(square)
        else:
            t = xp.sum(coldot(E[:least, :], Y[:least, :] / scale))
        parts.append((t, square, scale))
    largest = xp.max(xp.stack([scale for _, _, scale in parts]))
    shares = [scale / largest for _, _, scale in parts]
    t = sum(t * share for (t, _, _), share in zip(parts, shares, strict=True))
    f = sum(f * share * share for (_, f, _), share in zip(parts, shares, strict=True))
    return t, f, largest
