"""The cheapest exact way to norms and inner products: by all columns, or as they are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from .._arrays import Array, magnitude, matrix_trace, norm2
from .._estimates import Estimate, require_finite
from .._operators import LinearOperator, exact_norm_cost, known_cost
from .moment_samples import exact_moments


class Way(NamedTuple):
    """An exact way: the products that it costs, what it gives, and why it is taken, if known."""

    cost: int
    run: Callable[[], Any]
    reason: str = ""

    def missed(self, estimate: Estimate) -> Estimate:
        """An estimate of fewer products, which says how many would have been enough."""
        if not self.reason:
            return estimate
        return replace(estimate, reason=f"exact from {self.cost} products on")


def cheapest(ways: list[Way]) -> Way:
    """The way of fewest products; the first of these."""
    return min(ways, key=lambda way: way.cost)


def moments_way(A: LinearOperator, *, norm_only: bool = False) -> Way:
    """To trace and squared norm in units of a scale and its square, and the scale."""
    ways = []
    if norm_only and knows(A, "norm"):
        ways.append(known_way(partial(_moments_of_norm, A), (A, "norm")))
    if knows(A, "matrix"):
        ways.append(known_way(partial(_moments_of_matrix, A), (A, "matrix")))
    if knows(A, "trace") and knows(A, "norm") and not norm_only:
        ways.append(known_way(partial(_moments_of_norm, A, trace=True), (A, "norm"), (A, "trace")))
    return cheapest([*ways, Way(exact_norm_cost(A), partial(exact_moments, A))])


def known_way(run: Callable[[], Any], *asked: tuple[LinearOperator, str]) -> Way:
    """What some quantities that are known in closed form cost together, and their names."""
    cost = sum(known_cost(A, what) for A, what in asked)
    known = (A.exact[what] for A, what in asked if A.exact)
    names = dict.fromkeys(str(getattr(one, "method", "closed form")) for one in known)
    told = f"exact by {' and '.join(names)} for {cost} products"
    return Way(cost, run, told if cost else "known in closed form")


def knows(A: LinearOperator, what: str) -> bool:
    """Whether a quantity is known in closed form."""
    return A.exact is not None and what in A.exact


def known_matrix(A: LinearOperator) -> Array:
    """All of an operator that is known as a matrix, in its dtype."""
    M = A.xp.astype(A.exact["matrix"](), A.dtype, copy=False)  # type: ignore[index]
    require_finite(M, "norm", columns=M)
    return M


def _moments_of_matrix(A: LinearOperator) -> tuple[Array, Array, Array]:
    M = known_matrix(A)
    scale = magnitude(M)
    M = M / scale
    f = norm2(M)
    return matrix_trace(M) if A.shape[0] == A.shape[1] else f, f, scale


def _moments_of_norm(A: LinearOperator, *, trace: bool = False) -> tuple[Array, Array, Array]:
    norm = A.exact["norm"]()  # type: ignore[index]
    require_finite(norm, "norm")
    scale = magnitude(norm)
    root = norm / scale
    t = A.exact["trace"]() / scale if trace else root  # type: ignore[index]
    return t, root * root, scale
