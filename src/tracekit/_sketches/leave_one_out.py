r"""Reads the trace out of a sketch, once without each probe, in closed form.

Every function here returns one estimate for each probe (made from the range of the *other* probes
and tested on that one) and, for the jackknife, the mean estimate of the sketch without each probe.
With b probes all of it costs O(n b^2 + b^3).

The range of all probes but i is :math:`Q (I - s_i s_i^H) Q^H`, where the unit vectors s_i are the
normalised columns of :math:`R^{-H}`: the dual basis of the columns of R. Leaving out two probes
removes the plane of s_i and s_j, whose Gram matrix has the off-diagonal entry
:math:`\gamma_{ij} = s_i^H s_j`. Epperly, Tropp, Webber (2024), SIMAX 45, arXiv:2301.07825.
"""

from __future__ import annotations

import math
from dataclasses import replace

from .._arrays import (
    Array,
    abs2,
    adjoint,
    check_adjoint,
    coldot,
    colnorm2,
    conj,
    eps_of,
    eye_like,
    inner,
    matrix_diagonal,
    matrix_trace,
    namespace,
    real,
    triangular_dual,
)
from .._estimates import FEW, Estimate, combined_error, finalize, mean, scaled
from .._operators import LinearOperator
from .nystrom import nystrom_factor


def xtrace(
    Omega: Array, Q: Array, R: Array, Z: Array, *, resphere: bool
) -> tuple[Array, Array | None]:
    """XTrace from ``Q R = A Omega`` and ``Z = A Q``: samples, and jackknife replicates.

    `resphere` scales each probe's remainder to the sphere of the space it lies in, which lowers
    the variance; it is right for rotation-invariant probes only.
    """
    xp = namespace(Q)
    n, b = Omega.shape
    D = triangular_dual(R)
    S = D / xp.sqrt(colnorm2(D))[None, :]
    H, W, T = inner(Q, Z), inner(Q, Omega), inner(Z, Omega)
    Sh, Wh = adjoint(S), adjoint(W)
    G, M, L = Sh @ S, Sh @ W, Sh @ H @ S  # gamma, sigma and lambda of the derivation
    TS, SR, SHW, WHS = adjoint(T) @ S, Sh @ R, Sh @ (H @ W), Wh @ (H @ S)
    dTS, dSR, dSHW, dWHS, dL, own = (matrix_diagonal(X)[None, :] for X in (TS, SR, SHW, WHS, L, M))
    within, hidden = matrix_trace(H), (colnorm2(Omega) - colnorm2(W))[None, :]

    def form(c: Array) -> Array:
        """``r^H A r`` of the remainder ``r = omega_j - Q (w_j - c s_j)``."""
        rest = (coldot(W, H @ W) - coldot(T, W))[None, :]
        return rest + c * (dTS - dWHS) + conj(c) * (dSR - dSHW) + abs2(c) * dL

    def scaled(form: Array, lost: Array, dimension: int) -> Array:
        length = hidden + real(lost)
        return resphered(form, length, dimension, n) if resphere else form

    samples = (within - dL + scaled(form(own), abs2(own), n - b + 1))[0, :]
    if b < 3:
        return samples, None
    # row i is left out of the sketch, column j is the probe that tests the rest: its remainder is
    # omega_j - Q (w_j - a s_i - c s_j)
    den = _off_diagonal(1.0 - abs2(G), 1.0, floor=1e-14)
    a, c = (M - G * own) / den, (own - conj(G) * M) / den
    ah, ch = conj(a), conj(c)
    cross = a * _t(TS - WHS) + ah * (SR - SHW) + ah * c * L + ch * a * _t(L)
    cross = cross + abs2(a) * _t(dL)
    traced = (_t(dL) + dL - G * _t(L) - conj(G) * L) / den
    tested = scaled(form(c) + cross, ah * M + ch * own, n - b + 2)
    return samples, _mean_of_others(within - traced + tested)


