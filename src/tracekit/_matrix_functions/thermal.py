"""Thermal averages of a Hamiltonian: expectations, energies, entropies and heat capacities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .._arrays import Array, Rng, constant, device_of, namespace
from .._estimates import ErrorParts, Estimate, with_origin
from ..functions import Function
from .request import checked_numbers
from .spectral_run import SpectralRun, spectral_run


class Thermodynamics(NamedTuple):
    r"""What `thermodynamics` finds, as functions of the inverse temperature.

    Parameters
    ----------
    log_partition : Estimate
        :math:`\log Z`, :math:`Z = \mathrm{tr}\, e^{-\beta H}`; without a unit.
    energy : Estimate
        :math:`\langle H \rangle`, in the unit of H.
    entropy : Estimate
        :math:`-\mathrm{tr} \rho \log \rho = \beta \langle H \rangle + \log Z`, in nats.
    heat_capacity : Estimate
        :math:`\beta^2 (\langle H^2 \rangle - \langle H \rangle^2)`, in units of Boltzmann's
        constant.

    Notes
    -----
    Each has the shape of `betas`, and a ``band(level)`` that holds all of it at once.
    """

    log_partition: Estimate
    energy: Estimate
    entropy: Estimate
    heat_capacity: Estimate

    @property
    def num_matvecs(self) -> int:
        """Products that all of them cost together."""
        return self.energy.num_matvecs


Thermodynamics.__module__ = "tracekit"


@with_origin
def expectation(
    H: Any,
    f: Function | float,
    O: Any,  # noqa: E741
    num_matvecs: int,
    *,
    rng: Rng = None,
    depth: int | None = None,
) -> Estimate:
    r"""The mean of an observable in the state f(H): the trace of O f(H) over that of f(H).

    Parameters
    ----------
    H : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n.
    f : callable or float
        As for `trace_function`; or an inverse temperature, for the Gibbs state
        :math:`e^{-\beta H} / Z`, which never overflows.
    O : LinearOperator or anything that `as_operator` reads
        The observable: Hermitian, of the same dimension.
    num_matvecs : int
        Products of H to spend at most, as for `spectral_run`; exact from n on. One product of O for
        each comes besides.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        As for `spectral_run`.

    Returns
    -------
    Estimate
        Real, in the unit of O, with the standard error of a ratio from shared probes.

    Raises
    ------
    ValueError, TypeError
        As for `spectral_run`; if :math:`\beta` is negative or not finite.

    Notes
    -----
    For several f or temperatures from the same products call ``spectral_run(H, m, observable=O)``.
    Exponentials are taken of what H is above its least eigenvalue, as far as the probes have seen.

    References
    ----------
    Aichhorn, Daghofer, Evertz, von der Linden (2003), Phys. Rev. B 67,
    doi:10.1103/PhysRevB.67.161103.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> H, Z = np.diag([0.0, 1.0]), np.diag([1.0, -1.0])
    >>> round(float(tk.expectation(H, 2.0, Z, 2)), 6)  # tanh(1)
    0.761594
    """
    run = spectral_run(H, num_matvecs, rng=rng, observable=O, depth=depth)
    if callable(f):
        return run.expectation(f)
    (weight, _), (beta,) = _boltzmann(run), checked_numbers("f", [f], zero=True)
    return run.expectation(lambda x: weight(x, beta))


@with_origin
def thermodynamics(
    H: Any,
    betas: Sequence[float],
    num_matvecs: int,
    *,
    rng: Rng = None,
    depth: int | None = None,
) -> Thermodynamics:
    r"""Partition function, energy, entropy and heat capacity of a Hamiltonian, from one run.

    Parameters
    ----------
    H : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n.
    betas : sequence of float, length T
        Inverse temperatures :math:`\beta`, in one over the unit of H; 0 is that of infinite
        temperature.
    num_matvecs : int
        Products to spend at most, on all temperatures together, as for `spectral_run`; exact from
        n on.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        As for `spectral_run`.

    Returns
    -------
    Thermodynamics
        Four estimates of shape (T,), in H's library and device, of H's real dtype.

    Raises
    ------
    ValueError, TypeError
        As for `spectral_run`; if `betas` is empty, or holds what is negative or not finite.

    Notes
    -----
    Errors are those of the influence functions :math:`g_\beta(H)`, themselves read from the run:
    :math:`(H - \langle H \rangle) e^{-\beta H} / Z` for the energy,
    :math:`\beta^2 [(H - \langle H \rangle)^2 - \sigma^2] e^{-\beta H} / Z` for the heat capacity.
    The bias of first order in one over the probes is removed. Temperatures at which the depth is
    not enough have an infinite error, or one of the size of the value, while others may be settled.
    Exponentials are taken of what H is above its least eigenvalue, as far as the probes have seen.
    The free energy is ``-log_partition / beta``.

    References
    ----------
    Jaklic, Prelovsek (1994), Phys. Rev. B 49, doi:10.1103/PhysRevB.49.5065.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> found = tk.thermodynamics(np.diag([0.0, 1.0]), [0.0, 2.0], 2)
    >>> found.entropy.value.round(4).tolist(), found.heat_capacity.value.round(4).tolist()
    ([0.6931, 0.3653], [0.0, 0.42])
    """
    betas = checked_numbers("betas", betas, zero=True)
    run = spectral_run(H, num_matvecs, rng=rng, depth=depth)
    weight, least = _boltzmann(run)

    def moment(power: int) -> Estimate:
        return run.family(lambda x, b: (x - least) ** power * weight(x, b), betas)

    moments = [moment(power) for power in range(3)]
    Z, D, E = (found.value for found in moments)
    xp, u = namespace(Z), D / Z
    b, variance = xp.asarray(betas, dtype=Z.dtype, device=device_of(Z)), E / Z - u * u
    center, square, size = (constant(x) for x in (u, variance, Z))

    def influence(g: Callable[[Array, int], Array]) -> Estimate:
        """The trace of ``g(x - <H>, i) e^(-beta x) / Z`` for every temperature."""

        def f(x: Array, i: int) -> Array:
            return g(x - least - center[i], i) * weight(x, betas[i]) / size[i]

        return run.family(f, range(len(betas)))

    z, a, s = _influences(moments, u, variance)
    log_Z = xp.log(Z) + _covariance(z, z) / 2
    mean = u + _covariance(a, z)
    spread = variance + _covariance(a, a) + _covariance(s, z)
    energy = influence(lambda x, i: x)
    entropy = influence(lambda x, i: b[i] * x + 1)
    capacity = influence(lambda x, i: x * x - square[i])
    ones = influence(lambda x, i: x * 0 + 1)
    return Thermodynamics(
        replace(_about(ones, 1, log_Z - b * least), method="log_partition"),
        replace(_about(energy, 0, mean + least), method="energy"),
        replace(_about(entropy, 1, b * mean + log_Z), method="entropy"),
        replace(_times(_about(capacity, 0, spread), b * b), method="heat_capacity"),
    )


def _boltzmann(run: SpectralRun) -> tuple[Callable[[Array, float], Array], Array]:
    """The weight ``exp(-beta (x - least))``, within range, and the least eigenvalue."""
    nodes = run.density().nodes
    xp = namespace(nodes)
    least = constant(xp.min(nodes))
    reach = -0.4 * math.log(float(xp.finfo(nodes.dtype).smallest_normal))

    def weight(x: Array, beta: float) -> Array:
        return xp.exp(xp.clip(-beta * (x - least), -reach, reach))

    return weight, least


def _influences(moments: list[Estimate], u: Array, variance: Array) -> list[Array | None]:
    """Of each probe on Z, on the energy u, and on the variance, relative to Z."""
    if any(x.samples is None for x in moments):
        return [None, None, None]
    Z, D, E = (x.samples / moments[0].value[..., None] for x in moments)
    u, variance = u[..., None], variance[..., None]
    return [Z - 1, D - u * Z, E - 2 * u * D + (u * u - variance) * Z]


def _covariance(p: Array | None, q: Array | None) -> Array | float:
    """Of the means of two kinds of samples; 0 where these are exact."""
    if p is None or q is None:
        return 0.0
    xp, m = namespace(p), p.shape[-1]
    p, q = (x - xp.mean(x, axis=-1, keepdims=True) for x in (p, q))
    return xp.sum(p * q, axis=-1) / (m * max(m - 1, 1))


def _about(found: Estimate, expected: int, value: Array) -> Estimate:
    """A value with the errors of the mean of its influences, and corrected by what that is off."""
    off = constant(found.value) - expected
    samples = None if found.samples is None else found.samples + (value - expected)[..., None]
    moved = replace(found, value=value + off, samples=samples)
    return replace(moved, skewness=None, slope=None, slope_error=None)


def _times(found: Estimate, scale: Array) -> Estimate:
    """The estimate, multiplied; 0 where the scale is, whatever its error."""
    xp, parts, samples = namespace(scale), found.kept, found.samples
    factor = xp.where(scale == 0, xp.ones_like(scale), scale)

    def times(x: Array) -> Array:
        return xp.where(scale == 0, xp.zeros_like(x), x * factor)

    return replace(
        found,
        value=times(found.value),
        standard_error=times(found.standard_error),
        samples=None if samples is None else samples * scale[..., None],
        kept=parts and ErrorParts(times(parts.monte_carlo), times(parts.quadrature)),
    )
