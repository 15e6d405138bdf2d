"""How the trace of a function is integrated: Lanczos, with a basis or without, or Chebyshev."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

__all__ = ["Chebyshev", "Lanczos", "chebyshev", "lanczos"]


class Lanczos(NamedTuple):
    """Lanczos; made by `lanczos`.

    Parameters
    ----------
    reorthogonalise : bool or None, optional
        As `lanczos` takes it.

    Examples
    --------
    >>> import tracekit as tk
    >>> tk.quadrature.lanczos(reorthogonalise=False)
    Lanczos(reorthogonalise=False)
    """

    reorthogonalise: bool | None = None


class Chebyshev(NamedTuple):
    """Chebyshev moments; made by `chebyshev`.

    Parameters
    ----------
    interval : (float, float) or None, optional
        As `chebyshev` takes it.

    Examples
    --------
    >>> import tracekit as tk
    >>> tk.quadrature.chebyshev(interval=(0.0, 8.0))
    Chebyshev(interval=(0.0, 8.0))
    """

    interval: tuple[float, float] | None = None


class Arnoldi(NamedTuple):
    """Arnoldi, of operators that are not Hermitian; asked for by ``hermitian=False``.

    Examples
    --------
    >>> import tracekit as tk
    >>> tk.quadrature.Arnoldi()
    Arnoldi()
    """


def lanczos(reorthogonalise: bool | None = None) -> Lanczos:
    """Gauss rules from Lanczos: they adapt to gaps and outliers of the spectrum.

    Parameters
    ----------
    reorthogonalise : bool, optional
        Whether bases are kept and orthogonalised: memory for a column a product, and every probe is
        deflated by the spaces of others. Without it the three-term recurrence keeps four columns a
        probe, at the cost of more steps where eigenvalues converge early (decaying spectra); on
        flat spectra, of graphs and of Laplacians, it loses nothing. If not given, bases are kept
        where 64 columns take no more than 256 MB.

    Returns
    -------
    Lanczos
        What `trace_function` and others take as ``quadrature``.

    Raises
    ------
    TypeError
        If `reorthogonalise` is no bool.

    References
    ----------
    Chen (2024), "The Lanczos algorithm for matrix functions: a handbook for scientists",
    arXiv:2410.11090.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.LinearOperator((10**5,) * 2, lambda X: np.linspace(1, 3, 10**5)[:, None] * X)
    >>> light = tk.quadrature.lanczos(reorthogonalise=False)
    >>> estimate = tk.logdet(A, 60, rng=0, quadrature=light)
    >>> bool(abs(estimate.value / np.sum(np.log(np.linspace(1, 3, 10**5))) - 1) < 1e-2)
    True
    """
    if reorthogonalise is not None and not isinstance(reorthogonalise, bool):
        raise TypeError(
            f"`reorthogonalise` must be True, False or None, got {reorthogonalise!r}; leave it out "
            "to have it chosen by memory"
        )
    return Lanczos(reorthogonalise)


def chebyshev(interval: tuple[float, float] | None = None) -> Chebyshev:
    """Chebyshev moments: two a product, without inner products of bases, in four columns a probe.

    Parameters
    ----------
    interval : (float, float), optional
        Two numbers between which all eigenvalues lie. If not given, they are found by 20 Lanczos
        steps on two probes, at most a sixth of the products; for a function that is defined for
        positive eigenvalues alone, such as `log`, the lower one has to be given where that finds
        none above 0.

    Returns
    -------
    Chebyshev
        What `trace_function` and others take as ``quadrature``.

    Raises
    ------
    ValueError
        If `interval` is not two finite increasing numbers.

    Notes
    -----
    An eigenvalue outside of the interval makes moments grow, which is watched: an interval that was
    found is widened, one that was given is refused.

    References
    ----------
    Weisse, Wellein, Alvermann, Fehske (2006), Rev. Mod. Phys. 78, arXiv:cond-mat/0504627.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.linspace(1.0, 3.0, 500))
    >>> rule = tk.quadrature.chebyshev(interval=(1.0, 3.0))
    >>> estimate = tk.logdet(A, 200, rng=0, quadrature=rule)
    >>> bool(abs(estimate.value / np.linalg.slogdet(A)[1] - 1) < 1e-2)
    True
    """
    if interval is None:
        return Chebyshev()
    return Chebyshev(checked_interval("interval", interval))


def checked_interval(name: str, interval: Any) -> tuple[float, float]:
    """Refuse what is not two finite increasing numbers."""
    try:
        low, high = (float(x) for x in interval)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"`{name}` must be two finite increasing numbers, got {interval!r}; pass some between "
            "which all eigenvalues lie"
        )
    return low, high


for _public in (Arnoldi, Lanczos, Chebyshev):
    _public.__module__ = "tracekit.quadrature"
