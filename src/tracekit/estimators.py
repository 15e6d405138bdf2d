"""Estimators of the trace with independent probes: exact, Girard-Hutchinson, Hutch++."""

from __future__ import annotations

from typing import Any

from . import _xp
from . import probes as _probes
from ._budget import blocks, spend
from ._estimate import Estimate, beyond_chance, mean
from ._face import (
    blocked,
    columns_at_once,
    done,
    enter,
    exact_cost,
    exactly,
    forms_of,
    has_plain_form,
    price,
    quadratic_forms,
    renamed,
    square,
)
from ._leave_one_out import check_adjoint
from ._operator import LinearOperator
from ._random import Source
from ._sketch import orthonormal_extension
from ._typing import Array, Probes, Rng


def exact_trace(A: Any, *, block_size: int | None = None) -> Estimate:
    """The exact trace, by products with all coordinate vectors.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.
    block_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given.

    Returns
    -------
    Estimate
        With standard error 0. The value is a 0-d array in A's library, dtype and device.

    Raises
    ------
    ValueError, TypeError
        If A is not square, is no operator, or returns something unusable; NotFiniteError if that is
        NaN or infinity.

    Notes
    -----
    Costs n products, and memory for one block of columns and its products. Where ``A = L L^H`` is
    made by `gram`, the products are with ``L^H``, or with L if that has fewer columns. Costs
    nothing where the operator's maker knows the trace.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> tk.exact_trace(np.diag([1.0, 2.0, 3.0]))
    Estimate(6.0 +- 0.0, 3 matvecs, exact_trace)
    """
    return exactly(square(A), block_size)


def hutchinson(
    A: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    probes: Probes = _probes.rademacher,
    rtol: float = 0.0,
    atol: float = 0.0,
    block_size: int | None = None,
) -> Estimate:
    r"""Girard-Hutchinson estimate of the trace: the mean of :math:`\omega^H A \omega`.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int
        Products to spend, at least 1. From n on the trace is exact, with n products.
    rng : None, int, or generator, optional
        An int or NumPy generator draws the same probes in every library; a torch.Generator, JAX key
        or CuPy generator draws on the device.
    probes : callable, optional
        A law of `tracekit.probes`, or any function ``(source, n, m) -> (n, m)``.
    rtol, atol : float, optional
        If one is positive: look after 8, 16, 32, ... products, and stop when the 95 % interval is
        within ``atol + rtol |value|``.
    block_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given. The probes do not depend on it.

    Returns
    -------
    Estimate
        Unbiased. The value is a 0-d array in A's library and device, and in its dtype (integers are
        computed in the default float, half precisions in float32). The standard error is that of a
        mean, times ``sqrt(1 - m / n)`` for orthogonal and Hadamard probes. Equal samples of signs
        are not taken for exact while they may be so by chance: the error is then infinite, or that
        of differently weighted forms; 0 from 7 probes on where all products show a diagonal A (15
        where A has a quadratic form of its own).

    Raises
    ------
    ValueError, TypeError
        If A is not square, the budget is no positive int, or A returns something unusable;
        NotFiniteError if that is NaN or infinity.

    Notes
    -----
    Costs m products, and little else. Memory is one block of probes and one of products (and all m
    probes for `probes.orthogonal`).
    The relative error falls as ``m ** -0.5``; use it for flat spectra or tiny budgets.

    References
    ----------
    Girard (1989), Numer. Math. 56, doi:10.1007/BF01395775; Hutchinson (1989), Commun. Stat. Simul.
    Comput. 18, doi:10.1080/03610918908812806.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.ones((50, 50)) + np.diag(np.arange(50.0))
    >>> estimate = tk.hutchinson(A, 20, rng=0)
    >>> estimate.num_matvecs
    20
    """
    A, m = enter(A, num_matvecs, rtol, atol)
    n, cost = A.shape[0], exact_cost(A)
    size = columns_at_once(A, block_size)
    take = _probes.stream(probes, Source(rng, A), n, min(m, cost))
    forms = blocked(quadratic_forms(A), size)
    ties = _probes.few_valued(probes, complex_=_xp.is_complex(A))

    def step(before: Array | None, k: int) -> tuple[Array, Estimate]:
        parts = [] if before is None else [before]
        for width in blocks(k, k if probes is _probes.orthogonal else size):
            parts.append(forms(take(width)))
        samples = A.xp.concat(parts, axis=1)
        spent = samples.shape[1]
        correction = _probes.finite_population(probes, spent, n)
        estimate = mean(samples[0, :], spent, "hutchinson", correction=correction)
        if ties:
            estimate = beyond_chance(estimate, _weighted(samples), correction=correction)
        return samples, done(estimate, A)

    return spend(step, m, lambda: exactly(A, block_size), price=1, cost=cost, rtol=rtol, atol=atol)