def xnystrace(Omega: Array, Y: Array, *, resphere: bool) -> tuple[Array, Array | None]:
    """XNysTrace from ``Y = A Omega``: samples, and jackknife replicates.

    Raises ValueError if the sketch shows that A is not Hermitian or not positive semidefinite.
    """
    xp, n = namespace(Y), Y.shape[0]
    gram = inner(Omega, Omega)
    ridge = gram if resphere else gram + eye_like(gram, gram.shape[0]) * n
    B, _, D, nu = nystrom_factor(Omega, Y, ridge, "call xtrace, or trace without psd")
    inverse = xp.linalg.inv(gram) if resphere else None
    samples, replicates = nystrom(inner(B, B), D, n, inverse)
    added = nu * (n if resphere else 2 * n)  # to the trace; and to every test, by the ridge
    return zero_where(xp.max(xp.abs(Y)) == 0, samples - added, replicates)


def factored(Omega: Array, R: Array, Z: Array, *, resphere: bool) -> tuple[Array, Array | None]:
    """XNysTrace of ``L L^H`` from ``Q R = L^H Omega`` and ``Z = L Q``: samples and replicates."""
    check_adjoint(inner(Z, Omega), R)
    inverse = namespace(R).linalg.inv(inner(Omega, Omega)) if resphere else None
    N, D = inner(Z, Z), triangular_dual(R)
    samples, replicates = nystrom(N, D, Omega.shape[0], inverse)
    xp = namespace(R)
    return zero_where(xp.max(xp.abs(R)) == 0, samples, replicates)


def nystrom(
    N: Array, D: Array, n: int, inverse_gram: Array | None = None
) -> tuple[Array, Array | None]:
    r"""The same from ``N = B^H B`` and ``D = C^{-H}``.

    Here :math:`\Omega^H A \Omega = C^H C` and :math:`A \approx B B^H` with
    :math:`B = A \Omega C^{-1}`. `inverse_gram` is :math:`(\Omega^H \Omega)^{-1}`, given where the
    probes are rotation-invariant and may be resphered.
    """
    b = D.shape[1]
    K, L = adjoint(D) @ D, adjoint(D) @ N @ D
    P = eye_like(D, b) if inverse_gram is None else inverse_gram
    dK, dL, dP = (real(matrix_diagonal(X)) for X in (K, L, P))
    within = real(matrix_trace(N))
    grow = (1, 1) if inverse_gram is None else (n - b + 1, n - b + 2)
    samples = within - dL / dK + grow[0] * dP / dK
    if b < 3:
        return samples, None
    # row i is left out of the sketch, column j is the probe that tests the rest
    dK, dL, dP = (x[None, :] for x in (dK, dL, dP))
    size = _t(dK)
    length = _off_diagonal(dK - abs2(K) / size, dK, floor=1e-14)
    lost = dL - 2 * real(_t(L) * K) / size + _t(dL) * abs2(K) / (size * size)
    tested = grow[1] * (dP - abs2(P) / _t(dP))
    pairs = within - _t(dL) / size + (tested - lost) / length
    return samples, _mean_of_others(pairs)


def xdiag(Omega: Array, Q: Array, R: Array, Z: Array) -> tuple[Array, Array | None]:
    r"""XDiag from ``Q R = A Omega`` and ``Z = A^H Q``: samples, and jackknife replicates.

    Both have one column a probe. Of the range of all probes but two, i and j, the projector loses
    that on the plane of s_i and s_j, whose Gram matrix has the off-diagonal entry
    :math:`\gamma_{ij} = s_i^H s_j`, and what it leaves of probe j is
    :math:`(s_j - \gamma_{ij} s_i) / (\rho_j (1 - |\gamma_{ij}|^2))`. Costs O(n b^2) with b probes.
    """
    xp, b = namespace(Q), Omega.shape[1]
    D = triangular_dual(R)
    rho = xp.sqrt(colnorm2(D))
    S = D / rho[None, :]
    B, C = Q @ S, conj(Z @ S)
    alive = xp.astype(xp.max(xp.abs(R)) > 0, rho.dtype)  # zero has no range to leave anything of
    own, tests = B * C, conj(Omega) * (alive / rho)[None, :]
    within = xp.sum(Q * conj(Z), axis=-1)[:, None]
    samples = within - own + tests * B
    if b < 3:
        return samples, None
    # row i of E is left out of the sketch, column j is the probe that tests the rest
    G, eye = adjoint(S) @ S, eye_like(rho, b)
    det = 1 - abs2(G)
    det = xp.where(det < 1e-14, xp.ones_like(det) * 1e-14, det)
    E = (1 - eye) / ((det + eye) * (b - 1))
    Et, EGt = xp.astype(xp.matrix_transpose(E), G.dtype), xp.matrix_transpose(E * G)
    lost = own * xp.sum(E, axis=-1)[None, :] - B * (C @ EGt) - C * (B @ conj(EGt)) + own @ Et
    tested = (tests * B) @ Et - B * (tests @ EGt)
    return samples, within - lost + tested


