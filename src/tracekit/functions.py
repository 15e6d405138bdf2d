"""Functions of a real variable for tr f(A): what they are, and where they are defined.

Any function that takes a real array of the operator's library and returns one of the same shape
will do as f. Two attributes may be set on it: ``positive = True`` if it is defined above zero
alone, ``nonnegative = True`` if from zero on. Operators that their products show to be singular or
indefinite are then refused with the reason, and positive semidefinite ones are sketched by one
product a column.

A function that is operator monotone is an integral of ``x / (x + c)`` over positive c. One that
carries it as ``resolvents(largest, shift)`` has a lower and an upper value of its trace from one
sketch: that returns 1-d arrays c and weights with ``f(largest * x + shift) - f(shift) =
sum(weights * x / (x + c))`` for x from 0 to 1, `largest` a real 0-d array. One whose even and odd
derivatives have one sign each says them as ``signs``, such as (-1, 1), for certified intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ._arrays import (
    Array,
    device_of,
    eps_of,
    is_array,
    is_finite,
    is_traced,
    namespace,
    real,
    to_number,
)
from ._arrays import positive as positive_part

__all__ = ["entropy", "exp", "inv", "log", "log1p", "power", "ridge", "sqrt"]

Function = Callable[[Array], Array]
Resolvents = Callable[[Array, float], tuple[Array, Array]]
STEP = 0.5  # of the trapezoidal rule in log c, whose error is exp(-2 pi^2 / STEP)


def _defined(
    *,
    positive: bool = False,
    nonnegative: bool = False,
    resolvents: Resolvents | None = None,
    signs: tuple[int, int] | None = None,
) -> Callable[[Any], Any]:
    def mark(f: Any) -> Any:
        f.positive, f.nonnegative, f.resolvents, f.signs = positive, nonnegative, resolvents, signs
        return f

    return mark


def _of_log(added: float) -> Resolvents:
    """Of ``log(x + added)``, by its integral with the density ``1 / c`` from there on."""

    def resolvents(largest: Array, shift: float) -> tuple[Array, Array]:
        xp, least, reach = namespace(largest), (shift + added) / largest, -math.log(eps_of(largest))
        low, high = xp.log(least) - reach, xp.log1p(least) + reach
        count = 2 * math.ceil(reach / STEP) + 60  # for a range of e^30 between the two
        step = (high - low) / (count - 1)
        c = xp.exp(low + step * _counted(largest, count))
        return c + least, step * c / (c + least)

    return resolvents


def _of_power(p: float) -> Resolvents:
    """Of ``x**p``, p between 0 and 1, by its integral with the density ``c**(p - 1)``."""

    def resolvents(largest: Array, shift: float) -> tuple[Array, Array]:
        xp, reach = namespace(largest), -math.log(eps_of(largest))
        count = math.ceil((reach / p + reach / (1 - p)) / STEP) + 1
        unit, least = 1 + shift / largest, shift / largest
        c = xp.exp(_counted(largest, count) * STEP - reach / p)
        weights = c**p * (unit * largest) ** p * (STEP * math.sin(math.pi * p) / math.pi)
        return c * unit + least, weights * (c * unit / (c * unit + least))

    return resolvents


def _of_ridge(ridge: float) -> Resolvents:
    def resolvents(largest: Array, shift: float) -> tuple[Array, Array]:
        c = ((ridge + shift) / largest)[None]
        return c, namespace(c).ones_like(c) * (ridge / (ridge + shift))

    return resolvents


def _counted(like: Array, count: int) -> Array:
    """The numbers 0, 1, .. where `like` is."""
    return namespace(like).arange(count, dtype=like.dtype, device=device_of(like))


@_defined(positive=True, resolvents=_of_log(0.0), signs=(-1, 1))
def log(x: Array) -> Array:
    """The natural logarithm; its trace is the logarithm of the determinant.

    Parameters
    ----------
    x : array
        Eigenvalues, positive.

    Returns
    -------
    array
        ``log(x)``.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.trace_function(np.diag([1.0, 2.0, 4.0]), tk.functions.log, 3).value.round(6))
    2.079442
    """
    return namespace(x).log(x)


@_defined(positive=True, signs=(1, -1))
def inv(x: Array) -> Array:
    """The inverse.

    Parameters
    ----------
    x : array
        Eigenvalues, positive. For an indefinite operator pass ``lambda x: 1 / x``, if it has no
        eigenvalue near zero.

    Returns
    -------
    array
        ``1 / x``.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.trace_function(np.diag([1.0, 2.0, 4.0]), tk.functions.inv, 3))
    1.75
    """
    return 1 / x


@_defined(nonnegative=True, resolvents=_of_log(1.0), signs=(-1, 1))
def log1p(x: Array) -> Array:
    """The logarithm of 1 + x: operator monotone, 0 at 0.

    Parameters
    ----------
    x : array
        Eigenvalues, 0 or more.

    Returns
    -------
    array
        ``log(1 + x)``.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.trace_function(np.diag([1.0, 0.0, 3.0]), tk.functions.log1p, 3).value.round(6))
    2.079442
    """
    return namespace(x).log1p(x)


@_defined(nonnegative=True, resolvents=_of_power(0.5), signs=(-1, 1))
def sqrt(x: Array) -> Array:
    """The square root: operator monotone.

    Parameters
    ----------
    x : array
        Eigenvalues, 0 or more.

    Returns
    -------
    array
        The root of x.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.trace_function(np.diag([1.0, 4.0, 0.0]), tk.functions.sqrt, 3))
    3.0
    """
    return namespace(x).sqrt(x)


@_defined(signs=(1, 1))
def exp(x: Array) -> Array:
    """The exponential; of a graph its trace is the Estrada index, its diagonal the centralities.

    Parameters
    ----------
    x : array
        Eigenvalues.

    Returns
    -------
    array
        ``exp(x)``.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.trace_function(np.zeros((3, 3)), tk.functions.exp, 3))
    3.0
    """
    return namespace(x).exp(x)


@_defined(nonnegative=True)
def entropy(x: Array) -> Array:
    """``-x log(x)``, 0 at 0; of a density matrix its trace is the von Neumann entropy.

    Parameters
    ----------
    x : array
        Eigenvalues, 0 or more.

    Returns
    -------
    array
        ``-x log(x)``.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.trace_function(np.eye(4) / 4, tk.functions.entropy, 4).value.round(6))
    1.386294
    """
    xp = namespace(x)
    return -x * xp.log(positive_part(x))


def power(p: float) -> Function:
    """The function ``x**p`` of eigenvalues of 0 or more.

    Parameters
    ----------
    p : float
        Positive.

    Returns
    -------
    callable
        The function; operator monotone if p is at most 1.

    Raises
    ------
    ValueError
        If p is not positive.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.trace_function(np.diag([1.0, 2.0, 3.0]), tk.functions.power(3), 3).value.round(6))
    36.0
    """
    checked_positive("p", p)
    resolvents = _of_power(p) if 0.25 <= p <= 0.75 else None
    return semidefinite(lambda x: x**p, resolvents=resolvents, signs=(-1, 1) if p < 1 else None)


def ridge(c: float) -> Function:
    """The function ``x / (x + c)``, whose trace is the effective dimension of ridge regression.

    Parameters
    ----------
    c : float
        Positive, in the unit of the eigenvalues.

    Returns
    -------
    callable
        The function: operator monotone.

    Raises
    ------
    ValueError
        If c is not positive.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.trace_function(np.diag([1.0, 3.0, 0.0]), tk.functions.ridge(1.0), 3))
    1.25
    """
    checked_positive("ridge", c)
    return semidefinite(lambda x: x / (x + c), resolvents=_of_ridge(c), signs=(-1, 1))


def semidefinite(
    f: Function, *, resolvents: Resolvents | None = None, signs: tuple[int, int] | None = None
) -> Function:
    """The same function, marked as defined from zero on."""
    marked: Function = _defined(nonnegative=True, resolvents=resolvents, signs=signs)(f)
    return marked


def checked_positive(name: str, value: Any) -> float:
    """Refuse what is no positive number."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value < float("inf")
    ):
        raise ValueError(f"{name}={value!r} does not make sense here; pass a positive number")
    return value


