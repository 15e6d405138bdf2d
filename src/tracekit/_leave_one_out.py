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

from . import _xp
from ._estimate import require_finite
from ._typing import Array

FEW = 8  # samples


def xtrace(
    Omega: Array, Q: Array, R: Array, Z: Array, *, resphere: bool
) -> tuple[Array, Array | None]:
    """XTrace from ``Q R = A Omega`` and ``Z = A Q``: samples, and jackknife replicates.

    `resphere` scales each probe's remainder to the sphere of the space it lies in, which lowers
    the variance; it is right for rotation-invariant probes only.
    """
    xp = _xp.namespace(Q)
    n, b = Omega.shape
    D = _xp.triangular_dual(R)
    S = D / xp.sqrt(_xp.colnorm2(D))[None, :]
    H, W, T = _xp.inner(Q, Z), _xp.inner(Q, Omega), _xp.inner(Z, Omega)
    Sh, Wh = _xp.adjoint(S), _xp.adjoint(W)
    G, M, L = Sh @ S, Sh @ W, Sh @ H @ S  # gamma, sigma and lambda of the derivation
    TS, SR, SHW, WHS = _xp.adjoint(T) @ S, Sh @ R, Sh @ (H @ W), Wh @ (H @ S)
    dTS, dSR, dSHW, dWHS, dL, own = (_xp.diagonal(X)[None, :] for X in (TS, SR, SHW, WHS, L, M))
    within, hidden = _xp.trace(H), (_xp.colnorm2(Omega) - _xp.colnorm2(W))[None, :]

    def form(c: Array) -> Array:
        """``r^H A r`` of the remainder ``r = omega_j - Q (w_j - c s_j)``."""
        rest = (_xp.coldot(W, H @ W) - _xp.coldot(T, W))[None, :]
        return rest + c * (dTS - dWHS) + _xp.conj(c) * (dSR - dSHW) + _xp.abs2(c) * dL

    def scaled(form: Array, lost: Array, dimension: int) -> Array:
        length = hidden + _xp.real(lost)
        return resphered(form, length, dimension, n) if resphere else form

    samples = (within - dL + scaled(form(own), _xp.abs2(own), n - b + 1))[0, :]
    if b < 3:
        return samples, None
    # row i is left out of the sketch, column j is the probe that tests the rest: its remainder is
    # omega_j - Q (w_j - a s_i - c s_j)
    den = _off_diagonal(1.0 - _xp.abs2(G), 1.0, floor=1e-14)
    a, c = (M - G * own) / den, (own - _xp.conj(G) * M) / den
    ah, ch = _xp.conj(a), _xp.conj(c)
    cross = a * _t(TS - WHS) + ah * (SR - SHW) + ah * c * L + ch * a * _t(L)
    cross = cross + _xp.abs2(a) * _t(dL)
    traced = (_t(dL) + dL - G * _t(L) - _xp.conj(G) * L) / den
    tested = scaled(form(c) + cross, ah * M + ch * own, n - b + 2)
    return samples, _mean_of_others(within - traced + tested)


def xnystrace(Omega: Array, Y: Array, *, resphere: bool) -> tuple[Array, Array | None]:
    """XNysTrace from ``Y = A Omega``: samples, and jackknife replicates.

    Raises ValueError if the sketch shows that A is not Hermitian or not positive semidefinite.
    """
    xp, n = _xp.namespace(Y), Y.shape[0]
    gram = _xp.inner(Omega, Omega)
    ridge = gram if resphere else gram + _xp.eye_like(gram, gram.shape[0]) * n
    B, _, D, nu = nystrom_factor(Omega, Y, ridge, "xtrace, or trace without psd")
    inverse = xp.linalg.inv(gram) if resphere else None
    samples, replicates = nystrom(_xp.inner(B, B), D, n, inverse)
    added = nu * (n if resphere else 2 * n)  # to the trace; and to every test, by the ridge
    return zero_where(xp.max(xp.abs(Y)) == 0, samples - added, replicates)


