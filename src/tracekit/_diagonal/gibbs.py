"""Reduced density matrices of pure states, exactly, and of Gibbs states by random states."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real
from typing import Any

from .._arrays import (
    Array,
    Rng,
    abs2,
    adjoint,
    is_array,
    is_traced,
    magnitude,
    matrix_trace,
    namespace,
    real,
    to_number,
)
from .._estimates import (
    ErrorParts,
    Estimate,
    checked_budget,
    exact,
    finalize,
    mean,
    with_origin,
)
from .._operators import LinearOperator, all_columns_cost, read_axes, square
from .._sketches import gauss
from ..functions import Function, entropy
from ..probes import Source, distributions
from .of_functions import NOT_SETTLED, Plan, applied, depth_error, eigenpairs, spaces

REACH = 30.0  # exponents are cut there: beyond it weights are 0 against the largest, or unknown


def reduced_density_matrix(psi: Array, dims: tuple[int, ...], axis: int | tuple[int, ...]) -> Array:
    r"""The density matrix of a part of a system in a pure state.

    Parameters
    ----------
    psi : array of shape (n,)
        The state, of any length but 0; real or complex.
    dims : tuple of int
        Tensor shape of the system, in C order: the sizes multiply to n.
    axis : int or tuple of int
        What to trace over, as for `partial_trace`. The other axes are kept, of K entries together.

    Returns
    -------
    array of shape (K, K)
        Hermitian, positive semidefinite, of trace 1, without a unit; in psi's library and dtype.

    Raises
    ------
    ValueError, TypeError
        If psi is no such array or 0, or dims or axis do not suit it.

    Notes
    -----
    :math:`\Psi \Psi^H / |\psi|^2`, with psi as a K by n / K matrix :math:`\Psi`: exact, n K
    operations and no product.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> singlet = np.array([0.0, 1.0, -1.0, 0.0])
    >>> tk.reduced_density_matrix(singlet, (2, 2), 1).round(6).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    Psi = _as_matrix(psi, dims, axis)
    return Psi @ adjoint(Psi)


def entanglement_entropy(psi: Array, dims: tuple[int, ...], axis: int | tuple[int, ...]) -> Array:
    r"""The entropy of a part of a system in a pure state, by its Schmidt decomposition.

    Parameters
    ----------
    psi : array of shape (n,)
        As for `reduced_density_matrix`.
    dims : tuple of int
        As for `reduced_density_matrix`.
    axis : int or tuple of int
        What to trace over; the other part has the same entropy.

    Returns
    -------
    array
        0-d and real: :math:`-\mathrm{tr} \rho \log \rho` in nats, of the reduced density matrix
        :math:`\rho`; in psi's library.

    Raises
    ------
    ValueError, TypeError
        As for `reduced_density_matrix`.

    Notes
    -----
    Of the singular values of psi as a K by n / K matrix, exact: n min(K, n / K) operations. Small
    probabilities keep the digits that eigenvalues of the density matrix lose.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> singlet = np.array([0.0, 1.0, -1.0, 0.0])
    >>> round(float(tk.entanglement_entropy(singlet, (2, 2), 1)), 6)  # log(2)
    0.693147
    """
    Psi = _as_matrix(psi, dims, axis)
    xp = namespace(Psi)
    return xp.sum(entropy(xp.linalg.svdvals(Psi) ** 2))


