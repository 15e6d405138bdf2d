"""Diagonals with a control variate from the caller."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from .._arrays import (
    Array,
    Probes,
    abs2,
    conj,
    eps_of,
    is_complex,
    magnitude,
    namespace,
    positive,
    real,
)
from .._controls import Control, Sums, coefficients, membership, require_independent, told
from .._estimates import Estimate, Running, fitted, require_finite
from .._operators import LinearOperator, columns_at_once, matvecs_per_column
from .._runs import Run
from ..probes import distributions
from .columns import drawn

ROUNDING = 64  # in units of eps, below which what is left of squares is rounding


class Moments(NamedTuple):
    """Of each fold of probes w, sums over these: of y = A w, and of p = P w less P's diagonal.

    y is less a constant multiple of w, which is added in the end, so that little cancels.
    """

    count: Array  # (folds,)
    w: Array  # (n, folds): |w|^2
    y: Array  # (n, folds): conj(w) y
    p: Array
    yy: Array  # (n, folds): |y|^2
    pp: Array
    py: Array  # conj(p) y


class Units(NamedTuple):
    """What y and p are divided by, and the multiple of w that y is less by, after that."""

    y: Array
    p: Array
    first: Array  # (n, 1)


def controlled_diagonal(run: Run, A: LinearOperator, probes: Probes, control: Control) -> Estimate:
    """The diagonal of A - c P by products of both with random probes, and that of c P."""
    require_independent(probes)
    per = matvecs_per_column(A)
    count, start = max(int(run.budget) // per, 1), 0
    moments: Moments | None = None
    units: Units | None = None
    for W in drawn(run, probes, None, count, columns_at_once(A))(count):
        Y, P = A.matmat(W), control.operator.matmat(W)
        require_finite(Y, "diagonal", columns=Y)
        P = P - control.value[:, None] * W
        if units is None:  # any numbers that are about those of the diagonal will do
            unit = magnitude(Y)
            first = conj(W[:, :1]) * (Y[:, :1] / unit) / positive(abs2(W[:, :1]))
            units = Units(unit, magnitude(P), first)
        new = moments_of(W, Y / units.y - units.first * W, P / units.p, start)
        pairs = () if moments is None else zip(moments, new, strict=True)
        moments = Moments(*(x + y for x, y in pairs)) if moments is not None else new
        start += W.shape[1]
    assert moments is not None
    assert units is not None
    return estimated(A, moments, units, control, probes, count * per, count)


def moments_of(W: Array, Y: Array, P: Array, start: int) -> Moments:
    """Of a block of probes, the first of which is number `start`."""
    xp, k = namespace(W), W.shape[1]
    of = membership(abs2(W[:1, :]), start, k)
    mixed = xp.matrix_transpose(xp.astype(of, W.dtype, copy=False))
    plain = xp.matrix_transpose(of)
    w, yy, pp = (abs2(X) @ plain for X in (W, Y, P))
    y, p, py = (X @ mixed for X in (conj(W) * Y, conj(W) * P, conj(P) * Y))
    return Moments(xp.sum(of, axis=-1), w, y, p, yy, pp, py)


def estimated(
    A: LinearOperator,
    moments: Moments,
    units: Units,
    control: Control,
    probes: Probes,
    spent: int,
    count: int,
) -> Estimate:
    """The diagonal, entry by entry with its error, from sums over probes."""
    xp, (folds, w, y, p, yy, pp, py) = A.xp, moments
    weight = positive(xp.sum(w, axis=-1))
    unsure = (xp.zeros_like(weight) + control.error) / units.p
    c = coefficients(of_all_entries(moments), count * xp.sum(unsure * unsure))
    left = xp.sum(y - c * p, axis=-1)
    squares = xp.sum(yy + abs2(c) * pp, axis=-1)
    rest = squares - xp.sum(2 * real(conj(c) * py), axis=-1) - abs2(left) / weight
    rounding = ROUNDING * eps_of(squares) * squares
    gone = rest <= rounding
    rest = xp.where(gone, xp.zeros_like(rest), rest)
    value = units.first[:, 0] + left / xp.astype(weight, left.dtype, copy=False)
    running = Running(count, weight, value, rest, None, units.y)
    tie = 0.5 if distributions.few_valued(probes, complex_=is_complex(A)) else None
    found = fitted(running, spent, "diagonal", tie=tie)
    floor = xp.sqrt(rounding / (weight * max(count - 1, 1))) * units.y
    error = xp.where(gone, xp.maximum(found.standard_error, floor), found.standard_error)
    mean_c = xp.sum(c * xp.astype(folds, c.dtype, copy=False)) / count
    error = xp.hypot(error, xp.abs(mean_c) * unsure * units.y)
    plain = xp.sum(yy, axis=-1) - abs2(xp.sum(y, axis=-1)) / weight
    plain = xp.sqrt(xp.sum(xp.where(plain > 0, plain, xp.zeros_like(plain))))
    reason = told(mean_c * (units.y / units.p), xp.sqrt(xp.sum(rest)), plain, count)
    return replace(found, standard_error=error, reason=reason)


def of_all_entries(moments: Moments) -> Sums:
    """The sums that the coefficient is fitted to, which is one for all entries."""
    xp = namespace(moments.w)
    y, p = (xp.matrix_transpose(x) for x in (moments.y, moments.p))
    squares = (xp.sum(x, axis=0) for x in (moments.yy, moments.pp, moments.py))
    return Sums(moments.count, y, p, *squares)
