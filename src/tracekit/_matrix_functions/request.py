"""What is asked of stochastic Lanczos quadrature, and the exact answer where that is affordable."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .._arrays import Probes, adjoint, device_of, is_complex, require_hermitian
from .._estimates import Estimate, checked_budget, exact, require_finite
from .._operators import LinearOperator, all_columns_cost, dense, matvecs_per_column
from .._sketches import lanczos
from ..functions import Function, values
from ..probes import distributions
from .deflation import cost as sketch_cost
from .deflation import dimension

GIGABYTE = 2**30


class Request(NamedTuple):
    """What is asked for."""

    A: LinearOperator
    f: Function
    budget: int
    probes: Probes
    block: int
    depth: int | None
    deflate: int | None
    gradient: bool  # whether a gradient may be asked for, which is made of solves
    shift: float | None = None  # A - shift I is positive semidefinite

    @property
    def itemsize(self) -> int:
        """Bytes of an entry."""
        return int(self.A.xp.finfo(self.A.dtype).bits) // 8 * (2 if is_complex(self.A) else 1)

    @property
    def is_affordable(self) -> bool:
        """Whether all eigenvalues are."""
        cost = all_columns_cost(self.A)
        return self.budget >= cost and cost * self.A.shape[0] * self.itemsize <= GIGABYTE

    @property
    def leaves_choice(self) -> bool:
        """Whether it says nothing of how the products are to be spent."""
        return self.deflate is None and self.depth is None and self.block == 1

    def cost(self, depth: int) -> int:
        """Products that a group of probes costs."""
        return self.block * (lanczos.cost(self.A, depth) + self.gradient_cost)

    @property
    def gradient_cost(self) -> int:
        """Products that the gradient costs for each probe."""
        return matvecs_per_column(self.A) if self.gradient else 0


def requested(
    A: LinearOperator,
    f: Function,
    num_matvecs: Any,
    *,
    probes: Probes = distributions.rademacher,
    depth: Any = None,
    block: Any = 1,
    deflate: Any = None,
    gradient: bool = False,
    shift: Any = None,
) -> Request:
    """What is asked for, if it can be done."""
    if not callable(f):
        raise TypeError(
            f"f is {f!r}, not a function; pass one of an array of eigenvalues, such as "
            "tracekit.functions.log"
        )
    m, n, b = checked_budget(num_matvecs), A.shape[0], checked_budget(block, "block")
    depth = None if depth is None else min(checked_budget(depth, "depth"), -(-n // b))
    columns = 0 if deflate in (None, 0) else checked_budget(deflate, "deflate")
    columns_wanted = deflate if deflate is None else columns
    request = Request(A, f, m, probes, b, depth, columns_wanted, gradient, checked_shift(shift))
    rank = n if A.factor is None else A.factor.shape[1]
    if rank < n and getattr(f, "positive", False):
        raise ValueError(
            f"a matrix of dimension {n} made of a factor with {rank} columns is singular, and this "
            "function is not defined at 0; add a multiple of the identity, A + c I"
        )
    least = b * lanczos.cost(A, depth or 1) + columns * sketch_cost(A, f)
    if dimension(f, columns) > n or (m < least and not request.is_affordable):
        raise ValueError(
            f"depth={depth}, block={block} and deflate={deflate} take {least} products at least, "
            f"and num_matvecs={m} with dimension {n} do not allow that; pass smaller ones"
        )
    return request


def checked_shift(shift: Any) -> float | None:
    """Refuse a shift that is no number of 0 or more."""
    if shift is None:
        return None
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 <= shift < math.inf:
        raise ValueError(
            f"`shift` must be a number of 0 or more, got {shift!r}; pass one such that A - shift I "
            "is positive semidefinite"
        )
    return float(shift)


def exactly(request: Request, method: str) -> Estimate:
    """By all eigenvalues: of A, or of the smaller Gram matrix of its factor."""
    A, L = request.A, request.A.factor
    xp, n, cost = A.xp, A.shape[0], all_columns_cost(A)
    D = dense(A if L is None else L if L.shape[1] <= n else L.H)
    require_finite(D)
    if L is None:
        require_hermitian(D, lanczos.REMEDY)
        x = xp.linalg.eigvalsh((D + adjoint(D)) / 2)
    else:
        s = xp.linalg.svdvals(D)
        zeros = xp.zeros((n - cost,), dtype=s.dtype, device=device_of(s))
        x = xp.concat([s * s, zeros])
    y = values(request.f, x, squared=L is not None)
    return exact(xp.sum(y, axis=-1), cost, method)
