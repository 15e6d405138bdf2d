r"""Cross-fitting: each probe beside the eigenpairs that the Krylov spaces of other probes know.

The probes are dealt into folds. For a fold, V is an orthonormal basis of the Krylov spaces of all
other folds, and :math:`\theta` are the Ritz values of A on it: with
:math:`P = V \theta V^H + \mu (I - V V^H)`, which does not depend on the probes of this fold,
:math:`\mathrm{tr} f(A) = \mathrm{tr} f(P) + E\, \omega^H (f(A) - f(P)) \omega` holds for them
whatever the quality of P, and no product is spent on it. A probe never meets its own space, on
which nothing would be left to estimate.

All is done in the coordinates of one QR decomposition of all bases. What Lanczos knows of A on the
first d - 1 vectors of a basis lies in the d that it has.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .._arrays import (
    Array,
    abs2,
    adjoint,
    coldot,
    colnorm2,
    constant,
    device_of,
    eigh,
    eps_of,
    eye_like,
    householder_qr,
    inner,
    matrix_diagonal,
    namespace,
    positive,
    real,
)
from . import gauss, lanczos
from .lanczos import Krylov
from .preconditioned import PreconditionedKrylov

FOLDS = 4


class Fold(NamedTuple):
    """Some probes, and what the spaces of the others know of the spectrum."""

    members: tuple[int, ...]  # probes
    theta: Array  # (r,): Ritz values on the other spaces
    mu: Array  # one value for the rest of the spectrum
    share: Array  # (r,): squared lengths of the Ritz vectors, at most 1 of orthonormal ones
    energy: Array  # (r, members): of the probes along the Ritz vectors


class Whole(NamedTuple):
    """What all spaces together know: for probes that are none of theirs."""

    Q: Array
    V: Array
    theta: Array
    mu: Array
    lengths: Array | None  # Q^H Q, where lengths of Ritz vectors are not those in coordinates


def dealt(K: Any) -> tuple[list[Fold], Whole | None]:
    """The folds of the probes that the spaces started from, and what is for any other probe.

    Nothing where the spaces are one, or a step deep. Costs a QR decomposition of all
    bases, and eigenvalue problems of their number of columns, one for each fold.
    """
    groups, b = K.rest.shape[0], K.block
    if groups < 2 or K.depth < 2:
        return [], None
    K = K.constant()
    Q, R, images, lengths = _in_coordinates(K)
    known, start = R[:, :, : images.shape[-1]], R[:, :, :b] @ K.below[0]
    folds = []
    for own in (list(range(fold, groups, FOLDS)) for fold in range(min(FOLDS, groups))):
        others = [j for j in range(groups) if j not in own]
        V, theta, mu = _ritz(_columns(known, others), _columns(images, others))
        members = tuple(j * b + i for j in own for i in range(b))
        folds.append(_fold(members, V, theta, mu, _columns(start, own), lengths))
    every = list(range(groups))
    return folds, Whole(Q, *_ritz(_columns(known, every), _columns(images, every)), lengths)


def met(whole: Whole, X: Array, first: int) -> Fold:
    """The fold of further probes X, which are numbered from `first` on."""
    members = tuple(range(first, first + X.shape[1]))
    V, theta, mu, lengths = whole[1:]
    return _fold(members, V, theta, mu, inner(whole.Q, constant(X)), lengths)


def _in_coordinates(K: Krylov) -> tuple[Array, Array, Array, Array | None]:
    """``Q``, and in its coordinates all bases (k, c, d b) and A times all but their last block.

    Last, where the probes of a preconditioned space are its duals, what lengths are in Q.
    """
    xp, groups, b = namespace(K.rest), K.rest.shape[0], K.block

    def beside_each_other(panels: tuple[Array, ...]) -> Array:
        return lanczos.columns(xp.concat(list(panels), axis=-1))

    B, lengths = beside_each_other(K.panels), None
    if isinstance(K, PreconditionedKrylov):
        Q, R = _orthonormal_beside(B, beside_each_other(K.duals))
        lengths = inner(Q, Q) if K.dual_probes else None
    else:
        Q, R = householder_qr(B)
    R = xp.permute_dims(xp.reshape(R, (R.shape[0], groups, -1)), (1, 0, 2))
    T = gauss.compression(K)
    return Q, R, R @ T[:, :, : R.shape[-1] - b], lengths


def _orthonormal_beside(B: Array, duals: Array) -> tuple[Array, Array]:
    """``Q R = B``, Q orthonormal in the inner product that the duals of B tell."""
    xp, G = namespace(B), inner(B, duals)
    x, W = eigh((G + adjoint(G)) / 2)
    root = xp.sqrt(xp.maximum(x, xp.zeros_like(x)))
    fine = x > x.shape[0] * eps_of(x) * xp.max(x)
    root = xp.where(fine, root, xp.zeros_like(root))
    weight = xp.astype(root, W.dtype, copy=False)
    inverse = xp.astype(xp.where(fine, 1 / positive(root), root), W.dtype, copy=False)
    return B @ (W * inverse[None, :]), weight[:, None] * adjoint(W)


def _ritz(B: Array, AB: Array) -> tuple[Array, Array, Array]:
    """Ritz vectors, Ritz values, and the median of these by what is there of each.

    Spaces coincide where Ritz values have converged, so that columns of B are nearly dependent. How
    much is taken of a direction falls smoothly to nothing as it becomes one: a threshold would let
    rounding choose. What is missing of a direction counts as one with a value within the spectrum.
    """
    xp, G = namespace(B), inner(B, B)
    x, W = xp.linalg.eigh((G + adjoint(G)) / 2)
    x = xp.maximum(x, xp.zeros_like(x))
    floor = eps_of(x) ** (2 / 3) * xp.max(x)
    X = W * (x**1.5 / (x * x + floor * floor))[None, :]
    V = B @ X
    H, N = inner(V, AB @ X), inner(V, V)
    middle = xp.sum(real(matrix_diagonal(H))) / xp.sum(real(matrix_diagonal(N)))
    H = H + middle * (eye_like(N, N.shape[0]) - N)
    theta, U = eigh((H + adjoint(H)) / 2)
    V = V @ U
    seen = xp.cumulative_sum(colnorm2(V))  # of what is missing, values are no part of the median
    upper = xp.where(seen >= seen[-1] / 2, theta, xp.full_like(theta, math.inf))
    return V, theta, xp.min(upper)


def _fold(
    members: tuple[int, ...],
    V: Array,
    theta: Array,
    mu: Array,
    probes: Array,
    lengths: Array | None,
) -> Fold:
    share = colnorm2(V) if lengths is None else real(coldot(V, lengths @ V))
    return Fold(members, theta, mu, share, abs2(inner(V, probes)))


def _columns(stack: Array, groups: list[int]) -> Array:
    """The matrices of some groups (k, c, r) side by side."""
    xp = namespace(stack)
    taken = xp.take(stack, xp.asarray(np.array(groups), device=device_of(stack)), axis=0)
    return xp.reshape(xp.permute_dims(taken, (1, 0, 2)), (stack.shape[1], -1))
