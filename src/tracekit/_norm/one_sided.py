"""Norm, effective rank and alignment of L L^H from products with L^H alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    Rng,
    abs2,
    coldot,
    conj,
    inner,
    is_complex,
    is_traced,
    magnitude,
    matrix_diagonal,
    matrix_trace,
    namespace,
    real_dtype,
    to_number,
)
from .._arrays import real as real_part
from .._estimates import (
    Estimate,
    few,
    jackknife,
    require_finite,
    skewness_of,
    with_origin,
)
from .._operators import (
    LinearOperator,
    as_operator,
    blocked,
    columns_at_once,
    common_dtype,
    matvecs_per_column,
)
from .._runs import Callback, Run, resumable
from .._sketches import zonal
from ..probes import distributions
from .summary import SpectralSummary


@with_origin
@resumable()
def one_sided_summary(
    L: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> SpectralSummary:
    r"""Trace, Frobenius norm and effective rank of :math:`L L^H` from products with ``L^H`` alone.

    Parameters
    ----------
    L : LinearOperator or anything that `as_operator` reads
        Of shape (n, P); pass ``L.H`` to use products with L alone.
    num_matvecs : int, optional
        Columns m through ``L^H``, at least 2; with a tolerance, at the most, and none is needed.
        Exact from n on.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`, of all three; the products are kept and added to.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the products.

    Returns
    -------
    SpectralSummary
        The trace and the squared norm are unbiased; norm and rank have the jackknife's bias
        correction. Standard errors are the jackknife's, times ``sqrt(1 - m / n)`` and, for the few
        columns that one direction may dominate, ``1 + 8 / m^2``; infinite for two columns.

    Raises
    ------
    ValueError, TypeError
        As for `one_sided`, and if L is zero.

    Notes
    -----
    Orthogonal probes V and the Gram matrix :math:`K = V^H L L^H V`: the quadratic estimators of
    `tr(A^2)` and `tr(A)^2` are the only unbiased ones that depend on K alone and not on the basis.
    Memory for m columns of length n and of length P.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> L = np.random.default_rng(0).standard_normal((60, 200))
    >>> summary = tk.one_sided_summary(L, 40, rng=0)
    >>> bool(abs(summary.frobenius_norm.value / np.linalg.norm(L @ L.T) - 1) < 0.05)
    True
    """
    run = Run.of(as_operator(L), num_matvecs, rng, rtol, atol, callback, checkpoint)
    extend, each = columns(run, run.A)
    found: SpectralSummary = run.spend(extend, partial(read_summary, L=run.A), each)
    return found


class Columns(NamedTuple):
    """``L^H V`` of one or two operators, in units of scales, with orthonormal V of n rows."""

    sketches: list[Array]
    scales: list[Array]

    @property
    def grams(self) -> list[Array]:
        """``V^H L L^H V`` in units of a scale squared."""
        return [inner(G, G) for G in self.sketches]


def columns(run: Run, *operators: LinearOperator) -> tuple[Callable[[Any, int], Columns], int]:
    """What sends further columns of one V through all adjoints, and the products each costs.

    No more than all n of them are spent: the value is then exact.
    """
    n, cost = operators[0].shape[0], sum(matvecs_per_column(L) for L in operators)
    if run.is_short(cost, least=2):
        raise ValueError(
            f"`num_matvecs` must be at least {2 * cost} for a squared norm, got {run.budget}; "
            "pass more"
        )
    run.budget = min(run.budget, n * cost)
    take = run.stream(distributions.orthogonal, n, n)

    def extend(before: Columns | None, k: int) -> Columns:
        V = take(k) * n**-0.5
        sketches = [blocked(L.H.matmat, columns_at_once(L, None))(V) for L in operators]
        for G in sketches:
            require_finite(G, "norm", columns=G)
        scales = [magnitude(G) for G in sketches] if before is None else before.scales
        sketches = [G / scale for G, scale in zip(sketches, scales, strict=True)]
        if before is not None:
            both = zip(before.sketches, sketches, strict=True)
            sketches = [namespace(G).concat([old, G], axis=1) for old, G in both]
        return Columns(sketches, scales)

    return extend, cost


def read_summary(state: Columns, L: LinearOperator) -> SpectralSummary:
    """All three numbers."""
    read, K = _reader(state, L)
    if not is_traced(K) and to_number(matrix_trace(K)) == 0:
        raise ValueError(
            "L is zero, so the effective rank of L L^H is 0 / 0; pass another operator"
        )
    return SpectralSummary(read(0), read(1), read(2))


def read_norm(state: Columns, L: LinearOperator) -> Estimate:
    """The norm alone, which a zero operator has too."""
    return _reader(state, L)[0](1)


def _reader(state: Columns, L: LinearOperator) -> tuple[Callable[[int], Estimate], Array]:
    """A function that gives trace, norm or effective rank by one Gram matrix, and the matrix."""
    (K,), (scale,) = state.grams, state.scales
    n, m = L.shape[0], K.shape[0]
    complex_, real = is_complex(K), real_dtype(L.dtype, L.xp)
    units, spent = (scale * scale, scale * scale, 1.0), m * matvecs_per_column(L)

    def value(which: int, t: Array, k: Array, count: int) -> Array:
        if which == 0:
            return t * (n / count)
        square, cross = zonal(t * t, k, count, n, complex_=complex_)
        return cross / square if which == 2 else namespace(t).sqrt(square)

    def read(which: int) -> Estimate:
        left_out = [_without_each(K, K, first=True), _without_each(K, K)]
        whole = _total(K), _dot(K, K)
        got, error, skewness = _jackknife(partial(value, which), whole, left_out, m, n, few(m))
        skewness = None if which == 2 else skewness  # a ratio is not as skewed as its parts
        got = L.xp.astype(got * units[which], L.dtype if which == 0 else real, copy=False)
        return Estimate(
            got, error * units[which], spent, "one_sided_summary", dof=m - 1, skewness=skewness
        )

    return read, K


@with_origin
@resumable(2)
def one_sided_alignment(
    L1: Any,
    L2: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""Cosine of :math:`L_1 L_1^H` and :math:`L_2 L_2^H` from products with the adjoints alone.

    Parameters
    ----------
    L1, L2 : LinearOperator or anything that `as_operator` reads
        With the same number n of rows.
    num_matvecs : int, optional
        Columns through both adjoints together, at least 4, as for `one_sided_summary`: half of them
        through each, with the same probes. Exact from 2 n on.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`. Of a number between 0 and 1 `atol` says more than `rtol`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the products.

    Returns
    -------
    Estimate
        Real, between 0 and 1 up to its error; with the jackknife's bias correction and error.

    Raises
    ------
    ValueError, TypeError
        As for `one_sided`, and if an operator is zero.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> L = np.random.default_rng(0).standard_normal((60, 200))
    >>> round(float(tk.one_sided_alignment(L, 2 * L, 40, rng=0)), 6)
    1.0
    """
    first, second = as_operator(L1), as_operator(L2)
    common_dtype(first, second)
    n = first.shape[0]
    if second.shape[0] != n:
        raise ValueError(f"operators of {n} and {second.shape[0]} rows cannot be compared")
    run = Run.of((first, second), num_matvecs, rng, rtol, atol, callback, checkpoint)
    extend, each = columns(run, first, second)
    found: Estimate = run.spend(extend, partial(_read_cosine, n=n, each=each), each)
    return found


def _read_cosine(state: Columns, n: int, each: int) -> Estimate:
    K1, K2 = state.grams
    m = K1.shape[0]
    for K in (K1, K2):
        if not is_traced(K) and to_number(matrix_trace(K)) == 0:
            raise ValueError("an operator is zero, so the alignment is 0 / 0; pass another one")
    complex_ = is_complex(K1)

    def cosine(t1: Array, t2: Array, k12: Array, k11: Array, k22: Array, count: int) -> Array:
        dot = zonal(t1 * t2, k12, count, n, complex_=complex_)[0]
        square1 = zonal(t1 * t1, k11, count, n, complex_=complex_)[0]
        square2 = zonal(t2 * t2, k22, count, n, complex_=complex_)[0]
        return dot / namespace(t1).sqrt(square1 * square2)

    pairs = ((K1, K2), (K1, K1), (K2, K2))
    whole = (_total(K1), _total(K2), *(_dot(*pair) for pair in pairs))
    left_out = [_without_each(K, K, first=True) for K in (K1, K2)]
    left_out += [_without_each(*pair) for pair in pairs]
    value, error, _ = _jackknife(cosine, whole, left_out, m, n, few(m) + 0.25)
    return Estimate(value, error, m * each, "one_sided_alignment", dof=m - 1)


def _total(K: Array) -> Array:
    return real_part(matrix_trace(K))


def _dot(K1: Array, K2: Array) -> Array:
    return real_part(namespace(K1).sum(conj(K1) * K2))


def _without_each(K1: Array, K2: Array, *, first: bool = False) -> Array:
    """The total of K1, or the inner product of both, without row and column i, for each i."""
    d1, d2 = real_part(matrix_diagonal(K1)), real_part(matrix_diagonal(K2))
    if first:
        return _total(K1) - d1
    return _dot(K1, K2) - 2 * real_part(coldot(K1, K2)) + d1 * d2


def _jackknife(
    value: Callable[..., Array],
    whole: tuple[Array, ...],
    left_out: list[Array],
    m: int,
    n: int,
    factor: float,
) -> tuple[Array, Array, Array | None]:
    """A function of means, corrected for its bias, its standard error and skewness; m of n probes.

    The error is multiplied by a factor; the skewness is that of the jackknife's pseudo-values.
    """
    got = value(*whole, m)
    if m < 3:
        return got, real_part(got) * 0.0 + (0.0 if m == n else math.inf), None
    xp = namespace(got)
    replicates = value(*left_out, m - 1)
    corrected, deviation, share = jackknife(got, replicates, 1 - m / n)
    error = xp.sqrt(xp.sum(abs2(deviation)) * share) * factor
    pseudo = got * m - replicates * (m - 1)
    return corrected, error, skewness_of(pseudo)
