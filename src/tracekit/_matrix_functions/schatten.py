"""Norms and an effective rank that are sums over singular values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import functions
from .._arrays import Array, Product, Rng, is_traced, magnitude, namespace, positive
from .._estimates import (
    Estimate,
    require_finite,
    standard_error,
    with_origin,
)
from .._operators import LinearOperator, as_operator, gram
from .._runs import Callback, resumable
from ..functions import Function, checked_positive
from .slq import trace_estimate


@with_origin
@resumable()
def schatten_norm(
    A: Any,
    p: float,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    hermitian: bool | None = None,
    depth: int | None = None,
    deflate: int | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The Schatten norm :math:`(\sum_i \sigma_i^p)^{1/p}` of any matrix, from its singular values.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Of any shape, with a product with its adjoint; or Hermitian.
    p : float
        Positive: 1 for the nuclear norm, 2 for the Frobenius norm (`frobenius_norm` does better).
        A norm from 1 on.
    num_matvecs : int, optional
        Products with A and its adjoint, spent as in `trace_function`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    hermitian : bool, optional
        True if A is Hermitian: its eigenvalues are used then, at half the products a step. Known
        without it of operators made by `gram`, and taken for granted of square ones without an
        adjoint product.
    depth : int, optional
        As for `trace_function`.
    deflate : int, optional
        As for `trace_function`.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        Real; the standard error is that of the sum, by the delta method.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`; if p is not positive, or A has no adjoint product that it needs.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag([3.0, 4.0, 0.0])
    >>> [round(float(tk.schatten_norm(A, p, 9)), 6) for p in (1, 2, 4)]
    [7.0, 5.0, 4.284572]
    """
    checked_positive("p", p)
    largest: list[Array] = []

    def power(s: Array) -> Array:  # over the largest that is seen first: powers stay in range
        if not largest:
            largest.append(magnitude(s))
        return (s / largest[0]) ** p

    def norm_of(total: Estimate, in_unit: Callable[[Array], Array]) -> Estimate:
        xp, found, error = namespace(total.value), total.value, total.standard_error
        size = xp.where(found > 0, found, xp.zeros_like(found))
        norm = size ** (1 / p)
        known = xp.where(size > 0, error, xp.zeros_like(error))
        error = xp.where(size > 0, known * norm / (p * positive(size)), error ** (1 / p))
        return _read(total, in_unit(norm * largest[0]), in_unit(error * largest[0]))

    return _of_singular_values(
        A, power, norm_of, num_matvecs, "schatten_norm", hermitian, (largest,), rng=rng,
        depth=depth, deflate=deflate, rtol=rtol, atol=atol, callback=callback,
        checkpoint=checkpoint,
    )  # fmt: skip


