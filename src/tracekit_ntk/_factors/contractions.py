r"""Arrays of uses in canonical axes, and the products that kernels are made of.

With A the products of what was read (over positions s, t) and G the cotangents, a kernel is
``K[n, m, o, p] = sum_st A[n, s, m, t] <G[n, o, s], G[m, p, t]>``. Every function here works on
arrays of canonical axes, in which B are samples that are paired rather than crossed and D are
outputs of which only equal ones meet; outputs that are summed over are folded into w:

    X (B, N, g, S, d)    ids (B, N, S)    G (B, D, N, R, g, S, w)    J (B, D, N, R, P)
    kernel (B, D, N1, N2, R1, R2)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tracekit._arrays import Array, abs2, conj, namespace

from .uses import Dense, Lookup, Outer, Shared, Use

NUMBERS_AT_ONCE = 2**24  # of intermediate arrays, in one tile


class Form(NamedTuple):
    """Which part of a kernel is wanted, for outputs in the order (diagonal, traced, crossed)."""

    diagonal: int = 1  # outputs of which only equal ones meet
    traced: int = 1  # outputs that are summed over
    paired: bool = False  # samples meet themselves only


@dataclass(frozen=True, eq=False)
class Side:
    """One use in canonical axes; `X`, `ids` or neither (explicit: G is J with g = S = 1)."""

    X: Array | None
    ids: Array | None
    G: Array
    input_first: bool
    depth: int  # d, or the rows of a table

    @property
    def sizes(self) -> tuple[int, ...]:
        """B, D, N, R, g, S, w."""
        return tuple(self.G.shape)


def canonical(use: Use, form: Form) -> Side:
    """Bring the arrays of a use to canonical axes."""
    if isinstance(use, Dense):
        J = use.J[:, :, None, None, :]
        return Side(None, None, _fold(J, form), True, 1)
    if isinstance(use, Lookup):
        ids = use.ids[:, None, :] if form.paired else use.ids[None, ...]
        return Side(None, ids, _fold(use.G[:, :, None, :, :], form), True, use.rows)
    X = use.X[:, None, ...] if form.paired else use.X[None, ...]
    return Side(X, None, _fold(use.G, form), use.input_first, int(use.X.shape[3]))


def _fold(G: Array, form: Form) -> Array:
    xp = namespace(G)
    N, M, g, S, w = G.shape
    D, T = form.diagonal, form.traced
    shape = (N, D, T, M // (D * T), g, S, w)
    if form.paired:
        G = _permuted(G, shape, (0, 1, 3, 4, 5, 2, 6))
        return xp.reshape(G, (N, D, 1, -1, g, S, T * w))
    return xp.reshape(_permuted(G, shape, (1, 0, 3, 4, 5, 2, 6)), (1, D, N, -1, g, S, T * w))


def _permuted(G: Array, shape: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """An array of this shape in another order of axes, those of length one left out.

    Compilers cancel an order against the one that made G only where no other axes lie between.
    """
    xp, kept = namespace(G), [k for k, n in enumerate(shape) if n != 1]
    G = xp.reshape(G, tuple(shape[k] for k in kept))
    return xp.permute_dims(G, tuple(kept.index(k) for k in order if k in kept))


def gram_gram(p: Side, q: Side) -> Array:
    xp = namespace(p.G, q.G)
    B, D, N1, R1, g, S1, w = p.sizes
    _, _, N2, R2, _, S2, _ = q.sizes
    G1 = xp.reshape(xp.permute_dims(p.G, (0, 1, 4, 2, 3, 5, 6)), (B, D, g, N1 * R1 * S1, w))
    G2 = xp.reshape(xp.permute_dims(q.G, (0, 1, 4, 2, 3, 5, 6)), (B, D, g, N2 * R2 * S2, w))
    products = xp.reshape(_cross(G1, G2), (B, D, g, N1, R1, S1, N2, R2, S2))
    A = xp.reshape(_pairs(p, q), (B, 1, g, N1, 1, S1, N2, 1, S2))
    K = products * A
    if (g, S1, S2) != (1, 1, 1):
        K = xp.sum(K, axis=(2, 5, 8))
        return xp.permute_dims(K, (0, 1, 2, 4, 3, 5))
    return xp.permute_dims(xp.reshape(K, (B, D, N1, R1, N2, R2)), (0, 1, 2, 4, 3, 5))


def apply(p: Side, q: Side) -> Array:
    """Sum over the positions of the first use: (B, g, N1, N2, S2, D, R1, w)."""
    xp = namespace(p.G, q.G)
    B, D, N1, R1, g, S1, w = p.sizes
    N2, S2 = q.sizes[2], q.sizes[5]
    A = xp.reshape(_pairs(p, q), (B, g, N1, S1, N2 * S2))
    G1 = xp.reshape(xp.permute_dims(p.G, (0, 4, 2, 5, 1, 3, 6)), (B, g, N1, S1, D * R1 * w))
    H = xp.matmul(xp.matrix_transpose(A), G1)
    return xp.reshape(H, (B, g, N1, N2, S2, D, R1, w))


def left_to_right(p: Side, q: Side) -> Array:
    """The same as `apply`, by way of the first Jacobian."""
    xp = namespace(p.G, q.G)
    B, D, N1, R1, g, _, w = p.sizes
    N2, S2, d = q.sizes[2], q.sizes[5], p.depth
    J = xp.reshape(_outer(p), (B, N1, g, 1, d, D * R1 * w))
    X = xp.permute_dims(conj(q.X), (0, 2, 1, 3, 4))  # B g N2 S2 d
    X = xp.reshape(X, (B, 1, g, 1, N2 * S2, d))
    H = xp.reshape(xp.matmul(X, J), (B, N1, g, N2, S2, D, R1, w))
    return xp.permute_dims(H, (0, 2, 1, 3, 4, 5, 6, 7))


def finish(start: Callable[[Side, Side], Array], p: Side, q: Side) -> Array:
    """Contract what `apply` or `left_to_right` gives with the cotangents of the second use."""
    H = start(p, q)
    xp = namespace(H, q.G)
    B, g, N1, N2, S2, D, R1, w = H.shape
    R2 = q.sizes[3]
    H = xp.reshape(xp.permute_dims(H, (0, 5, 3, 2, 6, 1, 4, 7)), (B, D, N2, N1 * R1, g * S2 * w))
    G2 = xp.reshape(conj(q.G), (B, D, N2, R2, g * S2 * w))
    K = xp.reshape(_cross(H, G2, conjugated=False), (B, D, N2, N1, R1, R2))
    return xp.permute_dims(K, (0, 1, 3, 2, 4, 5))


def outside_in(p: Side, q: Side) -> Array:
    """By both Jacobians, as many of the parameter's rows at once as the memory is to hold."""
    held = sum(math.prod(s.sizes) // s.sizes[5] for s in ({p, q})) * p.depth
    step = -(-p.depth // -(-held // NUMBERS_AT_ONCE))
    total = None
    for low in range(0, p.depth, step):
        first = _rows_of(p, low, step)
        J = _jacobian(first)
        K = of_jacobians(J, J if p is q else _jacobian(_rows_of(q, low, step)))
        total = K if total is None else total + K
    return total


def _rows_of(p: Side, low: int, count: int) -> Side:
    if count >= p.depth:
        return p
    X = p.X[..., low : low + count]  # type: ignore[index]
    return replace(p, X=X, depth=int(X.shape[-1]))


def of_jacobians(J1: Array, J2: Array) -> Array:
    xp = namespace(J1, J2)
    B, D, N1, R1, P = J1.shape
    N2, R2 = J2.shape[2:4]
    K = _cross(xp.reshape(J1, (B, D, N1 * R1, P)), xp.reshape(J2, (B, D, N2 * R2, P)))
    return xp.permute_dims(xp.reshape(K, (B, D, N1, R1, N2, R2)), (0, 1, 2, 4, 3, 5))


def _jacobian(p: Side) -> Array:
    """(B, D, N, R, g d w)."""
    xp = namespace(p.G)
    B, D, N, R, g, _, w = p.sizes
    J = xp.reshape(_outer(p), (B, N, g, p.depth, D, R, w))
    return xp.reshape(xp.permute_dims(J, (0, 4, 1, 5, 2, 3, 6)), (B, D, N, R, g * p.depth * w))


def _outer(p: Side) -> Array:
    """(B, N, g, d, D R w)."""
    xp = namespace(p.G)
    B, D, N, R, g, S, w = p.sizes
    G = xp.reshape(xp.permute_dims(p.G, (0, 2, 4, 5, 1, 3, 6)), (B, N, g, S, D * R * w))
    return xp.matmul(xp.matrix_transpose(p.X), G)


def _pairs(p: Side, q: Side) -> Array:
    """Products of what two uses read, (B, g, N1 S1, N2 S2)."""
    xp = namespace(p.G, q.G)
    if p.ids is not None and q.ids is not None:
        B = p.ids.shape[0]
        first, second = (xp.reshape(ids, (B, 1, -1)) for ids in (p.ids, q.ids))
        return xp.astype(first[:, :, :, None] == second[:, :, None, :], p.G.dtype)
    if p.ids is not None:
        return dots(p, _rows(conj(q.X)))
    if q.ids is not None:
        return xp.matrix_transpose(dots(q, _rows(p.X)))
    return _cross(_rows(p.X), _rows(q.X))


def _rows(X: Array) -> Array:
    """(B, N, g, S, d) as (B, g, N S, d)."""
    xp = namespace(X)
    B, N, g, S, d = X.shape
    return xp.reshape(xp.permute_dims(X, (0, 2, 1, 3, 4)), (B, g, N * S, d))


def squares(use: Outer | Dense) -> Array:
    """Traces of explicit Jacobians, or of single outer products: squared lengths, multiplied."""
    if isinstance(use, Dense):
        trace = (use.shared or Shared(use.J)).squared_lengths
    elif use.G.shape[2] == 1:
        read = namespace(use.X).sum(abs2(use.X), axis=(1, 2, 3))
        trace = read * (use.shared or Shared(use.G)).squared_lengths
    else:
        xp = namespace(use.X, use.G)
        read = xp.sum(abs2(use.X), axis=(2, 3))
        trace = xp.sum(read * xp.sum(abs2(use.G), axis=(1, 3, 4)), axis=1)
    return trace[:, None, None, None, None, None]


def cotangents(G: Array) -> Array:
    """(B, D, N, R, g, S, w) as (B, g, D N R S, w)."""
    xp = namespace(G)
    B, D, N, R, g, S, w = G.shape
    return xp.reshape(xp.permute_dims(G, (0, 4, 1, 2, 3, 5, 6)), (B, g, D * N * R * S, w))


def dots(p: Side, Z: Array) -> Array:
    """Products of what was read with (B, g, M, d), without conjugation: (B, g, N S, M)."""
    xp = namespace(Z)
    if p.ids is None:
        return _cross(_rows(p.X), Z, conjugated=False)
    B, _, M, _ = Z.shape
    ids = xp.reshape(p.ids, (B, 1, 1, -1))
    where = xp.broadcast_to(ids, (B, 1, M, ids.shape[3]))
    return xp.matrix_transpose(xp.take_along_axis(Z, where, axis=3))


def _cross(a: Array, b: Array, *, conjugated: bool = True) -> Array:
    """``a @ b^H`` on the last two axes; a product of single rows is a sum."""
    xp = namespace(a, b)
    b = conj(b) if conjugated else b
    if a.shape[-2] == b.shape[-2] == 1:
        return xp.sum(a * b, axis=-1)[..., None]
    if math.prod(a.shape[:-2]) == math.prod(b.shape[:-2]) == 1:  # one product: no batch of them
        K = xp.matmul(xp.reshape(a, a.shape[-2:]), xp.matrix_transpose(xp.reshape(b, b.shape[-2:])))
        return xp.reshape(K, (*a.shape[:-2], *K.shape))
    return xp.matmul(a, xp.matrix_transpose(b))
