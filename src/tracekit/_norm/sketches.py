"""Products spent on trace and squared norm: sketches that grow by probes, repeating no product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    adjoint,
    check_adjoint,
    coldot,
    colnorm2,
    eps_of,
    inner,
    is_hermitian,
    magnitude,
    namespace,
    orthonormalise,
    real,
    triangular_dual,
)
from .._estimates import require_finite
from .._operators import LinearOperator
from .._runs import Run
from .._sketches import leave_one_out, moments, orthonormal_extension
from ..probes import distributions
from .moment_samples import MomentSamples

Extend = Callable[[Any, int], Any]


class Independent(NamedTuple):
    """Forms and squared norms of products with probes, one a probe."""

    traces: Array | None
    squares: Array
    scale: Array

    def grown(self, A: LinearOperator, Omega: Array) -> Independent:
        """With more probes."""
        more = independent(A, Omega, self.scale)
        traces = None if self.traces is None else beside(self.traces, more.traces)
        return Independent(traces, beside(self.squares, more.squares), self.scale)

    def samples(self, A: LinearOperator) -> MomentSamples:
        """One of each probe."""
        return MomentSamples(self.traces, self.squares, self.scale, self.squares.shape[0], False)


class Range(NamedTuple):
    """``Y = A Omega = Q R`` and ``Z = A Q`` of any square A: two products a probe."""

    Omega: Array
    Q: Array
    R: Array
    Y: Array
    Z: Array
    scale: Array

    def grown(self, A: LinearOperator, Omega: Array) -> Range:
        """With more probes: the range by block Gram-Schmidt."""
        Y = _finite(A.matmat(Omega)) / self.scale
        Q, R, upper = orthonormal_extension(Y, Omega, self.Q)
        Z = _finite(A.matmat(Q)) / self.scale
        R = triangle(self.R, upper, R)
        both = zip((self.Omega, self.Q, self.Y, self.Z), (Omega, Q, Y, Z), strict=True)
        Omega, Q, Y, Z = (beside(old, new) for old, new in both)
        return Range(Omega, Q, R, Y, Z, self.scale)

    def samples(self, A: LinearOperator) -> MomentSamples:
        """Leave-one-out samples of both."""
        Omega, Q, R, Y, Z, scale = self
        traces, left_out = leave_one_out.xtrace(Omega, Q, R, Z, resphere=True)
        squares = real(moments.shared(Omega, Q, R, (Y, Z), (Y, Z)))
        return MomentSamples(traces, squares, scale, 2 * Q.shape[1], True, (left_out, None))


class TwoSided(NamedTuple):
    """``A Omega = Q R`` and ``F = A^H Q`` of an A of any shape: a product each way a probe."""

    Omega: Array
    Q: Array
    R: Array
    F: Array
    scale: Array

    def grown(self, A: LinearOperator, Omega: Array) -> TwoSided:
        """With more probes: the range by block Gram-Schmidt."""
        Y = _finite(A.matmat(Omega)) / self.scale
        jitter = Omega if A.shape[0] == A.shape[1] else None
        Q, R, upper = orthonormal_extension(Y, jitter, self.Q)
        F = _finite(A.rmatmat(Q)) / self.scale  # type: ignore[misc]
        R = triangle(self.R, upper, R)
        both = zip((self.Omega, self.Q, self.F), (Omega, Q, F), strict=True)
        Omega, Q, F = (beside(old, new) for old, new in both)
        check_adjoint(inner(F, Omega), R)
        return TwoSided(Omega, Q, R, F, self.scale)

    def samples(self, A: LinearOperator) -> MomentSamples:
        """Of the trace of A^H A: its Nystrom approximation is ``F F^H``."""
        Omega, F, dual = self.Omega, self.F, triangular_dual(self.R)
        inverse = A.xp.linalg.inv(inner(Omega, Omega))
        squares, left_out = leave_one_out.nystrom(inner(F, F), dual, A.shape[1], inverse)
        spent = 2 * Omega.shape[1]
        return MomentSamples(None, squares, self.scale, spent, True, (None, left_out))


class Krylov(NamedTuple):
    """``Z = A Q`` of a Hermitian A: two products a probe.

    Q is an orthonormal basis of pairs of blocks, probes and their products, each beyond all before;
    C has the coordinates of these, and the pairs are of these widths.
    """

    Q: Array
    Z: Array
    C: Array
    scale: Array
    widths: list[int]

    def grown(self, A: LinearOperator, Omega: Array) -> Krylov:
        """With more probes: a block of them beyond the basis, and what A makes of them."""
        Q0, R0, across = orthonormal_extension(Omega, None, self.Q)
        Z0 = _finite(A.matmat(Q0)) / self.scale
        Y = self.Z @ across + Z0 @ R0  # A Omega
        Q1, C = _second_block(Omega, Y, beside(self.Q, Q0), triangle(self.C, across, R0))
        Z1 = _finite(A.matmat(Q1)) / self.scale
        Q, Z = (A.xp.concat(x, axis=1) for x in ([self.Q, Q0, Q1], [self.Z, Z0, Z1]))
        return Krylov(Q, Z, C, self.scale, [*self.widths, Omega.shape[1]])

    def samples(self, A: LinearOperator) -> MomentSamples:
        """Leave-one-out samples of both."""
        spent = 2 * sum(self.widths)
        return _krylov(inner(self.Q, self.Z), self.C, self.widths, self.scale, spent, A.shape[0])


class FactorKrylov(NamedTuple):
    """``G = L^H Q`` of ``A = L L^H``, Q and C as in `Krylov`.

    A probe costs two columns through L^H and one through L.
    """

    Q: Array
    G: Array
    C: Array
    scale: Array
    widths: list[int]

    def grown(self, A: LinearOperator, Omega: Array) -> FactorKrylov:
        """With more probes: a block of them beyond the basis, and what A makes of them."""
        L: LinearOperator = A.factor  # type: ignore[assignment]
        Q0, R0, across = orthonormal_extension(Omega, None, self.Q)
        G0 = _finite(L.H.matmat(Q0)) / self.scale
        Y = _finite(L.matmat(self.G @ across + G0 @ R0)) / self.scale  # A Omega
        Q1, C = _second_block(Omega, Y, beside(self.Q, Q0), triangle(self.C, across, R0))
        G1 = _finite(L.H.matmat(Q1)) / self.scale
        Q, G = (A.xp.concat(x, axis=1) for x in ([self.Q, Q0, Q1], [self.G, G0, G1]))
        return FactorKrylov(Q, G, C, self.scale, [*self.widths, Omega.shape[1]])

    def samples(self, A: LinearOperator) -> MomentSamples:
        """Leave-one-out samples of both."""
        H, spent = inner(self.G, self.G), 3 * sum(self.widths)
        return _krylov(H, self.C, self.widths, self.scale * self.scale, spent, A.shape[0])


def sketching(run: Run, cost: float, *, norm_only: bool = False) -> tuple[Extend, int]:
    """What spends probes on the sketch that suits an operator, and the products each costs.

    The first probes show whether a square operator is Hermitian.
    """
    A = run.A
    square, price = A.shape[0] == A.shape[1], 2 if A.factor is None else 3
    one_way = not square and A.rmatmat is None
    few = isinstance(run.state, Independent) or one_way or run.is_short(price, cost)

    def begin(Omega: Array) -> Any:
        if few:
            return independent(A, Omega)
        if A.factor is not None:
            return _factor_krylov(A.factor, Omega)
        return _of_any(A, Omega, norm_only) if square else _rectangular(A, Omega)

    def extend(state: Any, k: int) -> Any:
        Omega = run.draw(distributions.sphere, k, A.shape[1])
        return begin(Omega) if state is None else state.grown(A, Omega)

    return extend, 1 if few else price


def independent(A: LinearOperator, Omega: Array, scale: Array | None = None) -> Independent:
    """One product with each probe."""
    Y = _finite(A.matmat(Omega))
    scale = magnitude(Y) if scale is None else scale
    traces = coldot(Omega, Y / scale) if A.shape[0] == A.shape[1] else None
    return Independent(traces, colnorm2(Y / scale), scale)


def _of_any(A: LinearOperator, Omega: Array, norm_only: bool) -> Krylov | TwoSided | Range:
    """By what the products with a basis of the probes show of a square A."""
    Q0, R0 = orthonormalise(Omega)
    Z0 = _finite(A.matmat(Q0))
    scale = magnitude(Z0)
    Z0 = Z0 / scale
    Y = Z0 @ R0
    if is_hermitian(inner(Q0, Z0)):
        Q1, C = _second_block(Omega, Y, Q0, R0)
        Z1 = _finite(A.matmat(Q1)) / scale
        return Krylov(beside(Q0, Q1), beside(Z0, Z1), C, scale, [Omega.shape[1]])
    Q, R, _ = orthonormal_extension(Y, Omega)
    if norm_only and A.rmatmat is not None:
        return _two_sided(A, Omega, Q, R, scale)
    return Range(Omega, Q, R, Y, _finite(A.matmat(Q)) / scale, scale)


def _rectangular(A: LinearOperator, Omega: Array) -> TwoSided:
    Y = _finite(A.matmat(Omega))
    scale = magnitude(Y)
    return _two_sided(A, Omega, *orthonormalise(Y / scale), scale)


def _two_sided(A: LinearOperator, Omega: Array, Q: Array, R: Array, scale: Array) -> TwoSided:
    F = _finite(A.rmatmat(Q)) / scale  # type: ignore[misc]
    check_adjoint(inner(F, Omega), R)
    return TwoSided(Omega, Q, R, F, scale)


def _factor_krylov(L: LinearOperator, Omega: Array) -> FactorKrylov:
    Q0, R0 = orthonormalise(Omega)
    G0 = _finite(L.H.matmat(Q0))
    scale = magnitude(G0)
    G0 = G0 / scale
    Z0 = _finite(L.matmat(G0)) / scale
    Q1, C = _second_block(Omega, Z0 @ R0, Q0, R0)
    G1 = _finite(L.H.matmat(Q1)) / scale
    return FactorKrylov(beside(Q0, Q1), beside(G0, G1), C, scale, [Omega.shape[1]])


def _second_block(Omega: Array, Y: Array, Q: Array, C: Array) -> tuple[Array, Array]:
    """A basis of ``Y = A Omega`` beyond Q, and the coordinates C with those of Y.

    Where Y adds fewer directions than columns, each probe brings one of its own (itself, rolled):
    so leaving out a probe leaves out all that depends on it.
    """
    own = namespace(Omega).roll(Omega, 1, axis=0)
    Q1, R1, upper = orthonormal_extension(Y, own, Q, jitter=eps_of(Y) ** 0.5)
    return Q1, triangle(C, upper, R1)


def _krylov(
    H: Array, C: Array, widths: list[int], scale: Array, spent: int, n: int
) -> MomentSamples:
    H = (H + adjoint(H)) / 2
    W, _ = moments.halves(C, widths)
    traces, squares = moments.krylov(H, W, C, n, widths)
    three = W.shape[1] > 2
    left_out = moments.krylov_left_out(H, W, C, n, widths) if three else (None, None)
    return MomentSamples(traces, squares, scale, spent, True, left_out)


def triangle(C: Array, upper: Any, R: Array) -> Array:
    """The upper triangle of blocks that C grows to."""
    low = adjoint(upper) * 0.0
    return namespace(R).concat([beside(C, upper), beside(low, R)], axis=0)


def _finite(Y: Array) -> Array:
    require_finite(Y, "norm", columns=Y)
    return Y


def beside(X: Array, Y: Any) -> Array:
    return namespace(X).concat([X, Y], axis=-1)