def hutchpp(
    A: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    probes: Probes = _probes.rademacher,
    block_size: int | None = None,
) -> Estimate:
    """Hutch++ estimate of the trace: exact on a sketched range, Girard-Hutchinson on the rest.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int
        Products m to spend: ``m // 3`` to sketch the range, as many for the trace on it, the
        others for the rest. For ``A = L L^H``, made by `gram`: ``m // 4`` columns, of which the
        sketch costs two products each. From n on the trace is exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`.
    block_size : int, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        Unbiased, in A's library, dtype and device as for `hutchinson`; its standard error is that
        of the rest, given the sketch, and infinite where few signs find nothing beside it (one in
        50 times at most would that be chance with 6 of them and redundant columns together).

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`.

    Notes
    -----
    Costs O(n m^2) operations besides the products, and memory for 2 m / 3 columns. `xtrace` makes
    better use of the same products.

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), SOSA, arXiv:2010.09649, doi:10.1137/1.9781611976496.16.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.outer(np.arange(50.0), np.arange(50.0))
    >>> estimate = tk.hutchpp(A, 12, rng=0)
    >>> bool(abs(estimate.value - np.trace(A)) < 1e-9 * np.trace(A))  # of rank one: exact
    True
    """
    A, m = enter(A, num_matvecs)
    n = A.shape[0]
    if m >= exact_cost(A):
        return exactly(A, block_size)
    k = m // (3 if A.factor is None else 4)
    s = m - (2 if A.factor is None else 3) * k
    source, size = Source(rng, A), columns_at_once(A, block_size)
    quad = blocked(A.quad, size)
    if k == 0:
        return renamed(hutchinson(A, m, rng=rng, probes=probes, block_size=block_size), "hutchpp")
    S, T = (_probes.draw(probes, source, n, count) for count in (k, s))
    Y = blocked(A.matmat, size)(S)
    Q, R, _ = orthonormal_extension(Y / _xp.magnitude(Y), S)
    T = T - Q @ _xp.inner(Q, T)
    rest = _forms_beside(A, Q, T, size)
    estimate = mean(A.xp.sum(quad(Q)) + rest[0, :], m, "hutchpp")
    if _probes.few_valued(probes, complex_=_xp.is_complex(A)):
        weighted = _weighted(rest)
        vanishing = rest[0, :] if A.factor is not None else weighted
        estimate = beyond_chance(estimate, weighted, rest=vanishing, surplus=_surplus(R))
    return done(estimate, A)


def nahutchpp(
    A: Any, num_matvecs: int, *, rng: Rng = None, block_size: int | None = None
) -> Estimate:
    """NA-Hutch++ estimate of the trace: all products at once, none depends on another.

    A reference: where A is positive semidefinite `xnystrace` needs one pass too and is more
    accurate; otherwise use this only if the products cannot be made in two rounds.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n. If A is not Hermitian, a quarter of the products are with its
        adjoint, where it has one.
    num_matvecs : int
        Products m to spend: ``m // 4`` and ``m // 2`` for the two sides of a low-rank
        approximation, the others for the rest. From n on the trace is exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    block_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given.

    Returns
    -------
    Estimate
        Unbiased; its standard error is that of the rest, given the approximation.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`.

    Notes
    -----
    Costs O(n m^2) operations besides the products, and memory for 2 m columns.

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), SOSA, arXiv:2010.09649, Algorithm 2.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.outer(np.arange(50.0), np.arange(50.0))
    >>> estimate = tk.nahutchpp(A, 12, rng=0)
    >>> bool(abs(estimate.value - np.trace(A)) < 1e-9 * np.trace(A))
    True
    """
    A, m = enter(A, num_matvecs)
    n, units = A.shape[0], m // price(A)
    if m >= exact_cost(A):
        return exactly(A, block_size)
    if units < 8:
        return renamed(hutchinson(A, m, rng=rng, block_size=block_size), "nahutchpp")
    source, size, b = Source(rng, A), columns_at_once(A, block_size), units // 4
    s = m - price(A) * 3 * b
    S, R, T = (_probes.rademacher(source, n, k) for k in (b, 2 * b, s))
    adjoint = A.H if A.rmatmat is not None else A
    Z, W = blocked(A.matmat, size)(R), blocked(adjoint.matmat, size)(S)
    scale = _xp.magnitude(Z)
    Z, W = Z / scale, W / scale
    corner, whole = _xp.inner(S, Z), A.xp.sqrt(_xp.norm2(S)) * A.xp.sqrt(_xp.norm2(Z))
    if A.rmatmat is not None:
        check_adjoint(_xp.inner(W, R), corner, whole)
    is_rounding = A.xp.abs(corner) <= 10 * _xp.eps(corner) * whole  # which must not be inverted
    core = A.xp.linalg.pinv(A.xp.where(is_rounding, A.xp.zeros_like(corner), corner))
    low_rank = _xp.trace(core @ _xp.inner(W, Z)) * scale
    near = Z @ (core @ _xp.inner(W, T)) * scale
    forms = blocked(quadratic_forms(A), size)(T)
    rest = forms - forms_of(T, near)[: forms.shape[0], :]
    estimate = mean(low_rank + rest[0, :], m, "nahutchpp")
    if _probes.few_valued(_probes.rademacher, complex_=_xp.is_complex(A)):
        estimate = beyond_chance(estimate, _weighted(rest))
    return done(estimate, A)


def _forms_beside(A: LinearOperator, Q: Array, T: Array, size: int) -> Array:
    """As `quadratic_forms`, of A beside the range of Q, in which no column of T has a part."""
    if A.factor is not None or not has_plain_form(A):
        return blocked(quadratic_forms(A), size)(T)
    Y = blocked(A.matmat, size)(T)
    return forms_of(T, Y - Q @ _xp.inner(Q, Y))


def _weighted(forms: Array) -> Array | None:
    return forms[1, :] if forms.shape[0] > 1 else None


def _surplus(R: Array) -> int:
    """How many columns of a sketch added nothing to its range; 0 where values are not known."""
    pivots = _xp.namespace(R).abs(_xp.diagonal(R))
    gone = pivots <= _xp.eps(R) ** 0.5 * _xp.magnitude(R)
    few = _xp.namespace(R).sum(_xp.namespace(R).astype(gone, pivots.dtype))
    return 0 if _xp.is_traced(few) else round(_xp.number(few).real)
