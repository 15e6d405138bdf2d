"""The ways to integrate f over the spectrum that a probe sees: Lanczos, Chebyshev, Arnoldi."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from .._arrays import Array, is_traced, namespace
from .._operators import LinearOperator, itemsize
from ..quadrature import Arnoldi, Chebyshev, Lanczos
from . import arnoldi, chebyshev, gauss, hessenberg, lanczos
from .chebyshev import OutsideError, Space
from .lanczos import Krylov

Quadrature: TypeAlias = Lanczos | Chebyshev
Rule: TypeAlias = Quadrature | Arnoldi
COLUMNS, MEGABYTES = 64, 256  # bases are kept where so many columns take no more than that
WIDER = (0.01, 0.1, 1.0)  # of its breadth, by which an interval that is found is widened
Found = TypeVar("Found")


def checked(quadrature: Any, A: LinearOperator) -> Quadrature:
    """How to integrate, where it was chosen; with bases, where they fit, if it was not."""
    if quadrature is None:
        quadrature = Lanczos()
    if not isinstance(quadrature, Lanczos | Chebyshev):
        raise TypeError(
            f"`quadrature` must come from tracekit.quadrature, got {quadrature!r}; pass "
            "quadrature.lanczos() or quadrature.chebyshev()"
        )
    if isinstance(quadrature, Lanczos) and quadrature.reorthogonalise is None:
        fits = COLUMNS * A.shape[0] * itemsize(A) <= MEGABYTES * 2**20
        return Lanczos(reorthogonalise=fits)
    return quadrature


def of_a_run(quadrature: Any, A: LinearOperator, observed: bool) -> Quadrature:
    """How a run integrates that may grow, and may have an observable."""
    way = (
        Lanczos(reorthogonalise=True) if observed and quadrature is None else checked(quadrature, A)
    )
    if observed and way != Lanczos(reorthogonalise=True):
        raise ValueError(
            "an observable is compressed to the bases, which this quadrature does not keep; pass "
            "quadrature.lanczos(reorthogonalise=True)"
        )
    if needs_interval(way):
        raise ValueError(
            "the moments of a run have one interval, however it grows; pass "
            "quadrature.chebyshev(interval=(low, high))"
        )
    return way


def begin(quadrature: Rule, A: LinearOperator, X: Array, block: int = 1) -> Space:
    """The spaces, or moments, of the columns of X before the first product."""
    if isinstance(quadrature, Lanczos):
        return lanczos.begin(A, X, block, reorthogonalise=bool(quadrature.reorthogonalise))
    if isinstance(quadrature, Arnoldi):
        return arnoldi.begin(A, X)
    assert quadrature.interval is not None
    return chebyshev.begin(A, X, quadrature.interval)


def cost(quadrature: Rule, A: LinearOperator, depth: int) -> int:
    """Products that so many steps cost for each probe."""
    if isinstance(quadrature, Lanczos):
        return lanczos.cost(A, depth)
    if isinstance(quadrature, Arnoldi):
        return depth
    return chebyshev.cost(A, depth)


def samples(K: Space, depth: int, f: Callable[[Array], Array]) -> Array:
    """``x^H f(A) x`` of every probe, by so many steps."""
    if isinstance(K, Krylov):
        return gauss.samples(K, depth, f)
    if isinstance(K, arnoldi.Arnoldi):
        return hessenberg.samples(f, K, depth)
    nodes, weights = chebyshev.rule(K, depth)
    return namespace(nodes).sum(f(nodes) * weights, axis=-1)


def with_interval(
    quadrature: Rule,
    A: LinearOperator,
    X: Array,
    budget: int,
    *,
    semidefinite: bool,
    margin: float,
) -> tuple[Rule, int]:
    """The same with an interval that holds the spectrum, and what it cost to find that."""
    if not isinstance(quadrature, Chebyshev) or quadrature.interval is not None:
        return quadrature, 0
    if is_traced(X):
        raise TypeError(
            "bounds of the spectrum cannot be found in compiled code; pass "
            "quadrature.chebyshev(interval=(low, high))"
        )
    few = min(2, X.shape[1])
    each = max(few * lanczos.cost(A, 1), 1)
    steps = max(2, min(chebyshev.BOUND_STEPS, budget // (6 * each), A.shape[0]) - 1)
    low, high, least = chebyshev.bounds(A, X[:, :few], steps, margin)
    if semidefinite and least >= 0:
        low = max(low, 0.0)
    return Chebyshev((low, high)), few * lanczos.cost(A, steps + 1)


def needs_interval(quadrature: Rule) -> bool:
    """Whether bounds of the spectrum have to be found."""
    return isinstance(quadrature, Chebyshev) and quadrature.interval is None


def widened(quadrature: Rule, found: Callable[[float], Found]) -> Found:
    """What is found by a margin, begun again where an interval that was found is too narrow."""
    for margin in WIDER[:-1] if needs_interval(quadrature) else ():
        with suppress(OutsideError):
            return found(margin)
    return found(WIDER[-1])
