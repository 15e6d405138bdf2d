"""Products of two operators with the same probes: sketches that grow, samples, and exact sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    Rng,
    coldot,
    colnorm2,
    conj,
    magnitude,
    namespace,
    norm2,
    positive,
    real,
)
from .._arrays import inner as inner_products
from .._estimates import Estimate, few, require_finite
from .._operators import (
    LinearOperator,
    as_operator,
    common_dtype,
    dense,
    each_column,
    known_cost,
    matvecs_per_column,
)
from .._runs import Callback, Run
from .._sketches import FactorSketch, factor_sketch, moments, orthonormal_extension
from ..probes import distributions
from .known import Way, cheapest, known_matrix, known_way, knows
from .moment_samples import INFLATION
from .sketches import beside, triangle


class Pairs(NamedTuple):
    """Samples of <A, B>, |A|^2 and |B|^2 by the same probes, in units of the scales."""

    cross: Array
    first: Array
    second: Array
    scales: tuple[Array, Array]
    spent: int
    inflation: float  # of the spread
    dtype: Any
    reason: str = ""


class Forms(NamedTuple):
    """Products of independent probes: what is read of them."""

    cross: Array
    first: Array
    second: Array
    scales: tuple[Array, Array]

    def grown(self, A: LinearOperator, B: LinearOperator, Omega: Array) -> Forms:
        """With more probes."""
        more = _forms(A, B, Omega, self.scales)
        both = zip(self[:3], more[:3], strict=True)
        cross, first, second = (beside(old, new) for old, new in both)
        return Forms(cross, first, second, self.scales)

    def samples(self, each: int, dtype: Any) -> Pairs:
        """One of each probe."""
        m = self.cross.shape[0]
        return Pairs(*self, m * each, few(m), dtype)


class Shared(NamedTuple):
    """A range ``Q R`` of the sum of both sketches, each over its largest entry, and both on it.

    The range depends on these weights, so that they are no constants to differentiation.
    """

    Omega: Array
    Q: Array
    R: Array
    first: tuple[Array, Array]  # A Omega and A Q
    second: tuple[Array, Array]
    weights: tuple[Array, Array]
    scales: tuple[Array, Array]

    def grown(self, A: LinearOperator, B: LinearOperator, Omega: Array) -> Shared:
        """With more probes: the range by block Gram-Schmidt."""
        Y1, Y2, _ = _products(A, B, Omega, self.scales)
        Y = Y1 / self.weights[0] + Y2 / self.weights[1]
        Q, R, upper = orthonormal_extension(Y, Omega, self.Q)
        Z1, Z2, _ = _products(A, B, Q, self.scales)
        R = triangle(self.R, upper, R)
        first, second = (
            (beside(old[0], Y), beside(old[1], Z))
            for old, Y, Z in ((self.first, Y1, Z1), (self.second, Y2, Z2))
        )
        Omega, Q = beside(self.Omega, Omega), beside(self.Q, Q)
        return Shared(Omega, Q, R, first, second, self.weights, self.scales)

    def samples(self, each: int, dtype: Any) -> Pairs:
        """Leave-one-out samples."""
        A, B, b = self.first, self.second, self.Q.shape[1]
        cross, one, two = (
            moments.shared(self.Omega, self.Q, self.R, *pair) for pair in ((A, B), (A, A), (B, B))
        )
        return Pairs(cross, real(one), real(two), self.scales, b * each, INFLATION, dtype)


class Nystrom(NamedTuple):
    """Both deflated by their own Nystrom approximations: b columns through each L and L^H."""

    first: FactorSketch
    second: FactorSketch

    def grown(self, A: LinearOperator, B: LinearOperator, Omega: Array) -> Nystrom:
        """With more probes."""
        return Nystrom(*(
            factor_sketch(X.factor, Omega, None, sketch)  # type: ignore[arg-type]
            for X, sketch in ((A, self.first), (B, self.second))
        ))  # fmt: skip

    def samples(self, each: int, dtype: Any) -> Pairs:
        """Leave-one-out samples."""
        X, Y = self
        cross, one, two = (
            moments.nystrom_pairs(X.Omega, (S.Z, S.R), (T.Z, T.R))
            for S, T in ((X, Y), (X, X), (Y, Y))
        )
        spent = each * X.num_probes
        return Pairs(cross, one, two, (X.unit, Y.unit), spent, INFLATION, dtype)


def pairs_run(
    A: Any,
    B: Any,
    num_matvecs: Any,
    rng: Rng,
    rtol: float,
    atol: float,
    callback: Callback | None,
    checkpoint: str | Path | None,
) -> Run:
    """The call, if the operators fit."""
    A, B = as_operator(A), as_operator(B)
    if A.shape != B.shape:
        raise ValueError(f"operators of shapes {A.shape} and {B.shape} have no inner product")
    like = A if A.dtype == common_dtype(A, B) else B  # what probes are drawn for
    run = Run.of((like, A, B), num_matvecs, rng, rtol, atol, callback, checkpoint)
    each = matvecs_per_column(A) + matvecs_per_column(B)
    if run.budget < each:
        raise ValueError(
            f"num_matvecs={num_matvecs} is too few for one probe of both; pass at least {each}"
        )
    return run


def spend_on_pairs(run: Run, read: Callable[[Pairs], Estimate]) -> Estimate:
    """Spend products on the sketch that suits both, and read a number of it."""
    _, A, B = run.operators
    dtype = common_dtype(A, B)
    way = _exact_way(A, B, dtype)
    told = f"exact from {way.cost} products on" if way.reason else ""
    begin, each = _sketching(run, A, B, way.cost)

    def extend(state: Any, k: int) -> Any:
        Omega = run.draw(distributions.sphere, k, A.shape[1])
        return begin(A, B, Omega) if state is None else state.grown(A, B, Omega)

    found: Estimate = run.spend(
        extend,
        lambda state: read(state.samples(each, dtype)._replace(reason=told)),
        each,
        cost=way.cost,
        exact=lambda: read(way.run()._replace(reason=way.reason)),
    )
    return found


def _sketching(run: Run, A: LinearOperator, B: LinearOperator, cost: int) -> tuple[Any, int]:
    """The way to begin, and the products of a probe; a run that goes on stays with its own."""
    each, kind = matvecs_per_column(A) + matvecs_per_column(B), type(run.state)
    thin = 0  # columns that sketches of both factors can have
    if A.factor is not None and B.factor is not None:
        thin = min(A.factor.shape[1], B.factor.shape[1])
    enough = 4 * thin >= min(run.budget, cost - 1) or not run.looks
    if kind is Nystrom or (not run.begun and thin >= 3 and run.budget >= 12 and enough):
        if run.begun or run.budget < cost:
            run.budget = min(run.budget, 4 * thin)
        return _nystrom, 4
    few = not run.begun and (A.shape[0] != A.shape[1] or run.is_short(2 * each, cost))
    return (_forms, each) if few or kind is Forms else (_shared, 2 * each)


def _forms(A: LinearOperator, B: LinearOperator, Omega: Array, scales: Any = None) -> Forms:
    Y1, Y2, scales = _products(A, B, Omega, scales)
    return Forms(coldot(Y1, Y2), colnorm2(Y1), colnorm2(Y2), scales)


def _shared(A: LinearOperator, B: LinearOperator, Omega: Array) -> Shared:
    Y1, Y2, scales = _products(A, B, Omega)
    xp = namespace(Y1)
    weights = positive(xp.max(xp.abs(Y1))), positive(xp.max(xp.abs(Y2)))
    Q, R, _ = orthonormal_extension(Y1 / weights[0] + Y2 / weights[1], Omega)
    Z1, Z2, _ = _products(A, B, Q, scales)
    return Shared(Omega, Q, R, (Y1, Z1), (Y2, Z2), weights, scales)


def _nystrom(A: LinearOperator, B: LinearOperator, Omega: Array) -> Nystrom:
    first, second = (factor_sketch(X.factor, Omega) for X in (A, B))  # type: ignore[arg-type]
    return Nystrom(first, second)


def _products(
    A: LinearOperator, B: LinearOperator, X: Array, scales: Any = None
) -> tuple[Array, Array, Any]:
    return _scaled(A.matmat(X), B.matmat(X), scales)


def _scaled(Y1: Array, Y2: Array, scales: Any = None) -> tuple[Array, Array, tuple[Array, Array]]:
    for Y in (Y1, Y2):
        require_finite(Y, "alignment", columns=Y)
    scales = (magnitude(Y1), magnitude(Y2)) if scales is None else scales
    return Y1 / scales[0], Y2 / scales[1], scales


def _exact_way(A: LinearOperator, B: LinearOperator, dtype: Any) -> Way:
    """By all entries where both know theirs, by all columns of both factors, or of both."""
    ways = []
    if knows(A, "matrix") and knows(B, "matrix"):
        ways.append(known_way(partial(_matrix_pairs, A, B, dtype), (A, "matrix"), (B, "matrix")))
    if A.factor is not None and B.factor is not None:
        L1, L2 = A.factor, B.factor
        spent = min(2 * L1.shape[0], L1.shape[1] + L2.shape[1])
        ways.append(Way(spent, partial(_exact_factor_pairs, L1, L2, dtype)))
    spent = A.shape[1] * (matvecs_per_column(A) + matvecs_per_column(B))
    return cheapest([*ways, Way(spent, partial(_exact_pairs, A, B, dtype))])


def _exact_factor_pairs(L1: LinearOperator, L2: LinearOperator, dtype: Any) -> Pairs:
    """From Gram matrices of all columns of the adjoints, or of the factors if these are fewer."""
    tall = L1.shape[1] + L2.shape[1] < 2 * L1.shape[0]
    G1, G2 = (dense(L if tall else L.H) for L in (L1, L2))
    G1, G2, scales = _scaled(G1, G2)
    grams = [inner_products(X, Y) for X, Y in ((G1, G1), (G2, G2))]
    both = inner_products(G1, G2) if tall else grams[0]
    cross = real(conj(both) * (both if tall else grams[1]))
    total = L1.xp.sum
    spent = G1.shape[1] + G2.shape[1]
    first, second = (norm2(K)[None] for K in grams)
    units = scales[0] * scales[0], scales[1] * scales[1]
    return Pairs(total(cross)[None], first, second, units, spent, 0.0, dtype)


def _matrix_pairs(A: LinearOperator, B: LinearOperator, dtype: Any) -> Pairs:
    spent = known_cost(A, "matrix") + known_cost(B, "matrix")
    return _pairs_of_blocks([(known_matrix(A), known_matrix(B))], spent, dtype)


def _exact_pairs(A: LinearOperator, B: LinearOperator, dtype: Any) -> Pairs:
    blocks = zip(each_column(A), each_column(B), strict=True)
    spent = A.shape[1] * (matvecs_per_column(A) + matvecs_per_column(B))
    return _pairs_of_blocks(((Y1, Y2) for (_, Y1), (_, Y2) in blocks), spent, dtype)


def _pairs_of_blocks(blocks: Iterable[tuple[Array, Array]], spent: int, dtype: Any) -> Pairs:
    """Of blocks of columns of both, each in units of its own magnitudes."""
    sums: list[Any] = []
    units: list[Any] = []
    for Y1, Y2 in blocks:
        xp = namespace(Y1)
        Z1, Z2, scales = _scaled(Y1, Y2)
        sums.append([xp.sum(coldot(X, Y)) for X, Y in ((Z1, Z2), (Z1, Z1), (Z2, Z2))])
        units.append(scales)
    top1, top2 = (xp.max(xp.stack([pair[which] for pair in units])) for which in (0, 1))
    cross = sum(x * (u / top1) * (v / top2) for (x, _, _), (u, v) in zip(sums, units, strict=True))
    first = sum(a * (u / top1) ** 2 for (_, a, _), (u, _) in zip(sums, units, strict=True))
    second = sum(b * (v / top2) ** 2 for (_, _, b), (_, v) in zip(sums, units, strict=True))
    samples = cross[None], real(first)[None], real(second)[None]
    return Pairs(*samples, (top1, top2), spent, 0.0, dtype)
