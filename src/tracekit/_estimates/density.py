r"""Densities of eigenvalues: what is resolved, with what error, and how many lie where.

What is seen is the density :math:`\rho` of the eigenvalues as a share of all, spread by a kernel
:math:`g` of standard deviation :math:`\sigma`: the resolution. Of m probes, with real entries, the
variance relative to the square of the value is

.. math:: \frac{2}{m} \Big( \frac{\int g^2(x - y) \rho(y)\, dy}{n \rho(x)^2} - \frac{1}{n} \Big),
    \qquad \int g^2 \rho \approx \frac{\rho'(x)}{2 \sqrt{\pi} \sigma},

where :math:`\rho'` is spread by :math:`\sigma / \sqrt 2`; half of it if entries are complex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._arrays import Array, device_of, is_traced, namespace, positive, to_host, to_number
from .estimate import ErrorParts, Estimate, exact
from .plots import plot_density
from .samples import mean

WIDTH = 1.5  # of the mean distance of Ritz values: what lies closer is not resolved


def jackson(M: int) -> np.ndarray:
    """Factors of M Chebyshev moments, from which a density comes that is nowhere negative."""
    k, turn = np.arange(M), np.pi / (M + 1)
    factors = (M + 1 - k) * np.cos(k * turn) + np.sin(k * turn) / np.tan(turn)
    return np.asarray(factors / (M + 1))


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity:
    """The distribution of the eigenvalues, as points with weights.

    Parameters
    ----------
    nodes : array of shape (N,)
        Ritz values, or the nodes of Chebyshev, of one probe after the other.
    weights : array of shape (N,)
        What share of the eigenvalues each stands for; they add up to 1.
    num_matvecs : int
        Products spent.
    depth : int
        Products with each probe.
    dimension : int
        Of the operator: eigenvalues.
    num_probes : int, optional
        Probes; 0 where `nodes` are all eigenvalues.
    complex_probes : bool, optional
        Whether their entries are complex.
    moments : array, optional
        Of Chebyshev, damped, of the mean over all probes.
    interval : (float, float), optional
        Theirs.

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
    dimension: int
    num_probes: int = 0
    complex_probes: bool = False
    moments: Array | None = None
    interval: tuple[float, float] | None = None

    def density(self, x: Array, width: float | None = None) -> Array:
        """Eigenvalues per unit of x, as a share of all.

        Parameters
        ----------
        x : array
            Where.
        width : float, optional
            Standard deviation of the normal distributions that points are spread to, in the unit of
            x: the `resolution` if not given, and no less than that. Chebyshev moments have a
            resolution of their own, and take none.

        Returns
        -------
        array
            Of the shape of `x`, in the operator's library; its integral is 1.

        Raises
        ------
        ValueError
            If `width` is not positive, finer than what is resolved, or given for Chebyshev moments.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> density = tk.spectral_density(np.diag([0.0, 0.0, 0.0, 4.0]), 4, rng=0)
        >>> density.density(np.array([0.0, 4.0]), width=0.1).round(2).tolist()
        [2.99, 1.0]
        """
        sigma = self._width(width)
        if self.interval is None or self.moments is None:
            return self._smoothed(x, sigma)
        xp, M, half = namespace(x), self.moments.shape[0], self._breadth() / 2
        u = (x - self.interval[0]) / half - 1
        degrees = xp.arange(M, dtype=x.dtype, device=device_of(x))
        angle = xp.acos(xp.clip(u, -1.0, 1.0))
        series = 2 * (xp.cos(angle[..., None] * degrees) @ self.moments) - self.moments[0]
        thin = math.pi / (8 * M)  # a turn below what is resolved: at the ends the sine is 0
        found = series / (math.pi * half * xp.sin(xp.clip(angle, thin, math.pi - thin)))
        return xp.where(xp.abs(u) <= 1, found, xp.zeros_like(found))

    def resolution(self, x: Array, width: float | None = None) -> Array:
        """The distance from which on eigenvalues are told apart, as a standard deviation.

        Parameters
        ----------
        x : array
            Where.
        width : float, optional
            As for `density`.

        Returns
        -------
        array
            Of the shape of `x`, in its unit: of Lanczos one and a half times the mean distance of
            the Ritz values of a probe, everywhere; of Chebyshev moments that of Jackson's kernel,
            finer at both ends.

        Raises
        ------
        ValueError
            As for `density`.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> A = tk.testing.known_spectrum(np.linspace(0.0, 2.0, 200))
        >>> density = tk.spectral_density(A, 120, rng=0, depth=30)
        >>> bool(abs(density.resolution(np.array([1.0]))[0] - 1.5 * 2.0 / 30) < 1e-3)
        True
        """
        xp, one = namespace(x), self._width(width)
        if self.interval is None:
            return xp.zeros_like(x) + one
        low, high = self.interval
        u = xp.clip(2 * (x - low) / (high - low) - 1, -1.0, 1.0)
        M = 2 * self.depth + 1
        wide = (1 - math.cos(2 * math.pi / (M + 1))) / (2 * (M + 1))
        return xp.sqrt((M - u * u * (M - 1)) * wide) * ((high - low) / 2)

    def relative_error(self, x: Array, width: float | None = None) -> Array:
        """The standard error of `density` that the choice of the probes makes, relative to it.

        Parameters
        ----------
        x : array
            Where.
        width : float, optional
            As for `density`: a greater one has a smaller error.

        Returns
        -------
        array
            Of the shape of `x`: the root of 2 over the probes times the eigenvalues within a
            resolution, or less for probes that happen to suit the eigenvectors. 0 where all
            eigenvalues are known, infinite where none was seen.

        Raises
        ------
        ValueError
            As for `density`.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> A = tk.testing.known_spectrum(np.linspace(0.0, 2.0, 2000))
        >>> density = tk.spectral_density(A, 120, rng=0)
        >>> bool(density.relative_error(np.array([1.0]))[0] < 0.1)
        True
        """
        xp, found, sigma = namespace(x), self.density(x, width), self.resolution(x, width)
        if not self.num_probes:
            return xp.zeros_like(found)
        finer = found
        if self.interval is None:
            finer = self._smoothed(x, self._width(width) / math.sqrt(2))
        factor = (1 if self.complex_probes else 2) / (self.num_probes * self.dimension)
        known = xp.where(found > 0, found, xp.ones_like(found))
        share = positive(finer / (2 * math.sqrt(math.pi) * sigma * known) - known)
        error = xp.sqrt(factor * share / known)
        return xp.where(found > 0, error, xp.full_like(error, math.inf))

    def count(self, low: float = -math.inf, high: float = math.inf) -> Estimate:
        """The number of eigenvalues in an interval.

        Parameters
        ----------
        low, high : float, optional
            Its ends, which belong to it.

        Returns
        -------
        Estimate
            Its standard error joins that of the probes and that of the resolution, by which each
            end may lie elsewhere; ``kept`` and ``reason`` hold the two apart.

        Raises
        ------
        ValueError
            If `low` is not below `high`.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> A = tk.testing.known_spectrum(np.linspace(0.0, 2.0, 500))
        >>> found = tk.spectral_density(A, 200, rng=0).count(0.5, 1.0)
        >>> lowest, highest = found.confidence_interval()
        >>> bool(lowest < 125 < highest)
        True
        """
        if not low < high:
            raise ValueError(f"`low` must be below `high`, got {low!r} and {high!r}")
        xp = namespace(self.nodes)
        inside = (self.nodes >= low) & (self.nodes <= high)
        held = xp.where(inside, self.weights, xp.zeros_like(self.weights)) * self.dimension
        method = "spectral_density"
        if not self.num_probes:
            return exact(xp.sum(held), self.num_matvecs, method)
        samples = xp.sum(self._by_probe(held), axis=-1) * self.num_probes
        found = mean(samples, self.num_matvecs, method)
        ends = [x for x in (low, high) if math.isfinite(x)]
        unresolved = xp.zeros_like(found.standard_error)
        if ends:
            x = xp.asarray(ends, dtype=self.nodes.dtype, device=device_of(self.nodes))
            unresolved = xp.sum(self.density(x) * self.resolution(x)) * self.dimension
            unresolved = xp.maximum(unresolved, xp.full_like(unresolved, self._leaks(low, high)))
        parts = ErrorParts(found.standard_error, unresolved)
        by_probes, by_resolution = (to_number(part).real for part in parts[:2])
        return replace(
            found,
            standard_error=xp.hypot(*parts[:2]),
            reason=f"+-{by_probes:.2g} by the probes, +-{by_resolution:.2g} by the resolution",
            kept=parts,
        )

    def plot(self, ax: Any = None, *, width: float | None = None) -> Any:
        """Draw the density, with the band of its standard error.

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
        ValueError
            As for `density`.
        """
        (low, high), xp = self._ends(), namespace(self.nodes)
        margin = 0.08 * self._breadth()
        x = np.linspace(low - margin, high + margin, 600)
        where = xp.asarray(x, dtype=self.nodes.dtype, device=device_of(self.nodes))
        y = to_host(self.density(where, width))
        error = np.zeros_like(y)
        seen = y > 0
        error[seen] = y[seen] * to_host(self.relative_error(where, width))[seen]
        return plot_density(ax, x, y, error)

    def _leaks(self, low: float, high: float) -> float:
        """What a count by moments changes by from half of them: kernels have long tails."""
        if self.moments is None or self.interval is None:
            return 0.0
        (a, b), damped = self.interval, to_host(self.moments)
        start, stop = np.arccos(np.clip((2 * np.array([high, low]) - a - b) / (b - a), -1, 1))
        M, k = damped.shape[0], np.arange(1, damped.shape[0])
        plain = damped[1:] / jackson(M)[1:] * 2 * (np.sin(k * stop) - np.sin(k * start)) / k
        half = (M + 1) // 2
        change = plain @ jackson(M)[1:] - plain[: half - 1] @ jackson(half)[1:]
        return float(self.dimension * abs(change) / np.pi)

    def _width(self, width: float | None) -> float:
        """Of the normal distributions that points are spread to; refused where it says too much."""
        if self.interval is not None:
            if width is not None:
                raise ValueError(
                    "Chebyshev moments have a resolution of their own; leave `width` out, or pass "
                    "quadrature=quadrature.lanczos()"
                )
            return 0.0
        if width is not None and not width > 0:
            raise ValueError(f"`width` must be a positive number, got {width!r}; pass one, or None")
        if width is not None and is_traced(self.nodes):
            return width
        least = WIDTH * self._breadth() / self.depth
        if width is None:
            return least
        if self.num_probes and self.depth < self.dimension and width < least * (1 - 1e-9):
            raise ValueError(
                f"`width` must be {least:.3g} or more, got {width:g}: finer peaks are single Ritz "
                "values, not eigenvalues; pass a greater one, or a greater depth to the estimator"
            )
        return float(width)

    def _smoothed(self, x: Array, width: float) -> Array:
        """By normal distributions."""
        xp = namespace(x)
        nodes, weights = (
            xp.reshape(part, (*[1] * x.ndim, -1)) for part in (self.nodes, self.weights)
        )
        z = (x[..., None] - nodes) / width
        bells = xp.exp(-0.5 * z * z) / (width * math.sqrt(2 * math.pi))
        return xp.sum(bells * weights, axis=-1)

    def _by_probe(self, x: Array) -> Array:
        return namespace(x).reshape(x, (self.num_probes, -1))

    def _ends(self) -> tuple[float, float]:
        """Of what was seen of the spectrum: steps beyond the end of a Krylov space stand for 0."""
        if self.interval is not None:
            return self.interval
        xp, seen = namespace(self.nodes), self.weights > 0
        low = xp.min(xp.where(seen, self.nodes, xp.full_like(self.nodes, math.inf)))
        high = xp.max(xp.where(seen, self.nodes, xp.full_like(self.nodes, -math.inf)))
        return to_number(low).real, to_number(high).real

    def _breadth(self) -> float:
        """Of the spectrum; where it is one point, of that."""
        low, high = self._ends()
        return high - low if high - low > 1e-6 * abs(high) else max(abs(high), 1e-300)

    def __repr__(self) -> str:
        return f"SpectralDensity({self.nodes.shape[0]} nodes, {self.num_matvecs} matvecs)"


SpectralDensity.__module__ = "tracekit"
