r"""Reads traces, squared norms and inner products out of sketches, in closed form.

Leave-one-out samples from a block-Krylov sketch, from XTrace data and from pairs of sketches that
share their probes, and the unbiased quadratic estimators from one Gram matrix of orthogonal probes
(zonal polynomials: they are the only ones that rotation invariance leaves).
"""

from __future__ import annotations

from collections.abc import Sequence

from .._arrays import (
    Array,
    abs2,
    adjoint,
    coldot,
    colnorm2,
    conj,
    eye_like,
    inner,
    matrix_trace,
    namespace,
    positive,
    real,
    triangular_dual,
)
from .leave_one_out import resphered

Pair = tuple[Array, Array]


def krylov(H: Array, W: Array, C: Array, n: int, widths: Sequence[int] = ()) -> tuple[Array, Array]:
    r"""Trace and squared norm of a Hermitian A, once without each probe.

    `Q` is an orthonormal basis of :math:`[\Omega, A \Omega]`, ``H = Q^H A Q``, ``W = Q^H Omega``,
    `C` the upper triangle of the coordinates of both blocks in that basis, n the dimension of A.
    Where a sketch has grown, the columns of C come in pairs of blocks, of probes and of their
    products, of these `widths`. Leaving out probe i
    removes the plane dual to :math:`\omega_i` and :math:`A \omega_i`; with P the projector on what
    is left, the trace is that of P A P plus the resphered quadratic form of the rest, and
    :math:`\|A\|^2 = \|P A P\|^2 + \|A - P A P\|^2`. Hallman (2025), arXiv:2512.02316.
    """
    xp, b = namespace(H), W.shape[1]
    S1, S2 = _dual_planes(C, widths or (b,))
    a1, a2 = coldot(S1, W), coldot(S2, W)  # the probe beyond the others, in the plane
    beyond = _scaled(S1, a1) + _scaled(S2, a2)
    HS1, HS2, Hw = H @ S1, H @ S2, H @ W
    h11, h12, h22 = coldot(S1, HS1), coldot(S1, HS2), coldot(S2, HS2)
    form = real(coldot(beyond, _scaled(HS1, a1) + _scaled(HS2, a2)))
    length = abs2(a1) + abs2(a2)
    within = real(matrix_trace(H)) - real(h11 + h22)
    traces = within + resphered(form, length, n - 2 * (b - 1), n)
    # |P A P|^2, and |(A - P A P) omega|^2
    plane = abs2(h11) + 2 * abs2(h12) + abs2(h22)
    kept = xp.sum(abs2(H)) - 2 * (colnorm2(HS1) + colnorm2(HS2)) + plane
    inside = Hw - _scaled(HS1, a1) - _scaled(HS2, a2)
    parts = [_scaled(S, coldot(S, inside)) for S in (S1, S2)]
    inside = inside - parts[0] - parts[1]
    return traces, kept + colnorm2(Hw - inside)


def krylov_left_out(
    H: Array, W: Array, C: Array, n: int, widths: Sequence[int] = ()
) -> tuple[Array, Array]:
    """The means of the samples of `krylov` without each probe, for the jackknife; O(b^3).

    Without probes i and j the basis loses both planes, whose Gram matrix G is 4 by 4; all else are
    forms of H and of its square on them.
    """
    xp, b = namespace(H), W.shape[1]
    S1, S2 = _dual_planes(C, widths or (b,))
    S = xp.concat([S1, S2], axis=1)
    HS = H @ S
    K, L, M = (_plane_pairs(X, b) for X in (adjoint(S) @ S, adjoint(S) @ HS, adjoint(HS) @ HS))
    own, one = xp.reshape(eye_like(K, b), (b, b, 1, 1)), eye_like(K, 4)[None, None, ...]
    G = K + own * (one - K) + one * 1e-14

    def paired(X: Array) -> Array:
        """What S_j^H makes of column j; S_i^H makes nothing of it."""
        x = xp.stack([coldot(S1, X), coldot(S2, X)], axis=-1)
        x = xp.concat([x * 0.0, x], axis=-1)
        return xp.broadcast_to(xp.reshape(x, (1, b, 4, 1)), (b, b, 4, 1))

    w = paired(W)
    GL, GM, g = (xp.linalg.solve(G, X) for X in (L, M, w))
    u = xp.linalg.solve(G, paired(H @ W) - L @ g)
    form = resphered(_form(g, L @ g), _form(g, w), n - 2 * (b - 2), n)
    traces = real(matrix_trace(H)) - _traces(GL) + form
    inside = _form(g, M @ g) + 2 * _form(g, L @ u) + _form(u, G @ u)
    squares = xp.sum(abs2(H)) - 2 * _traces(GM) + _traces(GL @ GL) + inside
    others = 1 - real(own[:, :, 0, 0])
    left_out = [xp.sum(X * others, axis=1) / (b - 1) for X in (traces, squares)]
    return left_out[0], left_out[1]


