r"""Whether an eigenvalue near zero would have been seen: its logarithm may be most of a trace.

Of a matrix of dimension n a single eigenvalue far below the others has a part of about 1 / n in a
probe. Where the others reach from a to b, it shows among the Ritz values after about
:math:`\ln(4 n) / (2\, \mathrm{arccosh}(1 + 2 a / (b - a)))` steps, the logarithm of its inverse
part more (Saad, 2011, "Numerical Methods for Large Eigenvalue Problems", section 6.6).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from .._arrays import eps_of, namespace, to_host, to_number
from .._estimates import Estimate
from .._sketches import Krylov, gauss

CHANCE = 0.05  # of its mean part: one probe in eight has less, and misses the eigenvalue
MORE = 2  # steps, by which the formula is short where it says few
RESOLVED = 0.1  # residual of a Ritz pair over its value, at most
HIDDEN = "a singular value near 0 would not have been seen, which the error allows for"


def hidden(K: Krylov, budget: int) -> tuple[float, int]:
    """The logarithm of what one eigenvalue near zero may be below the others, and what it cost.

    Zero where it would show, for which one probe goes on as far as a budget pays.
    """
    one, before = K.select(slice(1)), K.depth
    if before < 2:  # whose error is infinite in any case
        return 0.0, 0
    while True:
        steps, low, high = steps_to_see_zero(one)
        if steps <= one.depth:
            return 0.0, one.cost(one.depth) - one.cost(before)
        if one.cost(steps) - one.cost(before) > budget:
            least = (eps_of(K.seen) ** 2) * high
            return math.log(max(low / least, 1.0)), one.cost(one.depth) - one.cost(before)
        one = one.advance(min(steps, one.depth + max(1, one.depth // 6)))


def allowing(estimate: Estimate, logarithm: float) -> Estimate:
    """The estimate, with an error that allows for such an eigenvalue."""
    parts, xp = estimate.kept, namespace(estimate.standard_error)
    more = xp.full_like(estimate.standard_error, logarithm)
    return replace(
        estimate,
        standard_error=xp.hypot(estimate.standard_error, more),
        kept=parts._replace(quadrature=xp.hypot(parts.quadrature, more)),
    )


def conditioning(K: Any) -> str:
    """What Ritz values of B^H B say of B."""
    xp, (nodes, _) = K.operator.xp, gauss.rule(K)
    low, high = (to_number(end(nodes)).real for end in (xp.min, xp.max))
    return f"condition at least {(high / max(low, 1e-300)) ** 0.5:.2g}"


def steps_to_see_zero(K: Krylov) -> tuple[int, float, float]:
    """As Ritz values tell: steps, the least that is not resolved, and the largest."""
    nodes, _, rho = (to_host(x).ravel() for x in gauss.residuals(K, K.depth - 1))
    high = float(nodes.max())
    open_ends = nodes[(rho > RESOLVED * nodes) & (nodes < high)]
    if not open_ends.size:
        return 0, high, high
    low = float(open_ends.min())
    rate = 2 * math.acosh(1 + 2 * low / (high - low))
    n = K.operator.shape[0]
    return min(math.ceil(math.log(4 * n / CHANCE) / max(rate, 1e-9)) + MORE, n), low, high