def is_semidefinite(f: Any) -> bool:
    """Whether f asks for an operator that is positive semidefinite at least."""
    return bool(getattr(f, "positive", False) or getattr(f, "nonnegative", False))


def applied(f: Function, x: Array) -> Array:
    """What f returns; truth values and integers, as of steps, as numbers of the dtype of x."""
    try:
        y = f(x)
    except (TypeError, ValueError, RuntimeError) as error:
        library = namespace(x).__name__.removeprefix("array_api_compat.")
        raise TypeError(
            f"f must take arrays of {library}, and raised {type(error).__name__}: {error}; pass a "
            "function that works on all entries of an array at once"
        ) from error
    if is_array(y) and namespace(y).isdtype(y.dtype, ("bool", "integral")):
        return namespace(y).astype(y, x.dtype)
    return y


def values(f: Function, x: Array, *, squared: bool = False) -> Array:
    """F at eigenvalues along the last axis, where it is defined.

    Eigenvalues are known up to rounding of the largest one; to the square of that, if they are
    squares of singular values.
    """
    xp, traced = namespace(x), is_traced(x)
    rounding = 30 * eps_of(x)
    if is_semidefinite(f):
        low = to_number(xp.min(x)).real if not traced else 0.0
        floor = 0.0 if traced else to_number(xp.max(xp.abs(x))).real * rounding
        if not traced and low < -floor:
            raise ValueError(
                f"this function of a matrix needs eigenvalues of 0 or more, and the products show "
                f"one near {low:.3g} or below; add a multiple of the identity, A + c I"
            )
        if (
            not traced
            and getattr(f, "positive", False)
            and low <= floor * (rounding if squared else 1)
        ):
            raise ValueError(
                f"this function is not defined at 0, and the products show that the matrix is "
                f"singular to working precision (an eigenvalue near {low:.3g}); add a multiple of "
                "the identity, A + c I"
            )
        if getattr(f, "nonnegative", False):
            x = xp.where(x < 0, xp.zeros_like(x), x)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        y = applied(f, x)
    if not is_array(y) or tuple(y.shape[-x.ndim :]) != tuple(x.shape):
        raise TypeError(
            f"f returned {getattr(y, 'shape', type(y).__name__)} for eigenvalues of shape "
            f"{tuple(x.shape)}; pass a function that takes an array and returns one of that shape"
        )
    if not is_finite(y):
        low, high = (to_number(end(real(x))).real for end in (xp.min, xp.max))
        raise ValueError(
            f"f is not finite on the spectrum, which reaches from {low:.3g} to {high:.3g}; scale "
            "or shift the operator, or pass another f"
        )
    return y
