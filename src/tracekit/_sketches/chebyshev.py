r"""Chebyshev moments of many probes: two for each product, from the last two blocks alone.

With :math:`B = (A - c) / h`, whose spectrum lies in [-1, 1], and :math:`t_j = T_j(B) \omega`, which
follow from one another, the moments :math:`\mu_k = \omega^H T_k(B) \omega` are
:math:`\mu_{2j} = 2 \langle t_j, t_j \rangle - \mu_0` and
:math:`\mu_{2j+1} = 2 \langle t_{j+1}, t_j \rangle - \mu_1`. As a rule they are weights, of either
sign, on the nodes of Chebyshev: exact for polynomials of degree 2 d after d products.

Weisse, Wellein, Alvermann, Fehske (2006), arXiv:cond-mat/0504627.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from .._arrays import (
    Array,
    coldot,
    colnorm2,
    constant,
    device_of,
    eps_of,
    is_traced,
    namespace,
    real,
    require_hermitian,
    to_number,
)
from .._estimates import jackson, require_finite
from .._operators import LinearOperator, matvecs_per_column
from . import gauss, lanczos
from .arnoldi import Arnoldi

BOUND_STEPS = 20  # of the search for bounds
OVERSAMPLING = 4  # nodes for each moment
FOUND = 1e-6  # relative, by which a moment may exceed the first
ROUNDING = 10  # in units of eps, of an eigenvalue at the end of the interval


class OutsideError(ValueError):
    """Moments that grow, since an eigenvalue lies outside of the interval."""


@dataclass(frozen=True)
class Moments:
    """The moments of k probes, and the two blocks that give the next ones."""

    operator: LinearOperator
    rest: Array  # (n, k): the newest block
    before: Array | None
    moments: tuple[Array, ...]  # of k each
    center: Array  # (k,)
    half: Array  # (k,)
    block = 1

    @property
    def depth(self) -> int:
        """Products with each probe."""
        return (len(self.moments) - 1) // 2

    @property
    def seen(self) -> Array:
        """What shows whether values are known, and differentiated."""
        return self.moments[-1]

    @property
    def groups(self) -> int:
        """Probes."""
        return int(self.center.shape[0])

    def cost(self, depth: int) -> int:
        """Products that so many steps cost for each probe."""
        return cost(self.operator, depth)

    def held(self, depth: int) -> int:
        """Columns that each probe keeps in memory."""
        return 4

    def advance(self, depth: int) -> Moments:
        """The moments after so many products."""
        found = self
        while found.depth < depth:
            found = _step(found)
        return found if found is self else _watch(found)

    def select(self, groups: slice) -> Moments:
        """Those of some of the probes."""
        return replace(
            self,
            rest=self.rest[:, groups],
            before=None if self.before is None else self.before[:, groups],
            moments=tuple(x[groups] for x in self.moments),
            center=self.center[groups],
            half=self.half[groups],
        )

    def shortened(self, depth: int) -> Moments:
        """Those of fewer products, to be read from, not to be advanced."""
        return replace(self, moments=self.moments[: 2 * depth + 1])

    def without_basis(self) -> Moments:
        """The moments alone, to be read from, not to be advanced."""
        return replace(self, rest=lanczos.without_rows(self.rest), before=None)

    def constant(self) -> Moments:
        """The moments without derivatives."""
        return replace(
            self,
            operator=lanczos.constant_operator(self.operator),
            rest=constant(self.rest),
            before=None if self.before is None else constant(self.before),
            moments=tuple(constant(x) for x in self.moments),
        )

    @staticmethod
    def joined(parts: list[Moments]) -> Moments:
        """Those of several batches of probes, of one depth, as one."""
        xp, first = namespace(parts[0].rest), parts[0]
        before = [x.before for x in parts if x.before is not None]
        return replace(
            first,
            rest=xp.concat([x.rest for x in parts], axis=1),
            before=xp.concat(before, axis=1) if len(before) == len(parts) else None,
            moments=tuple(
                xp.concat(list(x)) for x in zip(*(p.moments for p in parts), strict=True)
            ),
            center=xp.concat([x.center for x in parts]),
            half=xp.concat([x.half for x in parts]),
        )


Space: TypeAlias = lanczos.Krylov | Moments | Arnoldi


def begin(A: LinearOperator, X: Array, interval: tuple[Array | float, Array | float]) -> Moments:
    """The moments of the columns of X before the first product."""
    (low, high), first = interval, colnorm2(X)
    zero = namespace(first).zeros_like(first)
    return Moments(A, X, None, (first,), zero + (high + low) / 2, zero + (high - low) / 2)


def cost(A: LinearOperator, depth: int) -> int:
    """Products that so many steps cost for each probe."""
    return depth * matvecs_per_column(A)


def bounds(A: LinearOperator, X: Array, steps: int, margin: float) -> tuple[float, float, float]:
    """An interval that should hold the spectrum, and the least Ritz value, by Lanczos."""
    K = lanczos.begin(A, X, reorthogonalise=False).constant().advance(steps + 1)
    nodes, _, rho = gauss.residuals(K, steps)
    xp = namespace(nodes)
    low, high, least = (
        to_number(x).real for x in (xp.min(nodes - rho), xp.max(nodes + rho), xp.min(nodes))
    )
    more = margin * max(high - low, 1e-6 * abs(high), 1e-300)
    return low - more, high + more, least


def rule(C: Moments, depth: int, *, damped: bool = False) -> tuple[Array, Array]:
    """Nodes and signed weights (k, N) of so many products, N eight times as many.

    Damped by Jackson's kernel they are those of a density that is nowhere negative: for densities
    and steps alone, since it costs a smooth function its digits.
    """
    M = 2 * depth + 1
    factor = np.where(np.arange(M) > 0, 2.0, 1.0) / (OVERSAMPLING * M)
    if damped:
        factor = factor * jackson(M)
    weights = (_stacked(C, M) * _placed(factor, C.center)) @ _cosines(C.center, M)
    x = np.cos(np.pi * (np.arange(OVERSAMPLING * M) + 0.5) / (OVERSAMPLING * M))
    return C.center[:, None] + C.half[:, None] * _placed(x, C.center), weights


def moments_of(weights: Array) -> Array:
    """The moments (M,) that the weights (N,) of a rule hold, damped as they are."""
    return _cosines(weights, weights.shape[0] // OVERSAMPLING) @ weights


def terms(C: Moments, depth: int, y: Array) -> Array:
    """The terms (k, 2 d + 1) of the series, from the values of f (or of several) at the nodes."""
    M = 2 * depth + 1
    factor = np.where(np.arange(M) > 0, 2.0, 1.0) / (OVERSAMPLING * M)
    c = (y @ namespace(y).matrix_transpose(_cosines(C.center, M))) * _placed(factor, C.center)
    return c * _stacked(C, M)


def _stacked(C: Moments, M: int) -> Array:
    """The first moments (k, M)."""
    return namespace(C.center).stack(list(C.moments[:M]), axis=-1)


def _cosines(like: Array, M: int) -> Array:
    """``cos(k theta_i)`` of M degrees at the nodes of their rule, whole turns left out."""
    N = OVERSAMPLING * M
    turns = np.arange(M)[:, None] * (2 * np.arange(N) + 1) % (4 * N)
    return _placed(np.cos(np.pi / (2 * N) * turns), like)


def _placed(x: Any, like: Array) -> Array:
    """Numbers of the host where an array is, in its dtype."""
    return namespace(like).asarray(x, dtype=like.dtype, device=device_of(like))


def _step(C: Moments) -> Moments:
    Y = C.operator.matmat(C.rest)
    require_finite(Y)
    Y = (Y - C.center * C.rest) / C.half
    T = Y if C.before is None else 2 * Y - C.before
    odd, even = real(coldot(T, C.rest)), 2 * colnorm2(T) - C.moments[0]
    if C.before is not None:
        odd = 2 * odd - C.moments[1]
    if C.depth == 1:
        _require_hermitian(C, T)
    return replace(C, rest=T, before=C.rest, moments=(*C.moments, odd, even))


def _require_hermitian(C: Moments, T: Array) -> None:
    """Refuse an operator whose second moment is not the same by both ways that lead to it."""
    xp, second = namespace(T), coldot(T, C.before)
    other = xp.astype(C.moments[2], second.dtype, copy=False)
    unit = xp.astype(C.moments[0], second.dtype, copy=False)
    rows = xp.stack([unit, second, other, unit], axis=-1)
    require_hermitian(xp.reshape(rows, (-1, 2, 2)), lanczos.REMEDY)


def _watch(C: Moments) -> Moments:
    """The same, where no moment is larger than the first one; NaN in compiled code where one is.

    What lies outside by rounding grows with the square of the degree.
    """
    xp, M = namespace(C.center), len(C.moments)
    largest = xp.max(xp.abs(xp.stack(list(C.moments[1:]))), axis=0)
    unit = (xp.abs(C.center) + C.half) / C.half
    fine = largest <= C.moments[0] * (1 + FOUND + ROUNDING * eps_of(unit) * unit * M * M)
    if is_traced(fine):
        nan = xp.where(fine, C.moments[0], C.moments[0] + math.nan)
        return replace(C, moments=(nan, *(mu + 0 * nan for mu in C.moments[1:])))
    if not bool(xp.all(fine)):
        raise OutsideError(
            "an eigenvalue lies outside of the interval that the spectrum was said to lie in; pass "
            "a wider one, quadrature.chebyshev(interval=(low, high))"
        )
    return C
