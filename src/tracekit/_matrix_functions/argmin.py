"""Where a curve of estimates is least, and where it may be so instead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .._arrays import real, to_host
from .._estimates import ErrorParts, Estimate, standard_error


def argmin(curve: Estimate, level: float = 0.95) -> tuple[int, list[int]]:
    """Where a curve of shared probes is least, and where it may be so instead.

    Parameters
    ----------
    curve : Estimate
        Real, of shape (T,), such as of `gcv`, `reml` or ``SpectralRun.family``.
    level : float, optional
        Between 0 and 1.

    Returns
    -------
    index : int
        Of the least value.
    candidates : list of int
        Those whose difference from that, by the same probes, may be 0 within a simultaneous band of
        the level: what more products would choose among. The index alone where the curve is exact.

    Raises
    ------
    ValueError
        If the curve is not of one dimension, or `level` does not lie between 0 and 1.

    Notes
    -----
    Of the error of the estimate alone, which more products lower: where the least score of other
    data would lie is another question. It is read on the host.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> run = tk.spectral_run(tk.testing.known_spectrum(np.linspace(0.0, 1.0, 300)), 100, rng=0)
    >>> tk.argmin(run.family(lambda x, t: (x - t) ** 2, [0.0, 0.5, 1.0]))
    (1, [1])
    """
    if getattr(curve.value, "ndim", 0) != 1:
        raise ValueError(
            "`curve` must be an Estimate of shape (T,), got one of shape "
            f"{tuple(getattr(curve.value, 'shape', ()))}"
        )
    value, error = (to_host(real(x)) for x in (curve.value, curve.standard_error))
    least, samples = int(np.argmin(value)), None
    if curve.samples is not None:
        samples = to_host(real(curve.samples))
        parts = getattr(curve.kept, "monte_carlo", curve.standard_error), standard_error(samples)
        spread, plain = (to_host(x) for x in parts)
        quadrature = np.zeros_like(error)
        if isinstance(curve.kept, ErrorParts):
            quadrature = to_host(curve.kept.quadrature)
        samples = samples - samples[least]
        with np.errstate(invalid="ignore"):  # of one probe
            widened = np.max(np.divide(spread, plain, out=np.ones_like(plain), where=plain > 0))
            error = np.hypot(standard_error(samples) * widened, quadrature + quadrature[least])
    apart = np.arange(len(value)) != least
    difference = replace(
        curve,
        value=value - value[least],
        standard_error=np.where(apart, error, 0.0),
        samples=samples,
        skewness=None,
    )
    with np.errstate(invalid="ignore"):
        low, _ = difference.band(level)
    return least, [int(i) for i in np.flatnonzero(~(low > 0))]
