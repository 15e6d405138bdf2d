"""Orthonormal bases and triangles."""

from __future__ import annotations

import math

import array_api_compat

from .formulas import adjoint, eye_like, inner, magnitude, matrix_diagonal
from .libraries import Array, device_of, eps_of, is_finite, is_traced, namespace
from .placement import row_blocks

_SMALL = 2**14  # entries of a block whose cost is that of the calls


def orthonormalise(Y: Array) -> tuple[Array, Array]:
    """``Q R = Y`` with orthonormal columns, by the fastest way that is safe.

    NumPy's reflections are slow, those of PyTorch and JAX on one CPU are not: there they take half
    the time of two Cholesky factorisations (2000 x 100, one thread), and as much at 100000 x 64.
    """
    small = math.prod(Y.shape) <= _SMALL
    reflected = is_traced(Y) or small or row_blocks(Y) > 1 or _has_fast_qr(Y)
    return householder_qr(Y) if reflected else cholesky_qr2(Y)


def householder_qr(Y: Array) -> tuple[Array, Array]:
    """``Q R = Y`` by Householder reflections; orthonormal whatever the rank of `Y`.

    Where `Y` lies in blocks of rows on several devices, by those of the blocks and of their
    triangles, so that no more than the triangles leave their devices.
    """
    return tall_skinny_qr(Y, row_blocks(Y))


def tall_skinny_qr(Y: Array, blocks: int) -> tuple[Array, Array]:
    """``Q R = Y`` of blocks of rows and of their stacked triangles; of stacks (..., n, k) too.

    Demmel, Grigori, Hoemmen, Langou (2012), SIAM J. Sci. Comput. 34, arXiv:0808.2664. Rows of zeros
    fill the last block: reflections do not mix them with others where a block has k rows.
    """
    xp, (*stack, n, k) = namespace(Y), Y.shape
    rows = -(-n // blocks)
    if blocks < 2 or n - (blocks - 1) * rows < k:
        Q, R = xp.linalg.qr(Y)
        return Q, R
    if (added := blocks * rows - n) > 0:
        Y = xp.concat(
            [Y, xp.zeros((*stack, added, k), dtype=Y.dtype, device=device_of(Y))], axis=-2
        )
    Qs, Rs = xp.linalg.qr(xp.reshape(Y, (*stack, blocks, rows, k)))
    C, R = xp.linalg.qr(xp.reshape(Rs, (*stack, blocks * k, k)))
    Q = xp.reshape(Qs @ xp.reshape(C, (*stack, blocks, k, k)), (*stack, blocks * rows, k))
    return Q[..., :n, :] if added > 0 else Q, R


def cholesky_qr2(Y: Array) -> tuple[Array, Array]:
    """``Q R = Y`` by two Cholesky factorisations; Householder where `Y` is close to rank-deficient.

    Yamamoto, Nakatsukasa, Yanagisawa, Fukaya (2015), ETNA 44: orthonormal to machine precision
    while the condition number of `Y` stays below about ``eps**-0.5``, which the second Gram
    matrix shows.
    """
    first = _cholesky_qr(Y)
    if first is not None:
        Q, R = first
        eye = eye_like(R, R.shape[0])
        G = inner(Q, Q)
        # the first pass has to leave Q near orthonormal, or the second cannot repair it
        if bool(namespace(Y).all(namespace(Y).abs(G - eye) < 1e-2)):
            second = cholesky(G)
            if second is not None:
                C = adjoint(second)
                return Q @ namespace(Y).linalg.solve(C, eye), C @ R
    return householder_qr(Y)


def _cholesky_qr(Y: Array) -> tuple[Array, Array] | None:
    scale = magnitude(Y)
    Ys = Y / scale
    C = cholesky(inner(Ys, Ys))
    if C is None:
        return None
    R = adjoint(C)
    return Ys @ namespace(Y).linalg.solve(R, eye_like(R, R.shape[0])), R * scale


def cholesky(G: Array) -> Array | None:
    """Lower Cholesky factor of a Hermitian matrix, or None where it is not positive definite.

    Libraries raise errors of their own or return NaN; under tracing NaN passes through.
    """
    try:
        C = namespace(G).linalg.cholesky(G)
    except (RuntimeError, ValueError):  # torch: LinAlgError(RuntimeError); NumPy: (ValueError)
        return None
    return C if is_finite(C) else None


def eigh(H: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of a Hermitian matrix.

    LAPACK's division into halves fails to converge for a few matrices with equal eigenvalues, and
    then succeeds with the same in another order.
    """
    xp = namespace(H)
    try:
        x, U = xp.linalg.eigh(H)
    except (RuntimeError, ValueError):  # as of `cholesky`
        if not is_finite(H):
            raise
        x, U = xp.linalg.eigh(xp.flip(H))
        U = xp.flip(U, axis=-2)
    return x, U


def triangular_dual(R: Array) -> Array:
    """``R^-H`` of an upper triangle whose diagonal is floored at rounding level.

    The columns are the dual basis of the columns of `R`. Where `R` is numerically singular, the
    floor keeps the dual vectors finite and in the directions that carry nothing.
    """
    xp = namespace(R)
    d = matrix_diagonal(R)
    size = xp.abs(d)
    floor = R.shape[0] * eps_of(R) * magnitude(R)
    phase = xp.where(size > 0, d / xp.where(size > 0, size, xp.ones_like(size)), xp.ones_like(d))
    lift = xp.where(size < floor, phase * floor - d, xp.zeros_like(d))
    eye = eye_like(R, R.shape[0])
    return xp.linalg.solve(adjoint(R + eye * lift[None, :]), eye)


def _has_fast_qr(Y: Array) -> bool:
    """Whether an array is PyTorch's or JAX's, on one CPU."""
    if array_api_compat.is_jax_array(Y):
        return [device.platform for device in Y.devices()] == ["cpu"]
    return array_api_compat.is_torch_array(Y) and Y.device.type == "cpu"