def shared(Omega: Array, Q: Array, R: Array, A: Pair, B: Pair) -> Array:
    r"""Inner products :math:`\langle A, B \rangle`, once without each probe, of any square A and B.

    ``Q R`` is the sketch that they share; of each the products ``(A Omega, A Q)`` are given. With P
    the projector on what is left: :math:`\langle A P, B P \rangle` plus the resphered product of
    the remainders :math:`A (I - P) \omega` and :math:`B (I - P) \omega`.
    """
    n, b = Omega.shape
    S = _unit(triangular_dual(R))
    W = inner(Q, Omega)
    own = coldot(S, W)
    C = W - _scaled(S, own)
    length = colnorm2(Omega) - colnorm2(W) + abs2(own)
    (Y1, Z1), (Y2, Z2) = A, B
    M = inner(Z1, Z2)
    within = matrix_trace(M) - coldot(S, M @ S)
    rest = coldot(Y1 - Z1 @ C, Y2 - Z2 @ C)
    return within + resphered(rest, length, n - b + 1, n)


def nystrom_pairs(Omega: Array, A: Pair, B: Pair) -> Array:
    r"""Inner products of two positive semidefinite A and B, once without each probe.

    Of each are given ``F`` with :math:`F F^H` its Nystrom approximation and `R` with
    :math:`A \Omega = F R`. Exact on the approximations, :math:`\langle A \omega, B \omega \rangle`
    of the rest.
    """
    (F1, R1), (F2, R2) = A, B
    S1, S2 = (_unit(triangular_dual(R)) for R in (R1, R2))
    X = inner(F1, F2)
    C1, C2 = (_without(S, inner(F, Omega)) for S, F in ((S1, F1), (S2, F2)))
    XS, XhS = X @ S2, inner(X, S1)
    kept = namespace(X).sum(abs2(X)) - colnorm2(XhS) - colnorm2(XS)
    kept = kept + abs2(coldot(S1, XS))
    return kept + real(coldot(R1, X @ R2) - coldot(C1, X @ C2))


def zonal(tau: Array, kappa: Array, m: int, n: int, *, complex_: bool) -> tuple[Array, Array]:
    r"""Unbiased estimates of :math:`\mathrm{tr}(A B)` and :math:`\mathrm{tr} A \, \mathrm{tr} B`.

    From ``tau = tr K1 tr K2`` and ``kappa = <K1, K2>``, ``K = V^H A V`` with the same m
    Haar-distributed orthonormal columns V of n entries; A and B Hermitian.
    """
    apart = n * (n - 1) / (m * (m - 1)) if m > 1 else 0.0  # of one row nothing is apart
    if complex_:
        sym = (tau + kappa) * (n * (n + 1) / (m * (m + 1)))
        skew = (tau - kappa) * apart
        return (sym - skew) / 2, (sym + skew) / 2
    sym = (tau + 2 * kappa) * (n * (n + 2) / (m * (m + 2)))
    skew = (tau - kappa) * apart
    return (sym - skew) / 3, (sym + 2 * skew) / 3


def halves(C: Array, widths: Sequence[int]) -> tuple[Array, Array]:
    """The columns of probes, and those of their products, of pairs of blocks of these widths."""
    parts: tuple[list[Array], list[Array]] = [], []
    start = 0
    for k in widths:
        for part in parts:
            part.append(C[:, start : start + k])
            start += k
    first, second = (x[0] if len(x) == 1 else namespace(C).concat(x, axis=1) for x in parts)
    return first, second


def _dual_planes(C: Array, widths: Sequence[int]) -> tuple[Array, Array]:
    """An orthonormal pair in the plane dual to a probe and its product, for each probe."""
    S1, S2 = map(_unit, halves(triangular_dual(C), widths))
    for _ in range(2):
        S2 = _unit(S2 - _scaled(S1, coldot(S1, S2)))
    return S1, S2


def _plane_pairs(X: Array, b: int) -> Array:
    """Of a 2 b by 2 b matrix the rows and columns (i, b + i, j, b + j), for every i and j."""
    xp = namespace(X)
    B = xp.permute_dims(xp.reshape(X, (2, b, 2, b)), (1, 3, 0, 2))
    own = xp.stack([B[i, i, :, :] for i in range(b)])
    first = xp.broadcast_to(own[:, None, :, :], B.shape)
    second = xp.broadcast_to(own[None, :, :, :], B.shape)
    upper = xp.concat([first, B], axis=3)
    lower = xp.concat([xp.permute_dims(B, (1, 0, 2, 3)), second], axis=3)
    return xp.concat([upper, lower], axis=2)


def _form(x: Array, y: Array) -> Array:
    return namespace(x).sum(real(conj(x) * y), axis=(-2, -1))


def _traces(X: Array) -> Array:
    return real(namespace(X).linalg.trace(X))


def _unit(S: Array) -> Array:
    return S / namespace(S).sqrt(positive(colnorm2(S)))[None, :]


def _without(S: Array, W: Array) -> Array:
    """Each column of W less its part along the unit column of S."""
    return W - _scaled(S, coldot(S, W))


def _scaled(X: Array, by: Array) -> Array:
    """Each column times a number of its own."""
    return X * by[None, :]