def nystrom_factor(
    Omega: Array, Y: Array, ridge: Array, instead: str
) -> tuple[Array, Array, Array, Array]:
    """B, R, ``D = R^{-H}`` and nu: ``B B^H`` is the Nystrom approximation of ``A + nu I``.

    It is made of ``Y = A Omega`` by ``R^H R = Omega^H Y + nu ridge`` and
    ``B = (Y + nu Omega) R^{-1}``. The ridge is the Gram matrix of the probes, which a nu at
    rounding level makes positive definite (where rounding needs more, it grows); equal sign
    vectors, which small dimensions bring, need a multiple of the identity besides. Raises
    ValueError, which says what to call `instead`, if the sketch shows that A is not Hermitian or
    not positive semidefinite.
    """
    require_finite(Y)
    xp, eps, traced = _xp.namespace(Y), _xp.eps(Y), _xp.is_traced(Y)
    H = _xp.inner(Omega, Y)
    if not traced:
        check_hermitian(H, eps, instead)
    size = _xp.positive(xp.sqrt(_xp.norm2(Y) / Y.shape[0]))
    shift = (100 if traced else 1) * eps
    while True:
        nu = size * shift
        G = H + ridge * nu
        C = _xp.cholesky((G + _xp.adjoint(G)) / 2)
        if C is not None:
            break
        shift *= 10
        if shift > max(1e-6, 1e3 * eps):
            raise ValueError(
                "the products of this operator show that it is not positive semidefinite; call "
                f"{instead}{inexactness(H)}"
            )
    D = xp.linalg.solve(C, _xp.eye_like(C, C.shape[0]))
    return (Y + Omega * nu) @ _xp.adjoint(D), _xp.adjoint(C), D, nu


def factored(Omega: Array, R: Array, Z: Array, *, resphere: bool) -> tuple[Array, Array | None]:
    """XNysTrace of ``L L^H`` from ``Q R = L^H Omega`` and ``Z = L Q``: samples and replicates."""
    check_adjoint(_xp.inner(Z, Omega), R)
    inverse = _xp.namespace(R).linalg.inv(_xp.inner(Omega, Omega)) if resphere else None
    N, D = _xp.inner(Z, Z), _xp.triangular_dual(R)
    samples, replicates = nystrom(N, D, Omega.shape[0], inverse)
    xp = _xp.namespace(R)
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
    K, L = _xp.adjoint(D) @ D, _xp.adjoint(D) @ N @ D
    P = _xp.eye_like(D, b) if inverse_gram is None else inverse_gram
    dK, dL, dP = (_xp.real(_xp.diagonal(X)) for X in (K, L, P))
    within = _xp.real(_xp.trace(N))
    grow = (1, 1) if inverse_gram is None else (n - b + 1, n - b + 2)
    samples = within - dL / dK + grow[0] * dP / dK
    if b < 3:
        return samples, None
    # row i is left out of the sketch, column j is the probe that tests the rest
    dK, dL, dP = (x[None, :] for x in (dK, dL, dP))
    size = _t(dK)
    length = _off_diagonal(dK - _xp.abs2(K) / size, dK, floor=1e-14)
    lost = dL - 2 * _xp.real(_t(L) * K) / size + _t(dL) * _xp.abs2(K) / (size * size)
    tested = grow[1] * (dP - _xp.abs2(P) / _t(dP))
    pairs = within - _t(dL) / size + (tested - lost) / length
    return samples, _mean_of_others(pairs)


def zero_where(
    nothing: Array, samples: Array, replicates: Array | None
) -> tuple[Array, Array | None]:
    """Samples and replicates; zeros for an operator that is zero."""
    xp = _xp.namespace(samples)
    samples = xp.where(nothing, xp.zeros_like(samples), samples)
    if replicates is None:
        return samples, None
    return samples, xp.where(nothing, xp.zeros_like(replicates), replicates)


