"""Trace and squared norm together: products spent on both, and leave-one-out samples of both."""

from __future__ import annotations

from typing import NamedTuple

from .._arrays import (
    Array,
    Rng,
    RowArray,
    adjoint,
    check_adjoint,
    coldot,
    colnorm2,
    eps_of,
    inner,
    is_hermitian,
    magnitude,
    matrix_trace,
    namespace,
    norm2,
    orthonormalise,
    real,
    triangular_dual,
)
from .._estimates import combined_error, few, require_finite, standard_error
from .._operators import LinearOperator, dense, each_column, matvecs_per_column
from .._sketches import leave_one_out, moments, orthonormal_extension
from ..probes import Source, distributions

# Leave-one-out samples share their sketch, so that their spread is too small. Where there is no
# jackknife: by these factors, calibrated on decaying, flat and network spectra.
INFLATION = 1.4  # of traces, ratios and inner products
NORM_INFLATION = 2.0  # of squared norms


class MomentSamples(NamedTuple):
    """Samples of the trace and of the squared norm, in units of `scale` and its square."""

    traces: Array | None
    squares: Array
    scale: Array
    spent: int
    shared: bool  # whether the samples share a sketch
    left_out: tuple[Array | None, Array | None] = (None, None)  # jackknife replicates of both

    def error(self, samples: Array, left_out: Array | None, factor: float) -> Array:
        """Of the mean of samples: jackknife and spread, or the spread times a factor."""
        spread = standard_error(samples)
        if left_out is not None:
            return combined_error(samples, left_out, spread)
        return spread * few(samples.shape[-1]) * (factor if self.shared else 1.0)

    def variance(self, samples: Array, left_out: Array | None, factor: float) -> Array:
        """Of the mean of samples, as likely too small as too large: `error` is on the safe side."""
        spread = standard_error(samples)
        if left_out is not None:
            error = combined_error(samples, left_out, spread, few=0)
        else:
            error = spread * (factor if self.shared else 1.0)
        return error * error


