"""The ratio of two traces that were read from the same probes."""

from __future__ import annotations

from dataclasses import replace

from .._arrays import Array, is_traced, namespace
from .._estimates import ErrorParts, Estimate, finalize, standard_error


def ratio_of(D: Estimate, Z: Estimate) -> Estimate:
    """The ratio of two estimates, by the delta method, without its bias of first order.

    Whatever widens the spread of one of them widens that of the ratio.
    """
    xp = namespace(Z.value)
    if not is_traced(Z.value) and bool(xp.any(Z.value == 0)):
        raise ValueError("the trace that the ratio is taken over is 0; pass another function")
    R, size = D.value / Z.value, xp.abs(Z.value)
    if D.samples is None or Z.samples is None:
        return replace(D, value=R)
    residual = (D.samples - R[..., None] * Z.samples) / Z.value[..., None]
    m = residual.shape[-1]
    bias = xp.sum(residual * (Z.samples / Z.value[..., None] - 1), axis=-1) / (m * max(m - 1, 1))
    spread = standard_error(residual)
    factor = xp.maximum(*(_widened(x) for x in (D, Z)))
    quadrature = (D.kept.quadrature + xp.abs(R) * Z.kept.quadrature) / size
    value = R + bias
    found = replace(
        D,
        value=value,
        standard_error=xp.hypot(spread * factor, quadrature),
        samples=value[..., None] + residual,
        converged=D.converged and Z.converged,
        reason=D.reason if not D.converged else Z.reason,
        skewness=None,
        slope=None,
        slope_error=None,
        kept=ErrorParts(spread * factor, quadrature),
    )
    return finalize(found, quantity="ratio of traces")


def _widened(x: Estimate) -> Array:
    """What the spread of samples is multiplied by."""
    assert x.samples is not None
    plain = standard_error(x.samples)
    xp = namespace(plain)
    known = (plain > 0) & xp.isfinite(plain)
    safe = xp.where(known, plain, xp.ones_like(plain))
    return xp.where(known, x.kept.monte_carlo / safe, xp.ones_like(plain))
