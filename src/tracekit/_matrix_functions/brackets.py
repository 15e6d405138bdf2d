r"""Brackets of quadratic forms from bounds of the spectrum, and an interval that holds by theorem.

Let all eigenvalues lie in [a, b]. Of one probe, the Gauss rule of d nodes errs by the sign of
:math:`f^{(2d)}`, and the Gauss-Radau rule with one more node at a or b by that of
:math:`f^{(2d+1)}`, or its opposite: for the functions that say these signs, some of the three lie
below the form and some above (Golub, Meurant, 2010, "Matrices, Moments and Quadrature"). For m
Gaussian probes and f with half a range of r on [a, b]

.. math:: P(|\bar q - \mathrm{tr} B| \ge \epsilon) \le
    2 \exp(-m \epsilon^2 / (4 \|B\|_F^2 + 4 \epsilon \|B\|)), \quad B = f(A) - c I,

where :math:`\|B\| \le r` and :math:`\|B\|_F^2 \le n r^2` (Cortinovis, Kressner, 2021,
arXiv:2005.10009).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._arrays import Array, abs2, device_of, eps_of, eye_like, is_traced, namespace, to_number
from .._estimates import Certified, Estimate, mean
from .._sketches import gauss
from ..functions import Function, is_semidefinite, values

ROUNDING = 100  # in units of eps of the largest bound: how far a Ritz value may lie outside


def certified(estimate: Estimate, f: Function, K: Any, bounds: tuple[float, float]) -> Estimate:
    """The estimate with what its certified interval is made of."""
    if is_traced(K.seen):
        return estimate
    K, n = K.constant(), K.operator.shape[0]
    xp, length = K.operator.xp, _lengths(K)
    with np.errstate(all="ignore"):
        ends = f(xp.asarray(list(bounds), dtype=length.dtype, device=device_of(length)))
    center, half = (ends[0] + ends[1]) / 2, xp.abs(ends[1] - ends[0]) / 2
    if not bool(xp.isfinite(half)):
        raise ValueError(
            f"this function is not finite at the bounds {bounds}, and nothing can be certified; "
            "pass bounds where it is"
        )
    lower, upper = brackets(K, f, bounds)
    q = (lower + upper) / 2 - center * length
    width = xp.mean(upper - lower) / 2
    record = Certified(n * center + xp.mean(q), width, half, n, q.shape[-1])
    assert estimate.samples is not None  # their lengths are known: less of these is noise
    samples = estimate.samples + center * (n - length)
    found, parts = mean(samples, estimate.num_matvecs, estimate.method), estimate.kept
    return replace(
        estimate,
        value=found.value,
        standard_error=xp.hypot(found.standard_error, parts.quadrature),
        samples=samples,
        skewness=found.skewness,
        kept=parts._replace(monte_carlo=found.standard_error, certified=record),
    )


def brackets(K: Any, f: Function, bounds: tuple[float, float]) -> tuple[Array, Array]:
    """A lower and an upper value of the form of every probe."""
    T, d = gauss.compression(K), K.depth
    xp = namespace(T)
    nodes, M = gauss.rule(K)
    _refuse_outside(nodes, bounds)
    even, odd = f.signs  # type: ignore[attr-defined]
    squared = K.operator.factor is not None
    plain = gauss.forms(nodes, M, values(f, nodes, squared=squared))
    lower, upper = ([plain], []) if even > 0 else ([], [plain])
    if d == 1:
        raise ValueError("brackets take a depth of 2 or more; pass a greater one")
    low, high = bounds  # a node farther out is as right, and safe where a Ritz value has arrived
    outside = eps_of(nodes) ** 0.5 * (high - low)
    below = min(outside, low / 2) if is_semidefinite(f) else outside
    for z, sign in ((low - below, odd), (high + outside, -odd)):
        (lower if sign > 0 else upper).append(_radau(T, K, f, z))
    top = xp.max(xp.stack(lower), axis=0)
    return top, xp.maximum(xp.min(xp.stack(upper), axis=0), top)


def _radau(T: Array, K: Any, f: Function, z: float) -> Array:
    """The forms by the rule of as many nodes, one of them at z."""
    xp, d = namespace(T), K.depth
    x, U = xp.linalg.eigh(T[:, : d - 1, : d - 1])
    gap = xp.where(x == z, xp.ones_like(x), x - z)  # at zero, of a singular matrix
    coupling = abs2(T[:, d - 1, d - 2])
    moved = z + coupling * xp.sum(abs2(U[:, -1, :]) / gap, axis=-1)
    last = eye_like(T, d)[d - 1 :, :]
    change = xp.astype(moved, T.dtype, copy=False) - T[:, d - 1, d - 1]
    x, U = xp.linalg.eigh(T + xp.matrix_transpose(last) @ last * change[:, None, None])
    y = values(f, x, squared=True)
    return _lengths(K) * xp.sum(abs2(U[:, 0, :]) * y, axis=-1)


def _lengths(K: Any) -> Array:
    """Squared lengths of the probes."""
    return namespace(K.rest).reshape(abs2(K.below[0]), (-1,))


def _refuse_outside(nodes: Array, bounds: tuple[float, float]) -> None:
    """Refuse bounds that Ritz values contradict."""
    xp, (low, high) = namespace(nodes), bounds
    least, most = (to_number(end(nodes)).real for end in (xp.min, xp.max))
    slack = ROUNDING * eps_of(nodes) * max(abs(low), abs(high))
    if least < low - slack or most > high + slack:
        raise ValueError(
            f"the products show eigenvalues from {least:.6g} to {most:.6g}, which the bounds "
            f"({low:.6g}, {high:.6g}) do not hold; pass wider ones"
        )