def moment_samples(
    A: LinearOperator, m: int, rng: Rng, *, norm_only: bool = False
) -> MomentSamples:
    """Leave-one-out samples by the sketch that suits a square operator."""
    n, source = A.shape[0], Source(rng, A)
    if A.factor is not None:
        return _factored_krylov(A.factor, distributions.sphere(source, n, m // 3))
    b = m // 2
    if b < 3:
        return _independent(A, distributions.sphere(source, n, m))
    Omega = distributions.sphere(source, n, b)
    Q0, R0 = orthonormalise(Omega)
    Z0 = A.matmat(Q0)
    require_finite(Z0, "norm", columns=Z0)
    scale = magnitude(Z0)
    Z0 = Z0 / scale
    H0 = inner(Q0, Z0)
    if is_hermitian(H0):
        Q1, C = _second_block(Omega, Q0, R0, Z0)
        Z1 = A.matmat(Q1) / scale
        return _krylov(H0, inner(Q0, Z1), inner(Q1, Z1), C, scale, 2 * b, n)
    Y = Z0 @ R0
    Q, R, _ = orthonormal_extension(Y, Omega)
    if norm_only and A.rmatmat is not None:
        return _two_sided(A, Omega, Q, R, scale, 2 * b)
    Z = A.matmat(Q) / scale
    traces, left_out = leave_one_out.xtrace(Omega, Q, R, Z, resphere=True)
    squares = moments.shared(Omega, Q, R, (Y, Z), (Y, Z))
    return MomentSamples(traces, real(squares), scale, 2 * b, True, (left_out, None))


def rectangular_samples(A: LinearOperator, m: int, rng: Rng) -> MomentSamples:
    """Samples of the squared norm alone, of an operator of any shape."""
    n, source, b = A.shape[1], Source(rng, A), m // 2
    if A.rmatmat is None or b < 3:
        return _independent(A, distributions.sphere(source, n, m))
    Omega = distributions.sphere(source, n, b)
    Y = A.matmat(Omega)
    require_finite(Y, "norm", columns=Y)
    scale = magnitude(Y)
    Q, R = orthonormalise(Y / scale)
    return _two_sided(A, Omega, Q, R, scale, 2 * b)


def _independent(A: LinearOperator, Omega: Array) -> MomentSamples:
    Y = A.matmat(Omega)
    require_finite(Y, "norm", columns=Y)
    scale = magnitude(Y)
    traces = coldot(Omega, Y / scale) if A.shape[0] == A.shape[1] else None
    return MomentSamples(
        traces, colnorm2(Y / scale), scale, Omega.shape[1] * matvecs_per_column(A), False
    )


def _two_sided(
    A: LinearOperator, Omega: Array, Q: Array, R: Array, scale: Array, spent: int
) -> MomentSamples:
    """The trace of A^H A: its Nystrom approximation is ``(A^H Q) (A^H Q)^H``."""
    F = A.rmatmat(Q) / scale  # type: ignore[misc]
    check_adjoint(inner(F, Omega), R)
    inverse = A.xp.linalg.inv(inner(Omega, Omega))
    dual = triangular_dual(R)
    squares, left_out = leave_one_out.nystrom(inner(F, F), dual, A.shape[1], inverse)
    return MomentSamples(None, squares, scale, spent, True, (None, left_out))


def _factored_krylov(L: LinearOperator, Omega: Array) -> MomentSamples:
    """A block-Krylov sketch of L L^H: 2 b columns through L^H and b through L."""
    Lh, (n, b) = L.H.matmat, Omega.shape
    Q0, R0 = orthonormalise(Omega)
    G0 = Lh(Q0)
    require_finite(G0, "norm", columns=G0)
    scale = magnitude(G0)
    Z0 = L.matmat(G0 / scale) / scale
    Q1, C = _second_block(Omega, Q0, R0, Z0)
    G1 = Lh(Q1) / scale
    corner, side = inner(Q0, Z0), inner(Z0, Q1)
    return _krylov(corner, side, inner(G1, G1), C, scale * scale, 3 * b, n)


def _second_block(Omega: Array, Q0: Array, R0: Array, Z0: Array) -> tuple[Array, Array]:
    """A basis of A Omega beyond Omega, and the coordinates of both blocks in both bases.

    Where A Omega adds fewer directions than columns, each probe brings one of its own (itself,
    rolled): so leaving out a probe leaves out all that depends on it.
    """
    xp = namespace(Omega)
    own = xp.roll(Omega, 1, axis=0)
    Q1, R1, upper = orthonormal_extension(Z0 @ R0, own, Q0, jitter=eps_of(Z0) ** 0.5)
    low = R1 * 0.0
    return Q1, xp.concat([xp.concat([R0, upper], axis=1), xp.concat([low, R1], axis=1)], axis=0)


def _krylov(
    H00: Array, H01: Array, H11: Array, C: Array, scale: Array, spent: int, n: int
) -> MomentSamples:
    concat = namespace(H00).concat
    H = concat([concat([H00, H01], axis=1), concat([adjoint(H01), H11], axis=1)], axis=0)
    H = (H + adjoint(H)) / 2
    W = C[:, : H00.shape[0]]
    traces, squares = moments.krylov(H, W, C, n)
    left_out = moments.krylov_left_out(H, W, C, n) if W.shape[1] > 2 else (None, None)
    return MomentSamples(traces, squares, scale, spent, True, left_out)


def exact_moments(A: LinearOperator) -> tuple[Array, Array, Array]:
    """Trace and squared norm in units of a scale and its square, and the scale."""
    xp, L = A.xp, A.factor
    if L is not None:  # both from the Gram matrix of all columns of L or L^H
        G = dense(L.H if L.shape[0] <= L.shape[1] else L)
        require_finite(G, "norm", columns=G)
        scale = magnitude(G)
        K = inner(G / scale, G / scale)
        return real(matrix_trace(K)), norm2(K), scale * scale
    B = A if A.shape[1] <= A.shape[0] or A.rmatmat is None else A.H
    parts = []
    for E, Y in each_column(B):
        require_finite(Y, "norm", columns=Y)
        scale = magnitude(Y)
        least = min(Y.shape[0], E.shape[0])
        square = norm2(Y / scale)
        if isinstance(Y, RowArray) != isinstance(E, RowArray):  # no trace, and rows held apart
            t = xp.zeros_like(square)
        else:
            t = xp.sum(coldot(E[:least, :], Y[:least, :] / scale))
        parts.append((t, square, scale))
    largest = xp.max(xp.stack([scale for _, _, scale in parts]))
    shares = [scale / largest for _, _, scale in parts]
    t = sum(t * share for (t, _, _), share in zip(parts, shares, strict=True))
    f = sum(f * share * share for (_, f, _), share in zip(parts, shares, strict=True))
    return t, f, largest
