"""What every estimator returns, and how samples become one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    Space,
    is_traced,
    namespace,
    real,
    register_as_pytree,
    to_host,
    to_number,
)
from . import plain_numbers
from .certified import Certified
from .not_finite import require_finite
from .plain_numbers import entries, rounded
from .plots import plot_samples
from .quantiles import checked_level, joint_quantile, t_quantile


class ErrorParts(NamedTuple):
    """The two parts of a standard error, and the error of a gradient."""

    monte_carlo: Array
    quadrature: Array
    solves: Array | None = None  # relative, of those that a gradient is made of; None without one
    certified: Certified | None = None  # where bounds of the spectrum were given


class ProbeGram(NamedTuple):
    """The Gram matrix ``V^H L L^H V`` of the probes V of `one_sided`."""

    gram: Array


_LEAF, _LEFT_OUT = {"pytree": "leaf"}, {"pytree": "left out"}


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    r"""A random estimate: its value, its standard error, and what it cost.

    Parameters
    ----------
    value : array
        A 0-d array (or one of more dimensions, where the quantity is an array) in the operator's
        library, dtype and device. Gradients flow through it.
    standard_error : array
        Real; of the same shape as `value`. Infinite where one probe was spent, 0 where the value
        is exact.
    num_matvecs : int
        Columns that went through the operator, or its factor where it was made by `gram`.
    method : str, optional
        The estimator.
    samples : array or None, optional
        What was averaged, along the last axis.
    converged : bool, optional
        Whether the tolerance that was asked for is met; True where none was.
    dof : int, optional
        Degrees of freedom of the standard error; 0 if exact.
    reason : str, optional
        Why this method was chosen, and what ended the run.
    skewness : array or None
        Of independent samples; makes the interval of skewed ones asymmetric.
    slope : array or None, optional
        Of a trace of f(A), the derivative by the scale of A, :math:`\mathrm{tr}\, A f'(A)`: what
        the value changes by, relative to the change of A. None elsewhere, and under `jax.jit`.
    slope_error : array or None, optional
        Its error.
    kept : record or None, optional
        What else the products tell: the parts of the error (`trace_function`), or the Gram matrix
        of the probes (`one_sided`).
    paused : record or None, optional
        The run that `resume` goes on with, where there is one.
    origin : dict or None, optional
        What `merge` tells runs apart by: digests of the seeds or generators that drew the probes,
        where they are known, and what was asked of which shape. None under `jax.jit`.

    Notes
    -----
    Every parameter is an attribute. An estimate passes through `jax.jit` and `jax.vmap` as a
    pytree. Standard errors of few probes are rough.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> estimate = tk.hutchinson(np.diag(np.arange(10.0)), 8, rng=0)
    >>> estimate
    Estimate(45.0 +- 0.0, 8 matvecs, hutchinson)
    >>> float(estimate), estimate.num_matvecs
    (45.0, 8)
    """

    value: Array = field(metadata=_LEAF)
    standard_error: Array = field(metadata=_LEAF)
    num_matvecs: int
    method: str = ""
    samples: Array | None = field(default=None, metadata=_LEAF)
    converged: bool = True
    dof: int = 0
    reason: str = ""
    skewness: Array | None = field(default=None, metadata=_LEAF)
    slope: Array | None = field(default=None, metadata=_LEAF)
    slope_error: Array | None = field(default=None, metadata=_LEAF)
    kept: Any = field(default=None, metadata=_LEFT_OUT)
    paused: Any = field(default=None, metadata=_LEFT_OUT)
    origin: dict[str, Any] | None = field(default=None, metadata=_LEFT_OUT)

    def __post_init__(self) -> None:
        register_as_pytree(Estimate, _flatten, _unflatten)

    def confidence_interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """Interval that should contain the true value in a share `level` of runs.

        Parameters
        ----------
        level : float, optional
            Between 0 and 1.

        Returns
        -------
        low : array
            ``value - t * standard_error``, with Student's t quantile for `dof` degrees of freedom;
            of the real part, if the value is complex. In the library and dtype of the value.
        high : array
            ``value + t * standard_error``.

        Raises
        ------
        ValueError
            If `level` does not lie between 0 and 1.

        Notes
        -----
        The interval is calibrated by experiment, not by a theorem: standard errors of few
        samples, and of leave-one-out samples in particular, are approximate.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> estimate = tk.hutchinson(np.ones((50, 50)), 20, rng=0)
        >>> low, high = estimate.confidence_interval()
        >>> bool(low < 50 < high)
        True
        """
        checked_level(level)
        center, q = real(self.value), t_quantile(level, self.dof)
        down, up = (self.standard_error * x for x in self._quantiles(q))
        return center - down, center + up

    def _quantiles(self, q: float) -> tuple[Any, Any]:
        """How far the interval goes below and above the value, in standard errors."""
        if self.skewness is None or self.dof < 2:
            return q, q
        xp, root = namespace(self.skewness), math.sqrt(self.dof + 1)
        a = xp.where(xp.abs(self.skewness) < 1e-3, xp.ones_like(self.skewness), self.skewness)

        def inverse(x: float) -> Array:
            z = 1 + a * (x - a / (6 * root)) / root
            cube_root = xp.sign(z) * xp.abs(z) ** (1 / 3)
            bent = 3 * root * (cube_root - 1) / a
            return xp.where(xp.abs(self.skewness) < 1e-3, x + xp.zeros_like(bent), bent)

        return inverse(q), -inverse(-q)

    def band(self, level: float = 0.95) -> tuple[Any, Any]:
        """Intervals that should hold all values at once in a share `level` of runs.

        Parameters
        ----------
        level : float, optional
            Between 0 and 1.

        Returns
        -------
        low : array
            Of the shape of the value: ``value - q * standard_error``, of the real part.
        high : array
            ``value + q * standard_error``.

        Raises
        ------
        ValueError
            If `level` does not lie between 0 and 1.

        Notes
        -----
        For values from the same probes, whose errors are correlated: q is the quantile of the
        largest of all deviations, over that of Student's t of their common probes, by 2000 draws
        from a fixed seed. It is read on the host. Calibrated by experiment, as intervals are.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> A = tk.testing.known_spectrum(np.arange(1.0, 301) ** -1)
        >>> run = tk.spectral_run(A, 200, rng=0)
        >>> ridges = run.family(lambda x, c: x / (x + c), [0.1, 0.2, 0.4])
        >>> low, high = ridges.band()
        >>> bool(np.all(low < high))
        True
        """
        if self.samples is None or not getattr(self.value, "ndim", 0):
            return self.confidence_interval(level)
        checked_level(level)
        q = joint_quantile(to_host(real(self.samples)), level)
        center = real(self.value)
        return center - q * self.standard_error, center + q * self.standard_error

    def certified_interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """Interval that holds the value with probability `level` at least, by a theorem.

        Parameters
        ----------
        level : float, optional
            Between 0 and 1.

        Returns
        -------
        low : array
            0-d, in the library and dtype of the value; the value itself where it is exact.
        high : array
            The same.

        Raises
        ------
        ValueError
            If `level` does not lie between 0 and 1, or no `bounds` were given to the estimator.

        Notes
        -----
        It holds if all eigenvalues lie within the bounds, the products are right, and arithmetic is
        exact; see `trace_function` for what it is made of. It is useful where the value is of the
        size of n times the range of f on the bounds, such as for `log` and `inv`.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> A = tk.testing.known_spectrum(np.linspace(1.0, 3.0, 600))
        >>> estimate = tk.logdet(A, 240, rng=0, depth=15, bounds=(1.0, 3.0))
        >>> low, high = estimate.certified_interval()
        >>> bool(low < np.sum(np.log(np.linspace(1.0, 3.0, 600))) < high)
        True
        """
        checked_level(level)
        if self.samples is None and self.method and self.dof == 0:
            return self.value, self.value
        record = getattr(self.kept, "certified", None)
        if record is None:
            raise ValueError(
                "only an estimate with bounds of the spectrum has a certified interval; pass "
                "bounds=(low, high) to trace_function, logdet or trace_inverse"
            )
        found: tuple[Any, Any] = record.interval(level)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The estimate as values that JSON can hold.

        Returns
        -------
        dict
            With the keys value, standard_error, num_matvecs, method, converged and reason, and what
            `merge` needs besides; complex numbers as [real, imaginary], arrays as lists, NaN and
            infinity as None. Without the samples.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> estimate = tk.exact_trace(np.eye(3)).to_dict()
        >>> estimate["value"], estimate["standard_error"], estimate["num_matvecs"]
        (3.0, 0.0, 3)
        """
        return plain_numbers.to_dict(self, ErrorParts)

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Estimate:
        """The estimate that `to_dict` told of.

        Parameters
        ----------
        held : dict
            What `to_dict` gave, or JSON gave back; further keys do no harm.

        Returns
        -------
        Estimate
            In NumPy, without samples; what JSON cannot hold of its error is infinite.

        Raises
        ------
        ValueError
            If it is no such dictionary.

        Examples
        --------
        >>> import json, numpy as np, tracekit as tk
        >>> estimate = tk.hutchinson(np.ones((50, 50)), 20, rng=0)
        >>> again = tk.Estimate.from_dict(json.loads(json.dumps(estimate.to_dict())))
        >>> again.confidence_interval() == estimate.confidence_interval()
        True
        """
        found: Estimate = plain_numbers.from_dict(held, cls, ErrorParts, Certified)
        return found

    def plot(self, ax: Any = None, *, level: float = 0.95) -> Any:
        """Draw the samples, the value and its confidence interval.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure if not given.
        level : float, optional
            Of the interval, between 0 and 1.

        Returns
        -------
        matplotlib Axes
            The axes drawn on.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        samples = self.samples
        if samples is not None:
            samples = [to_number(x).real for x in entries(samples)]
        low, high = (to_number(end).real for end in self.confidence_interval(level))
        value, label = to_number(self.value).real, f"estimate ({self.method})"
        return plot_samples(ax, samples, value, (low, high), level, label)

    def __complex__(self) -> complex:
        return to_number(self.value)

    def __float__(self) -> float:
        value = to_number(self.value)
        if (
            abs(value.imag) > 1e-3 * abs(value.real)
            and abs(value.imag) > to_number(self.standard_error).real
        ):
            raise TypeError(
                f"the value {value} is complex; use complex(estimate) or estimate.value"
            )
        return value.real

    def __repr__(self) -> str:
        if is_traced(self.value):
            shown = "traced"
        elif getattr(self.value, "ndim", 0):
            shown = f"array of shape {tuple(self.value.shape)}"
        else:
            shown = rounded(to_number(self.value), to_number(self.standard_error).real)
        parts = [shown, f"{self.num_matvecs} matvecs", self.method]
        parts += [] if self.converged else ["not converged"]
        parts += [self.reason] if self.reason else []
        return f"Estimate({', '.join(part for part in parts if part)})"


Estimate.__module__ = "tracekit"


def exact(value: Array, num_matvecs: int, method: str = "exact_trace", **more: Any) -> Estimate:
    """An estimate without error."""
    return Estimate(value, namespace(value).zeros_like(real(value)), num_matvecs, method, **more)


def _names(kind: str) -> list[str]:
    return [f.name for f in fields(Estimate) if f.metadata.get("pytree", "static") == kind]


def _flatten(estimate: Estimate) -> tuple[list[Any], tuple[Any, ...]]:
    leaves, static = ([getattr(estimate, x) for x in _names(kind)] for kind in ("leaf", "static"))
    return leaves, tuple(static)


def _unflatten(leaves: Any, static: Any) -> Estimate:
    estimate = object.__new__(Estimate)
    parts = dict.fromkeys(_names("left out"))
    parts |= dict(zip(_names("leaf"), leaves, strict=True))
    parts |= dict(zip(_names("static"), static, strict=True))
    for name, value in parts.items():
        object.__setattr__(estimate, name, value)
    return estimate


def scaled(estimate: Estimate, scale: Array) -> Estimate:
    """The estimate in units that are `scale` times smaller."""
    return replace(
        estimate,
        value=estimate.value * scale,
        standard_error=estimate.standard_error * scale,
        samples=estimate.samples * scale,
    )


def finalize(
    estimate: Estimate,
    A: Space | None = None,
    quantity: str = "trace",
    *,
    columns: Array | None = None,
) -> Estimate:
    """The estimate, if it is finite; in the dtype of the operator, if that is given."""
    require_finite(estimate.value, quantity, columns=columns)
    if A is None:
        return estimate
    return replace(estimate, value=A.xp.astype(estimate.value, A.dtype, copy=False))


def with_method(estimate: Estimate, method: str) -> Estimate:
    """The same estimate under the name of the estimator that was called."""
    return replace(estimate, method=method)