def combined_error(
    samples: Array, replicates: Array | None, spread: Array, few: int = FEW
) -> Array:
    """Geometric mean of the leave-one-out `spread` and the jackknife; of few samples the larger.

    The spread alone is too small, since the samples share their sketch; the jackknife is
    conservative (Efron and Stein, 1981). Below `few` samples either may be small by chance.
    """
    if replicates is None:
        return spread
    xp, b = _xp.namespace(samples), samples.shape[-1]
    deviation = replicates - xp.mean(replicates, axis=-1, keepdims=True)
    scale = _xp.magnitude(deviation)
    jackknife = (
        xp.sqrt(xp.sum(_xp.abs2(deviation / scale), axis=-1)) * scale * math.sqrt((b - 1) / b)
    )
    if b < few:
        return xp.where(jackknife < spread, spread, jackknife)
    return xp.sqrt(jackknife) * xp.sqrt(spread)


def resphered(form: Array, length: Array, dimension: int, n: int) -> Array:
    """The quadratic form of a remainder, scaled from its squared length to the sphere it lies on.

    Zero where the probe of squared length about n lies in the range of the others.
    """
    xp = _xp.namespace(form)
    gone = length <= 100 * n * _xp.eps(form)
    safe = xp.where(gone, xp.ones_like(length), length)
    return xp.where(gone, xp.zeros_like(form), form * (dimension / safe))


def check_hermitian(
    G: Array, eps: float, instead: str = "xtrace, or trace without psd and hermitian"
) -> None:
    """Raise ValueError if ``G = Omega^H A Omega`` shows that A is not Hermitian."""
    apart = _relative(G - _xp.adjoint(G), G)
    if apart > eps ** (1 / 3):
        raise ValueError(
            "the products of this operator show that it is not Hermitian; call "
            f"{instead}{_if_inexact(apart, eps)}"
        )


def check_adjoint(found: Array, expected: Array, size: Array | None = None) -> None:
    """Raise ValueError if ``(A^H Y)^H X`` and ``Y^H (A X)``, from products spent anyway, differ.

    `size` is what they would be if nothing cancelled: less than rounding of that is no difference.
    """
    if _xp.is_traced(found):
        return
    eps = _xp.eps(found)
    apart = _relative(found - expected, expected)
    if size is not None and _relative(found - expected, size[None, None]) < 10 * eps:
        return
    if apart > eps ** (1 / 3):
        raise ValueError(
            f"<y, A x> and <A^H y, x> differ by {apart:.1g} of their size: this operator is not "
            "linear, or its products matmat and rmatmat do not belong together; check them with "
            f"tracekit.testing.linearity_test and adjoint_test{_if_inexact(apart, eps)}"
        )


def inexactness(G: Array) -> str:
    """What else it may mean that ``G = Omega^H A Omega`` is not Hermitian."""
    return _if_inexact(_relative(G - _xp.adjoint(G), G), _xp.eps(G))


def _relative(apart: Array, of: Array) -> float:
    """Of Frobenius norms."""
    unit = _xp.magnitude(of)
    return math.sqrt(
        _xp.number(_xp.norm2(apart / unit)).real
        / _xp.number(_xp.positive(_xp.norm2(of / unit))).real
    )


def _if_inexact(apart: float, eps: float) -> str:
    """What else a small difference may mean."""
    if not 1e3 * eps < apart < 1e-2:
        return ""
    return (
        f"; they are off by {apart:.1g}, as inexact products, such as an iterative solver's, are: "
        f"then tighten the solver's tolerance below {eps ** (1 / 3):.0g}"
    )


def _off_diagonal(x: Array, relative_to: Array | float, floor: float) -> Array:
    """`x`, no smaller than a multiple of `relative_to`, and that on the diagonal."""
    xp = _xp.namespace(x)
    top = xp.zeros_like(x) + relative_to
    eye = _xp.eye_like(x, x.shape[0])
    return xp.where((x < floor * top) | (eye > 0), xp.where(eye > 0, top, floor * top), x)


def _mean_of_others(pairs: Array) -> Array:
    """For each row the mean of its off-diagonal entries."""
    xp, b = _xp.namespace(pairs), pairs.shape[0]
    eye = _xp.eye_like(pairs, b)
    return xp.sum(xp.where(_xp.real(eye) > 0, xp.zeros_like(pairs), pairs), axis=1) / (b - 1)


def _t(X: Array) -> Array:
    return _xp.namespace(X).matrix_transpose(X)
