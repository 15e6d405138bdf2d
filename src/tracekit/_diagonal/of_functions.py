"""Diagonals and partial traces of f(A), f(A) on probes by Lanczos, and the error of its depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    abs2,
    adjoint,
    device_of,
    eps_of,
    is_traced,
    namespace,
    require_hermitian,
)
from .._estimates import checked_budget, require_finite
from .._operators import LinearOperator, blocks, columns_that_fit, dense, itemsize
from .._sketches import Krylov, gauss, lanczos
from ..functions import Function, values
from ..probes import Source, distributions

LEAST_DEPTH, BREADTH = 6, 1.5  # of a depth, and over the root of the products
SAFETY, SLOWEST = 2.5, 0.9  # as of traces of functions
ROUNDING = 50  # in units of eps: below that changes are rounding
SHARE = 0.1  # of the whole, an error that tells that the depth is not enough
NOT_SETTLED = "f(A) has not settled at this depth, so the error is not known; pass more"


class Plan(NamedTuple):
    """How products are spent: on so many probes of one depth."""

    depth: int
    probes: int
    num_matvecs: int

    @classmethod
    def of(cls, A: LinearOperator, m: int, depth: Any) -> Plan:
        """For a budget, and a depth if that is given."""
        if depth is None:
            most = m if A.factor is None else (m + 1) // 2
            depth = min(max(LEAST_DEPTH, round(BREADTH * math.sqrt(m))), most)
        depth = min(checked_budget(depth, "depth"), A.shape[0])
        each = lanczos.cost(A, depth)
        if each > m:
            raise ValueError(
                f"num_matvecs={m} does not pay for one probe of depth {depth}, which takes {each}; "
                "pass more, or a smaller depth"
            )
        return cls(depth, m // each, m // each * each)

    @property
    def depths(self) -> list[int]:
        """Its depth, and up to two lesser ones that it is compared with."""
        step = max(1, self.depth // 4)
        return [d for d in (self.depth, self.depth - step, self.depth - 2 * step) if d >= 1]


def spaces(
    A: LinearOperator, probes: Any, source: Source, plan: Plan
) -> Iterator[tuple[Array, Krylov]]:
    """The probes and their Krylov spaces, as many at a time as fit."""
    take = distributions.stream(probes, source, A.shape[0], plan.probes)
    for count in blocks(
        plan.probes, columns_that_fit(A.shape[0], itemsize(A) * (plan.depth + 2), None)
    ):
        X = take(count)
        yield X, lanczos.begin(A, X).advance(plan.depth)


def applied(K: Krylov, f: Function, depths: Sequence[int]) -> list[Array]:
    """``f(A) X`` by so many steps, for each of several depths."""

    def at(x: Array) -> Array:
        return values(f, x, squared=K.operator.factor is not None)

    return [gauss.applied(K.shortened(d), at) for d in depths]


def depth_error(found: Sequence[Array]) -> tuple[Array, bool]:
    """The error that a depth leaves in each entry, and whether it is small against the whole.

    From the value at that depth and at up to two lesser ones: the changes of the norm are carried
    on geometrically, and no entry has less than its share; where that is not small, nor less than
    its value.
    """
    xp, size = namespace(found[0]), _norm(found[0])
    if len(found) < 3:
        return xp.abs(found[0]) * 0 + math.inf, False
    changes = [xp.abs(a - b) for a, b in pairwise(found)]
    last, before = (_norm(x) for x in changes)
    ratio = last / xp.where(before > 0, before, xp.ones_like(before))
    slow = xp.clip(ratio, 0.0, SLOWEST)
    factor = xp.where(ratio < 1, SAFETY * slow / (1 - slow), xp.full_like(ratio, math.inf))
    rounding = last <= ROUNDING * eps_of(last) * size
    factor = xp.where(rounding, xp.ones_like(factor), factor)
    share = math.prod(found[0].shape) ** -0.5
    error = xp.maximum(changes[0], last * share) * factor
    if is_traced(size) or bool(factor * last <= SHARE * size):
        return error, True
    return xp.hypot(error, xp.maximum(xp.abs(found[0]), size * share)), False


def eigenpairs(A: LinearOperator) -> tuple[Array, Array]:
    """All of them, by all products or those of a narrow factor, whose other eigenvalues are 0."""
    xp, L, n = A.xp, A.factor, A.shape[0]
    D = dense(A if L is None else L if L.shape[1] <= n else L.H)
    require_finite(D)
    if L is None:
        require_hermitian(D, lanczos.REMEDY)
        x, U = xp.linalg.eigh((D + adjoint(D)) / 2)
        return x, U
    U, s, _ = xp.linalg.svd(D if L.shape[1] <= n else adjoint(D), full_matrices=True)
    return xp.concat([s * s, xp.zeros((n - s.shape[0],), dtype=s.dtype, device=device_of(s))]), U


def _norm(X: Array) -> Array:
    xp = namespace(X)
    return xp.sqrt(xp.sum(abs2(X)))
