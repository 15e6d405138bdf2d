"""What is asked of stochastic Lanczos quadrature, and the exact answer where that is affordable."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

from .._arrays import Array, Probes, adjoint, device_of, require_hermitian, whole
from .._estimates import Estimate, checked_budget, exact, require_finite
from .._operators import LinearOperator, all_columns_cost, dense, itemsize, matvecs_per_column
from .._sketches import (
    ControlVariate,
    Rule,
    Space,
    dimension,
    hessenberg,
    lanczos,
    rules,
    sketch_cost,
)
from ..functions import Function, is_semidefinite, values
from ..probes import distributions
from ..quadrature import Arnoldi, Chebyshev, checked_interval

GIGABYTE = 2**30
PILOT = 4  # the first probes
LEAST_DEPTH = 16  # products of each that three first probes leave: two may agree by chance


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
    quadrature: Rule
    margin: float = 0.01  # of the breadth of an interval that is found for the spectrum
    shift: float | None = None  # A - shift I is positive semidefinite
    bounds: tuple[float, float] | None = None  # of the spectrum
    general: bool = False  # A is B^H B, and something is asked of B

    @property
    def is_affordable(self) -> bool:
        """Whether all eigenvalues are."""
        return is_affordable(self.A, self.budget)

    @property
    def leaves_choice(self) -> bool:
        """Whether it says nothing of how the products are to be spent."""
        return self.deflate is None and self.depth is None and self.block == 1

    def cost(self, depth: int) -> int:
        """Products that a group of probes costs."""
        return self.block * (rules.cost(self.quadrature, self.A, depth) + self.gradient_cost)

    @property
    def gradient_cost(self) -> int:
        """Products that the gradient costs for each probe."""
        return matvecs_per_column(self.A) if self.gradient else 0


class Start(NamedTuple):
    """The control variate, the first probes and their Krylov spaces."""

    cv: ControlVariate
    K: Space
    X: Array
    columns: int  # of the sketch
    spent: int  # on the sketch, and on spaces that were given up

    @property
    def groups(self) -> int:
        """Krylov spaces."""
        return self.K.groups


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
    quadrature: Any = None,
    shift: Any = None,
    general: bool = False,
    bounds: Any = None,
    hermitian: bool = True,
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
    way: Rule = Arnoldi()
    if hermitian or A.factor is not None:
        way = rules.checked(quadrature, A)
    else:
        _require_entire(f, b, columns, (quadrature, shift, bounds))
        deflate = 0
    deflate = deflate if deflate is None else columns
    if isinstance(way, Chebyshev):
        if b > 1 or columns:
            raise ValueError(
                "Chebyshev moments take neither `block` nor `deflate`; leave these out, or pass "
                "quadrature.lanczos()"
            )
        deflate = 0
    if bounds is not None:
        probes, deflate = _for_bounds(way, probes, columns, b), 0
        bounds = checked_bounds(bounds, f)
    shift = checked_shift(shift)
    request = Request(
        A, f, m, probes, b, depth, deflate, gradient, way, shift=shift, bounds=bounds,
        general=general,
    )  # fmt: skip
    rank = n if A.factor is None else A.factor.shape[1]
    if rank < n and getattr(f, "positive", False):
        raise ValueError(
            f"a matrix of dimension {n} made of a factor with {rank} columns is singular, and this "
            "function is not defined at 0; add a multiple of the identity, A + c I"
        )
    least = b * rules.cost(way, A, depth or 1) + columns * sketch_cost(A, f)
    if dimension(f, columns) > n or (m < least and not request.is_affordable):
        raise ValueError(
            f"depth={depth}, block={block} and deflate={deflate} take {least} products at least, "
            f"and num_matvecs={m} with dimension {n} do not allow that; pass smaller ones"
        )
    return request


def _require_entire(f: Function, block: int, columns: int, others: tuple[Any, ...]) -> None:
    """Refuse what Arnoldi does not have."""
    if block > 1 or columns or any(x is not None for x in others):
        raise ValueError(
            "`block`, `deflate`, `quadrature`, `shift` and `bounds` are of Hermitian operators; "
            "leave them out, or hermitian=False"
        )
    if is_semidefinite(f):
        raise ValueError(
            "a function of a non-Hermitian operator must be analytic everywhere, and this one is "
            "declared for eigenvalues of 0 or more; pass one such as tracekit.functions.exp or "
            "lambda x: x**3, or call logdet(A, m, hermitian=False) for the logarithm"
        )


def is_affordable(A: LinearOperator, num_matvecs: int) -> bool:
    """Whether all eigenvalues are."""
    cost = all_columns_cost(A)
    return num_matvecs >= cost and cost * A.shape[0] * itemsize(A) <= GIGABYTE


def _for_bounds(way: Rule, probes: Probes, columns: int, block: int) -> Probes:
    """The probes of a certified interval, which are Gaussian and not deflated."""
    if isinstance(way, Chebyshev) or columns or block > 1:
        raise ValueError(
            "`bounds` certify plain samples of Lanczos; leave out `deflate`, `block` and Chebyshev "
            "moments"
        )
    if probes not in (distributions.rademacher, distributions.normal):
        raise ValueError(
            "`bounds` certify samples of Gaussian probes; pass probes=tracekit.probes.normal, or "
            "leave `probes` out"
        )
    return distributions.normal


def checked_bounds(bounds: Any, f: Function) -> tuple[float, float]:
    """Two finite increasing numbers, for a function that says the signs of its derivatives."""
    low, high = checked_interval("bounds", bounds)
    if getattr(f, "signs", None) is None:
        raise ValueError(
            "`bounds` need a function whose derivatives have signs that are known; pass log, "
            "log1p, sqrt, inv, exp, ridge(c) or power(p), p below 1, of tracekit.functions"
        )
    if low < 0 and is_semidefinite(f):
        raise ValueError(
            f"this function is not defined on all of the bounds ({low:g}, {high:g}); pass a lower "
            "one of 0 or more"
        )
    return low, high


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


def checked_numbers(name: str, given: Any, *, zero: bool = False) -> list[float]:
    """Refuse what is no sequence of positive numbers, or of numbers of 0 or more."""
    every = list(given) if isinstance(given, Iterable) else []
    least = "0 or more" if zero else "more than 0"

    def fits(x: Any) -> bool:
        number = isinstance(x, Real) and not isinstance(x, bool)
        return number and (x >= 0 if zero else x > 0) and x < math.inf

    if not every or not all(fits(x) for x in every):
        raise ValueError(
            f"`{name}` must hold finite numbers of {least}, one at least, got {given!r}"
        )
    return [float(x) for x in every]


def exactly(request: Request, method: str) -> Estimate:
    """By all eigenvalues."""
    if isinstance(request.quadrature, Arnoldi):
        return _of_all_columns(request, method)
    y = values(request.f, eigenvalues(request.A), squared=request.A.factor is not None)
    return exact(request.A.xp.sum(y, axis=-1), all_columns_cost(request.A), method)


def _of_all_columns(request: Request, method: str) -> Estimate:
    """Of an operator that is not Hermitian."""
    D = dense(request.A)
    require_finite(D)
    value, known = hessenberg.trace(request.f, D, request.A)
    found = exact(value, request.A.shape[0], method)
    if known:
        return found
    error = found.standard_error + math.inf
    return replace(found, standard_error=error, converged=False, reason=hessenberg.ILL)


def eigenvalues(A: LinearOperator) -> Array:
    """All of them: of A, or of the smaller Gram matrix of its factor."""
    xp, n, cost, L = A.xp, A.shape[0], all_columns_cost(A), A.factor
    D = dense(A if L is None else L if L.shape[1] <= n else L.H)
    D = whole(D) if L is None else D  # n products were paid for: n is small
    require_finite(D)
    if L is None:
        require_hermitian(D, lanczos.REMEDY)
        return xp.linalg.eigvalsh((D + adjoint(D)) / 2)
    s = xp.linalg.svdvals(D)
    zeros = xp.zeros((n - cost,), dtype=s.dtype, device=device_of(s))
    return xp.concat([s * s, zeros])