def xnysdiag(Omega: Array, Y: Array) -> tuple[Array, Array | None]:
    r"""XNysDiag from ``Y = A Omega``: samples, and jackknife replicates.

    With :math:`R^H R = \Omega^H Y` it is XDiag of a square root of A: R is the triangle of
    :math:`A^{1/2} \Omega`, and :math:`B = Y R^{-1}` the product of :math:`A^{1/2}` with the basis.
    """
    xp, gram = namespace(Y), inner(Omega, Omega)
    ridge = gram + eye_like(gram, gram.shape[0]) * Y.shape[0]
    B, R, _, nu = nystrom_factor(Omega, Y, ridge, "call xdiag")
    samples, replicates = xdiag(Omega, B, R, B)
    return zero_where(xp.max(xp.abs(Y)) == 0, samples - nu, replicates)


def zero_where(
    nothing: Array, samples: Array, replicates: Array | None
) -> tuple[Array, Array | None]:
    """Samples and replicates; zeros for an operator that is zero."""
    xp = namespace(samples)
    samples = xp.where(nothing, xp.zeros_like(samples), samples)
    if replicates is None:
        return samples, None
    return samples, xp.where(nothing, xp.zeros_like(replicates), replicates)


def resphered(form: Array, length: Array, dimension: int, n: int) -> Array:
    """The quadratic form of a remainder, scaled from its squared length to the sphere it lies on.

    Zero where the probe of squared length about n lies in the range of the others.
    """
    xp = namespace(form)
    gone = length <= 100 * n * eps_of(form)
    safe = xp.where(gone, xp.ones_like(length), length)
    return xp.where(gone, xp.zeros_like(form), form * (dimension / safe))


def _off_diagonal(x: Array, relative_to: Array | float, floor: float) -> Array:
    """`x`, no smaller than a multiple of `relative_to`, and that on the diagonal."""
    xp = namespace(x)
    top = xp.zeros_like(x) + relative_to
    eye = eye_like(x, x.shape[0])
    return xp.where((x < floor * top) | (eye > 0), xp.where(eye > 0, top, floor * top), x)


def _mean_of_others(pairs: Array) -> Array:
    """For each row the mean of its off-diagonal entries."""
    xp, b = namespace(pairs), pairs.shape[0]
    eye = eye_like(pairs, b)
    return xp.sum(xp.where(real(eye) > 0, xp.zeros_like(pairs), pairs), axis=1) / (b - 1)


def _t(X: Array) -> Array:
    return namespace(X).matrix_transpose(X)


def leave_one_out_estimate(
    samples: Array,
    left_out: Array | None,
    scale: Array,
    spent: int,
    method: str,
    A: LinearOperator,
    *,
    semidefinite: bool = False,
) -> Estimate:
    """A leave-one-out estimate in the operator's own units.

    Residuals of rank one, which are what is left where the rank is the number of probes, are
    chi-squared: the error of a `semidefinite` trace from `FEW` probes on allows for that. Entries
    of a diagonal have too few different samples below 5 probes of signs to say anything of their
    error.
    """
    b, entries = samples.shape[-1], samples.ndim > 1
    estimate = mean(samples, spent, method, independent=False)
    error = combined_error(samples, left_out, estimate.standard_error)
    if entries:
        error = error + math.inf if b < 5 else error
    elif semidefinite and b >= FEW:
        error = error * (1 + 2 / b)
    estimate = scaled(replace(estimate, standard_error=error), scale)
    return finalize(estimate, A, "diagonal" if entries else "trace")