@with_origin
@resumable()
def nuclear_norm(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    hermitian: bool | None = None,
    depth: int | None = None,
    deflate: int | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    """The sum of all singular values, also called trace norm: `schatten_norm` with p = 1.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        As for `schatten_norm`.
    num_matvecs : int, optional
        As for `schatten_norm`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    hermitian : bool, optional
        As for `schatten_norm`.
    depth : int, optional
        As for `trace_function`.
    deflate : int, optional
        As for `trace_function`.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        As of `schatten_norm`.

    Raises
    ------
    ValueError, TypeError
        As for `schatten_norm`.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.nuclear_norm(np.array([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]), 4))
    7.0
    """
    norm = schatten_norm(
        A, 1.0, num_matvecs, rng=rng, hermitian=hermitian, depth=depth, deflate=deflate,
        rtol=rtol, atol=atol, callback=callback, checkpoint=checkpoint,
    )  # fmt: skip
    return replace(norm, method="nuclear_norm")


@with_origin
@resumable()
def entropy_rank(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    hermitian: bool | None = None,
    depth: int | None = None,
    deflate: int | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The effective rank of Roy and Vetterli: the exponential of the singular values' entropy.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        As for `schatten_norm`.
    num_matvecs : int, optional
        As for `schatten_norm`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    hermitian : bool, optional
        As for `schatten_norm`.
    depth : int, optional
        As for `trace_function`.
    deflate : int, optional
        As for `trace_function`.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        Real, between 1 and the rank up to its error, 0 for a zero operator; the standard error by
        the delta method.

    Raises
    ------
    ValueError, TypeError
        As for `schatten_norm`; if so few products were spent that the sum of the singular values
        is not positive.

    Notes
    -----
    With :math:`p_i = \sigma_i / \sum_j \sigma_j` this is :math:`\exp(-\sum_i p_i \log p_i)`. Both
    sums come from the same products. `effective_rank` is another, the participation ratio.

    References
    ----------
    Roy, Vetterli (2007), Proc. EUSIPCO, pp. 606-610.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> round(float(tk.entropy_rank(np.diag([2.0, 2.0, 2.0, 0.0]), 8)), 6)
    3.0
    """

    def both(s: Array) -> Array:
        xp = namespace(s)
        return xp.stack([s, s * xp.log(positive(s))])

    def rank_of(sums: Estimate, _: Any) -> Estimate:
        xp, t, e = namespace(sums.value), sums.value[0, ...], sums.value[1, ...]
        if not is_traced(t) and bool(t < 0):
            raise ValueError(
                f"num_matvecs={num_matvecs} are too few products for this operator: the sum of its "
                "singular values was estimated as negative; pass more, or deflate=0"
            )
        nothing = t == 0  # singular values add up to zero where all of them are
        t = xp.where(nothing, xp.ones_like(t), t)
        rank = xp.exp(xp.log(t) - e / t)
        rank = xp.where(nothing, xp.zeros_like(rank), rank)
        if sums.samples is None:
            return _read(sums, rank, xp.zeros_like(rank))
        linearised = ((1 + e / t) * sums.samples[0, ...] - sums.samples[1, ...]) / t
        quadrature = (xp.abs(1 + e / t) * sums.kept.quadrature[0] + sums.kept.quadrature[1]) / t
        error = xp.hypot(standard_error(linearised), quadrature)
        return _read(sums, rank, rank * error)

    return _of_singular_values(
        A, both, rank_of, num_matvecs, "entropy_rank", hermitian, rng=rng, depth=depth,
        deflate=deflate, rtol=rtol, atol=atol, callback=callback, checkpoint=checkpoint,
    )  # fmt: skip


def _of_singular_values(
    A: Any,
    g: Function,
    made: Callable[[Estimate, Callable[[Array], Array]], Estimate],
    num_matvecs: int | None,
    method: str,
    hermitian: bool | None,
    units: tuple[list[Array], ...] = (),
    **slq: Any,
) -> Estimate:
    """What is made of the sum of g over the singular values, and of how to leave their unit.

    They are in a unit of their own. Of a Hermitian operator they are the moduli of the eigenvalues.
    `units` are further numbers that are fixed as products are first seen.
    """
    given = A = as_operator(A)
    unit = list[Array]()
    square, factored = A.shape[0] == A.shape[1], A.factor is not None
    if factored:
        A, f = gram(_in_own_unit(A.factor, unit)), functions.semidefinite(g)
    elif hermitian or (square and A.rmatmat is None):
        A, f = _in_own_unit(A, unit), _of_modulus(g)
    else:
        L = _in_own_unit(A, unit)
        A = gram(L if A.shape[0] <= A.shape[1] else L.H)
        f = functions.semidefinite(lambda x: g(namespace(x).sqrt(x)))

    def in_unit(x: Array) -> Array:
        for u in unit * (2 if factored else 1):
            x = x * u
        return x

    return trace_estimate(
        A, f, num_matvecs, method, operator=given, units=(unit, *units),
        into=lambda found: made(found, in_unit), **slq,
    )  # fmt: skip


def _in_own_unit(A: LinearOperator, unit: list[Array]) -> LinearOperator:
    """The operator over the size of its first product that is not zero, which is noted."""

    def scaled(product: Product) -> Product:
        def run(X: Array) -> Array:
            Y = product(X)
            require_finite(Y)
            if not unit and (is_traced(Y) or bool(A.xp.any(Y != 0))):
                unit.append(magnitude(Y))
            return Y / unit[0] if unit else Y

        return run

    adjoint = None if A.rmatmat is None else scaled(A.rmatmat)
    return A._like(A.shape, scaled(A.matmat), adjoint)


def _of_modulus(g: Function) -> Callable[[Array], Array]:
    return lambda x: g(namespace(x).abs(x))


def _read(total: Estimate, value: Array, error: Array) -> Estimate:
    """A number that was read from a sum."""
    return replace(total, value=value, standard_error=error, samples=None, skewness=None, kept=None)
