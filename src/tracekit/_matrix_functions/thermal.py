"""Thermal averages of a Hamiltonian: expectations, energies, entropies and heat capacities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .._arrays import Array, Rng, device_of, namespace
from .._estimates import ErrorParts, Estimate, with_origin
from ..functions import Function
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
    (beta,), (weight, _) = _checked([f]), _boltzmann(run)
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
    betas = _checked(betas)
    run = spectral_run(H, num_matvecs, rng=rng, depth=depth)
    weight, least = _boltzmann(run)
    count = range(len(betas))

    def moment(power: int) -> Array:
        return run.family(lambda x, b: (x - least) ** power * weight(x, b), betas).value

    Z, D, E = (moment(power) for power in range(3))
    xp, u = namespace(Z), D / Z
    b, variance = xp.asarray(betas, dtype=Z.dtype, device=device_of(Z)), E / Z - u * u

    def influence(g: Callable[[Array, int], Array]) -> Estimate:
        """The trace of ``g(x - <H>, i) e^(-beta x) / Z`` for every temperature."""
        return run.family(lambda x, i: g(x - least - u[i], i) * weight(x, betas[i]) / Z[i], count)

    ones = influence(lambda x, i: x * 0 + 1)
    energy = influence(lambda x, i: x)
    entropy = influence(lambda x, i: b[i] * x + 1)
    spread = influence(lambda x, i: x * x - variance[i])
    half = _covariance(ones, ones) / 2
    entropy = _moved(entropy, b * u + xp.log(Z) + _covariance(entropy, ones) - half - 1)
    more = _covariance(energy, energy) + _covariance(spread, ones)
    return Thermodynamics(
        replace(_moved(ones, xp.log(Z) - b * least + half - 1), method="log_partition"),
        replace(_moved(energy, u + least + _covariance(energy, ones)), method="energy"),
        replace(entropy, method="entropy"),
        replace(_times(_moved(spread, variance + more), b * b), method="heat_capacity"),
    )


def _checked(betas: Any) -> list[float]:
    """Inverse temperatures, if they are that."""
    given = list(betas)
    if not given:
        raise ValueError("`betas` must hold one inverse temperature at least, got none")
    for beta in given:
        if isinstance(beta, bool) or not 0 <= float(beta) < math.inf:
            raise ValueError(
                f"an inverse temperature must be a finite number of 0 or more, got {beta!r}; for "
                "negative temperatures pass -H"
            )
    return [float(beta) for beta in given]


def _boltzmann(run: SpectralRun) -> tuple[Callable[[Array, float], Array], Array]:
    """The weight ``exp(-beta (x - least))``, within range, and the least eigenvalue."""
    nodes = run.density().nodes
    xp = namespace(nodes)
    least, reach = xp.min(nodes), -0.9 * math.log(float(xp.finfo(nodes.dtype).smallest_normal))

    def weight(x: Array, beta: float) -> Array:
        return xp.exp(xp.clip(-beta * (x - least), -reach, reach))

    return weight, least


def _covariance(a: Estimate, b: Estimate) -> Array | float:
    """Of the means of the samples of two estimates; 0 where these are exact."""
    if a.samples is None or b.samples is None:
        return 0.0
    xp, m = namespace(a.samples), a.samples.shape[-1]
    p, q = (x.samples - xp.mean(x.samples, axis=-1, keepdims=True) for x in (a, b))
    return xp.sum(p * q, axis=-1) / (m * max(m - 1, 1))


def _moved(found: Estimate, value: Array) -> Estimate:
    """A mean of influences, and its samples, moved to the value that they are the errors of."""
    samples = None if found.samples is None else found.samples + value[..., None]
    moved = replace(found, value=found.value + value, samples=samples)
    return replace(moved, skewness=None, slope=None, slope_error=None)


def _times(found: Estimate, scale: Array) -> Estimate:
    """The estimate, multiplied; 0 where the scale is, whatever its error."""
    xp, parts, samples = namespace(scale), found.kept, found.samples

    def times(x: Array) -> Array:
        return xp.where(scale == 0, xp.zeros_like(x), x * scale)

    return replace(
        found,
        value=times(found.value),
        standard_error=times(found.standard_error),
        samples=None if samples is None else samples * scale[..., None],
        kept=parts and ErrorParts(times(parts.monte_carlo), times(parts.quadrature)),
    )
