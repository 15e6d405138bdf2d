"""How the eigenvalues of a Hermitian operator are distributed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import Array, Rng, device_of, namespace, to_host, to_number
from .._estimates import checked_budget, plot_density
from .._operators import all_columns_cost, square
from .._sketches import gauss, lanczos
from ..probes import Source, distributions
from .request import eigenvalues, is_affordable


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity:
    """The distribution of the eigenvalues, as points with weights.

    Parameters
    ----------
    nodes : array of shape (N,)
        Ritz values, in no order.
    weights : array of shape (N,)
        What share of the eigenvalues each stands for; they add up to 1.
    num_matvecs : int
        Products spent.
    depth : int
        Lanczos steps.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> density = tk.spectral_density(np.diag([1.0, 1.0, 1.0, 3.0]), 4, rng=0)
    >>> round(float(np.sum(density.nodes * density.weights)), 6)
    1.5
    """

    nodes: Array
    weights: Array
    num_matvecs: int
    depth: int

    def density(self, x: Array, width: float | None = None) -> Array:
        """Eigenvalues per unit of x, as a share of all, each spread to a normal distribution.

        Parameters
        ----------
        x : array
            Where.
        width : float, optional
            Standard deviation of the normal distributions, in the unit of x; one and
            a half times the mean distance of the Ritz values of a probe if not given.

        Returns
        -------
        array
            Of the shape of `x`, in the operator's library; its integral is 1.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> density = tk.spectral_density(np.diag([0.0, 0.0, 0.0, 4.0]), 4, rng=0)
        >>> density.density(np.array([0.0, 4.0]), width=0.1).round(2).tolist()
        [2.99, 1.0]
        """
        xp = namespace(x)
        if width is None:
            width = 1.5 * self._breadth() / self.depth
        if not width > 0:
            raise ValueError(f"`width` must be a positive number, got {width!r}; pass one, or None")
        nodes, weights = (
            xp.reshape(part, (*[1] * x.ndim, -1)) for part in (self.nodes, self.weights)
        )
        z = (x[..., None] - nodes) / width
        bells = xp.exp(-0.5 * z * z) / (width * math.sqrt(2 * math.pi))
        return xp.sum(bells * weights, axis=-1)

    def plot(self, ax: Any = None, *, width: float | None = None) -> Any:
        """Draw the density.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure if not given.
        width : float, optional
            As for `density`.

        Returns
        -------
        matplotlib Axes
            The axes drawn on.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        xp, margin = namespace(self.nodes), 0.08 * self._breadth()
        low, high = to_number(xp.min(self.nodes)).real, to_number(xp.max(self.nodes)).real
        x = np.linspace(low - margin, high + margin, 600)
        where = xp.asarray(x, dtype=self.nodes.dtype, device=device_of(self.nodes))
        return plot_density(ax, x, to_host(self.density(where, width)))

    def _breadth(self) -> float:
        """Of the spectrum; where it is one point, of that."""
        xp = namespace(self.nodes)
        low, high = to_number(xp.min(self.nodes)).real, to_number(xp.max(self.nodes)).real
        return high - low if high - low > 1e-6 * abs(high) else max(abs(high), 1e-300)

    def __repr__(self) -> str:
        return f"SpectralDensity({self.nodes.shape[0]} nodes, {self.num_matvecs} matvecs)"


SpectralDensity.__module__ = "tracekit"


def spectral_density(
    A: Any, num_matvecs: int, *, rng: Rng = None, depth: int | None = None
) -> SpectralDensity:
    """The distribution of the eigenvalues of a Hermitian operator, by Lanczos quadrature.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n.
    num_matvecs : int
        Products m to spend: `depth` for each probe (``2 depth - 1`` if A was made by `gram`). From
        n products on (the lesser dimension of L, if A is ``L L^H``), where n^2 numbers fit in a
        gigabyte, all eigenvalues are computed, unless `depth` is given.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        Lanczos steps: what resolves the density. If not given, twice the root of m, at most n.

    Returns
    -------
    SpectralDensity
        Points with weights, which can be smoothed and drawn.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`.

    Notes
    -----
    Moments of degree below 2 depth are right but for the choice of the probes. Memory for m
    columns.

    References
    ----------
    Lin, Saad, Yang (2016), SIAM Rev. 58, arXiv:1308.5467.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(0.0, 2.0, 200))
    >>> density = tk.spectral_density(A, 120, rng=0)
    >>> bool(abs(density.density(np.array([1.0])) - 0.5) < 0.2)
    True
    """
    A, m = square(A, "spectral density"), checked_budget(num_matvecs)
    if depth is None and is_affordable(A, m):
        x = eigenvalues(A)
        return SpectralDensity(x, A.xp.ones_like(x) / x.shape[0], all_columns_cost(A), x.shape[0])
    n, most = A.shape[0], m if A.factor is None else (m + 1) // 2
    depth = 2 * math.isqrt(m) if depth is None else checked_budget(depth, "depth")
    depth = min(depth, n, most)
    count = min(m // lanczos.cost(A, depth), n)
    X = distributions.rademacher(Source(rng, A), n, count)
    found = gauss.shares(lanczos.begin(A, X).advance(depth))
    nodes, shares = (A.xp.reshape(part, (-1,)) for part in found)
    return SpectralDensity(
        nodes,
        shares / A.xp.sum(shares),
        count * lanczos.cost(A, depth),
        depth,
    )
