"""Named families that a run is read for: log-determinants, effective dimensions, free energies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .._arrays import Array, is_traced, namespace, to_number
from .._estimates import Estimate, logarithm
from .._sketches import Krylov, chebyshev, gauss
from ..functions import Function, checked_positive, log, semidefinite

HIGHEST = 80.0  # exponent, where a deeper rule sees less: exp(80) times any dimension is finite


def stacked(f: Callable[[Array, Any], Array], ts: Sequence[Any]) -> Function:
    """The functions of all values of a parameter as one, defined where f says that it is."""

    def several(x: Array) -> Array:
        return namespace(x).stack([f(x, t) for t in ts])

    for name in ("positive", "nonnegative"):
        setattr(several, name, getattr(f, name, False))
    return several


def numbers(name: str, values: Any) -> list[float]:
    """The positive numbers of a sequence or an array, one at least."""
    try:
        every = [float(x) for x in values]
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be several positive numbers, got {values!r}; pass a list or an array"
        ) from None
    if not every:
        raise ValueError(f"`{name}` must hold one number at least, got none; pass positive ones")
    return [checked_positive(name, x) for x in every]


def ridges(every: list[float]) -> Function:
    """The functions ``x / (x + c)`` of several c, stacked."""

    def ridge(x: Array, c: float) -> Array:
        return x / (x + c)

    return stacked(semidefinite(ridge), every)  # type: ignore[arg-type]


def read(run: Any, f: Function, count: int, method: str, *, plain: bool = False) -> Estimate:
    """What a run says of several functions, and of how many of their traces there is an error."""
    found: Estimate = run._read(f, method, plain=plain)
    if is_traced(found.value) or found.converged:
        return found
    error = found.standard_error
    known = [i for i in range(count) if math.isfinite(to_number(error[i]).real)]
    told = f"{len(known)} of {count} values of the parameter have an error"
    return replace(found, reason=f"{found.reason}; {told}")


def family(self: Any, f: Callable[[Array, Any], Array], ts: Sequence[Any]) -> Estimate:
    """The traces of f(A, t) for all values of a parameter.

    Parameters
    ----------
    f : callable
        ``f(x, t)``: of an array of eigenvalues and one of `ts`, an array like x.
    ts : sequence of length T
        The values of the parameter.

    Returns
    -------
    Estimate
        Of shape (T,). All values come from the same probes: ``band(level)`` holds all at once.

    Raises
    ------
    ValueError, TypeError
        If `ts` is empty; as for `trace_function`.
    """
    every = list(ts)
    if not every:
        raise ValueError("`ts` must hold one value of the parameter at least, got none")
    return read(self, stacked(f, every), len(every), "family")


def logdet(self: Any, noise: Sequence[float] | None = None) -> Estimate:
    """The logarithm of the determinant, of A or of A plus each of several multiples of I.

    Parameters
    ----------
    noise : sequence of T positive numbers, optional
        The multiples s of ``A + s I``, A positive semidefinite. If not given, A is positive
        definite.

    Returns
    -------
    Estimate
        As of `trace`: of shape (T,) for several, with one ``band(level)`` for all of them.

    Raises
    ------
    ValueError, TypeError
        As for `trace`; if `noise` holds no positive numbers.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> K = tk.testing.known_spectrum(np.arange(1.0, 301) ** -2)
    >>> run = tk.spectral_run(K, 150, rng=0)
    >>> noise = np.geomspace(0.01, 1.0, 5)
    >>> low, high = run.logdet(noise).band()
    >>> exact = np.sum(np.log(np.arange(1.0, 301)[:, None] ** -2 + noise), axis=0)
    >>> bool(np.all((low < exact) & (exact < high)))
    True
    """
    if noise is None:
        found: Estimate = self._read(log, "logdet", plain=True)
        return found

    def shifted(x: Array, s: float) -> Array:
        return namespace(x).log(x + s)

    every = numbers("noise", noise)
    return read(self, stacked(semidefinite(shifted), every), len(every), "logdet", plain=True)  # type: ignore[arg-type]


def effective_dimension(self: Any, ridge: Sequence[float]) -> Estimate:
    r"""The degrees of freedom of ridge regression for several ridges, from the same products.

    Parameters
    ----------
    ridge : sequence of T positive numbers
        The numbers c of :math:`\mathrm{tr}\, A (A + c I)^{-1}`, A positive semidefinite.

    Returns
    -------
    Estimate
        As of `trace`, of shape (T,), with one ``band(level)`` for all of them.

    Raises
    ------
    ValueError, TypeError
        As for `trace`; if `ridge` holds no positive numbers.

    See Also
    --------
    tracekit.effective_dimension : Of an operator, with a depth chosen for these functions.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> K = tk.testing.known_spectrum(np.arange(1.0, 301) ** -2)
    >>> run = tk.spectral_run(K, 150, rng=0)
    >>> run.effective_dimension([0.01, 0.1, 1.0]).value.shape
    (3,)
    """
    every = numbers("ridge", ridge)
    return read(self, ridges(every), len(every), "effective_dimension", plain=True)


def free_energy(self: Any, beta: Sequence[float]) -> Estimate:
    r"""The free energy :math:`-\log(\mathrm{tr}\, e^{-\beta H}) / \beta` at several temperatures.

    Parameters
    ----------
    beta : sequence of T positive numbers
        Inverse temperatures, in units of one over the eigenvalues of H.

    Returns
    -------
    Estimate
        Of shape (T,), in the unit of the eigenvalues, with one ``band(level)`` for all of them: by
        the delta method, the bias of first order removed. The error is infinite where the 95 %
        interval of the trace holds 0.

    Raises
    ------
    ValueError, TypeError
        As for `trace`; if `beta` holds no positive numbers.

    Notes
    -----
    Exponentials are taken above the least eigenvalue that the run has seen, so that none overflows.
    The error falls with the temperature: the trace is soon that of the ground state, which the run
    finds, and of how many states have its energy only probes tell.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> energies = np.linspace(-1.0, 1.0, 200)
    >>> run = tk.spectral_run(tk.testing.known_spectrum(energies), 150, rng=1)
    >>> low, high = run.free_energy([0.5, 2.0]).band()
    >>> exact = [-np.log(np.sum(np.exp(-b * energies))) / b for b in (0.5, 2.0)]
    >>> bool(np.all((low < exact) & (exact < high)))
    True
    """
    every = numbers("beta", beta)
    ground = _least(self)

    def weight(x: Array, b: float) -> Array:
        xp, exponent = namespace(x), -b * (x - ground)
        return xp.exp(xp.minimum(exponent, xp.full_like(exponent, HIGHEST)))

    Z = read(self, stacked(weight, every), len(every), "free_energy", plain=True)
    found = logarithm(Z)
    xp = namespace(found.value)
    unit = xp.stack([xp.full_like(ground, 1 / b) for b in every])
    samples, parts = found.samples, found.kept
    if samples is not None:
        samples = ground - unit[:, None] * samples
        parts = parts._replace(
            monte_carlo=unit * parts.monte_carlo, quadrature=unit * parts.quadrature
        )
    return replace(
        found,
        value=ground - unit * found.value,
        standard_error=unit * found.standard_error,
        samples=samples,
        kept=parts,
        method="free_energy",
    )


def _least(run: Any) -> Array:
    """The least eigenvalue that the values of a run are made of."""
    x, spaces = run._eigenvalues, run._spaces
    if spaces is not None:
        K = spaces.read()
        x = gauss.rule(K)[0] if isinstance(K, Krylov) else chebyshev.rule(K, K.depth)[0]
    return namespace(x).min(x)