@with_origin
def gibbs_density_matrix(
    H: Any,
    beta: float,
    dims: Any,
    axis: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    depth: int | None = None,
) -> Estimate:
    r"""The density matrix of a part of a system in thermal equilibrium.

    Parameters
    ----------
    H : LinearOperator or anything that `as_operator` reads
        The Hamiltonian of the whole: Hermitian, of dimension n.
    beta : float
        The inverse temperature, 0 or more, in one over the unit of H.
    dims : tuple of int or None
        As for `partial_trace`.
    axis : int or tuple of int
        What to trace over, as for `partial_trace`; the other axes are kept, of K entries together.
    num_matvecs : int
        Products to spend at most: `depth` for each probe (``2 depth - 1`` if H was made by `gram`).
        Exact from n products on (the lesser dimension of L, if H is ``L L^H``).
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        Lanczos steps; one and a half times the root of `num_matvecs`, at least 6, if not given.

    Returns
    -------
    Estimate
        With a value and a standard error of shape (K, K), in H's library, dtype and device:
        Hermitian, positive semidefinite and of trace 1, whatever the errors of its entries.

    Raises
    ------
    ValueError, TypeError
        As for `partial_trace`; if `beta` is negative or not finite, H shows not to be Hermitian, or
        the products do not pay for a probe.

    Notes
    -----
    :math:`\mathrm{tr}_T\, e^{-\beta H} / Z`, of random states :math:`e^{-\beta H / 2} \omega`: the
    mean of their reduced density matrices over the mean of their squared lengths, with the errors
    of a ratio and of the depth, and without its bias of first order; no product serves more than
    one probe. In small systems few states are far from typical: pass as many products as it takes,
    or all. Exponentials are taken of what H is above the least eigenvalue that the probes have
    seen. Memory for `depth` columns a probe, as many at a time as fit in 128 MB, and K^2 numbers
    for each probe.

    References
    ----------
    Goldstein, Lebowitz, Tumulka, Zanghi (2006), Phys. Rev. Lett. 96, arXiv:cond-mat/0511091;
    Sugiura, Shimizu (2013), Phys. Rev. Lett. 111, arXiv:1302.3138.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> coupled = np.array([[1.0, 0, 0, 0], [0, -1, 2, 0], [0, 2, -1, 0], [0, 0, 0, 1]])
    >>> tk.gibbs_density_matrix(coupled, 1.0, (2, 2), 1, 4).value.round(6).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    H, m = square(H, "partial trace"), checked_budget(num_matvecs)
    axes, beta = read_axes(H, dims, axis), _checked(beta)
    if m >= all_columns_cost(H):
        x, U = eigenpairs(H)
        M = axes.cross(U * _boltzmann(beta, H.xp.min(x))(x)[None, :], U)
        found = exact(_normalised(M), all_columns_cost(H), "gibbs_density_matrix")
        return finalize(found, H, "density matrix")
    plan = Plan.of(H, m, depth)
    xp, least, parts = H.xp, None, []
    for _, K in spaces(H, distributions.sphere, Source(rng, H), plan):
        least = xp.min(gauss.rule(K)[0]) if least is None else least
        states = applied(K, _boltzmann(beta / 2, least), plan.depths)
        parts.append([axes.outer(X) for X in states])
    M, *shorter = (xp.concat(list(x), axis=-1) for x in zip(*parts, strict=True))
    error, settled = depth_error([_normalised(xp.sum(x, axis=-1)) for x in (M, *shorter)])
    R, lengths = _normalised(xp.sum(M, axis=-1)), _traces(M)
    samples = R[..., None] + (M - R[..., None] * lengths) / xp.mean(lengths)
    found = mean(samples, plan.num_matvecs, "gibbs_density_matrix", independent=False)
    return finalize(
        replace(
            found,
            value=R,
            standard_error=xp.hypot(found.standard_error, error),
            converged=settled,
            reason=f"{plan.probes} probes, depth {plan.depth}"
            + ("" if settled else f"; {NOT_SETTLED}"),
            kept=ErrorParts(found.standard_error, error),
        ),
        H,
        "density matrix",
    )


def _as_matrix(psi: Any, dims: Any, axis: Any) -> Array:
    """A state of length 1, with rows for what is kept and columns for what is traced."""
    if not is_array(psi) or psi.ndim != 1:
        raise ValueError(
            f"`psi` must be an array of shape (n,), got {type(psi).__name__} of shape "
            f"{tuple(getattr(psi, 'shape', ()))}"
        )
    xp, n = namespace(psi), psi.shape[0]
    if not xp.isdtype(psi.dtype, ("real floating", "complex floating")):
        raise TypeError(f"`psi` must be of a floating dtype, got {psi.dtype}; convert it")
    identity = LinearOperator((n, n), lambda X: X, dtype=psi.dtype, xp=xp)
    psi = psi / magnitude(psi)
    size = xp.sqrt(xp.sum(abs2(psi)))
    if not is_traced(size) and not 0 < to_number(size).real < math.inf:
        raise ValueError("`psi` must be finite and not 0 to be a state; pass another vector")
    Psi = read_axes(identity, dims, axis).apart((psi / size)[:, None])
    return Psi[:, :, 0]


def _checked(beta: Any) -> float:
    if isinstance(beta, bool) or not isinstance(beta, Real) or not 0 <= float(beta) < math.inf:
        raise ValueError(
            f"`beta` must be a finite number of 0 or more, got {beta!r}; for negative temperatures "
            "pass -H"
        )
    return float(beta)


def _boltzmann(beta: float, least: Array) -> Function:
    """The weight ``exp(-beta (x - least))``, within range for eigenvalues below the least."""
    return lambda x: namespace(x).exp(namespace(x).clip(-beta * (x - least), -REACH, REACH))


def _traces(M: Array) -> Array:
    """Of every matrix of (kept, kept, k)."""
    return real(matrix_trace(namespace(M).permute_dims(M, (2, 0, 1))))


def _normalised(M: Array) -> Array:
    """Of trace 1, and Hermitian to the last bit."""
    return (M + adjoint(M)) / (2 * real(matrix_trace(M)))
