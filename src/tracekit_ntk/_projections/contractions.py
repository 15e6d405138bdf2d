r"""Uses of a parameter contracted with random vectors.

With the parameter as a matrix, ``J[n, o] = sum_s r[n, o, s] c[n, o, s]^T`` over its positions, and
vectors u for its rows, v for its columns, column (a, b) of a cell is ``u_a^T J v_b``, which is
``sum_s (u_a . r_s) (v_b . c_s)``.
"""

from __future__ import annotations

from typing import NamedTuple

from tracekit._arrays import Array, namespace

from .._factors import (
    NUMBERS_AT_ONCE,
    Dense,
    Lookup,
    Outer,
    Use,
    Uses,
    cotangent,
    pad,
    spans,
    take_samples,
)
from .vectors import Signs


def projected(uses: Uses, signs: Signs, side: int) -> Array | None:
    """All columns of all cells, (N, M, cells side^2); None where no parameter is read."""
    total = None
    for name, found in uses.items():
        for use in found:
            part = _projected(use, *signs[name], side)
            total = part if total is None else total + part
    return total


def _projected(use: Use, U: Array, V: Array, side: int) -> Array:
    """The part of one use, a few samples at a time, or for one sample a few cells."""
    width = int(V.shape[0])
    N, m = int(cotangent(use).shape[0]), int(V.shape[1])
    form = not isinstance(use, Dense) and _is_formed(use, width, m)
    fixed, each = _numbers(use, width, form)
    columns = max(1, NUMBERS_AT_ONCE // (each * side)) * side
    step = max(1, NUMBERS_AT_ONCE // (fixed + each * min(columns, m)))
    rows = []
    for low, high in spans(N, step):
        part = use if step >= N else take_samples(use, low, high)
        part = Dense(part.dense(), part.start) if form else part
        cells = [
            _cells(_sides(part, U[:, i:j], V[:, i:j]), side)
            for i, j in ([(0, m)] if columns >= m else spans(m, columns))
        ]
        rows.append(_joined(cells, 2))
    return _joined(rows, 0)


class Sizes(NamedTuple):
    """Of a use that sees rows and columns of the parameter."""

    M: int
    g: int
    S: int
    d: int  # 0 for tables, whose products are gathered
    w: int


def _is_formed(use: Outer | Lookup, width: int, m: int) -> bool:
    """Whether gradients of a few samples are formed: for less work, or other rows and columns."""
    s = _sizes(use)
    minor = s.w if isinstance(use, Lookup) or use.input_first else s.d
    if minor != width or use.start % width:
        return True
    if isinstance(use, Lookup):
        return False
    return s.M * use.size * (s.S + m) < s.g * s.S * (s.d + s.M * s.w + s.M) * m


def _numbers(use: Use, width: int, form: bool) -> tuple[int, int]:
    """Numbers that a sample makes: as they are, and for each vector."""
    if isinstance(use, Dense) or form:
        M = int(cotangent(use).shape[1])
        aligned = not form and use.start % width == use.size % width == 0
        return 0 if aligned else 2 * M * use.size, 2 * M * (use.size // width + 2)
    s = _sizes(use)
    return 0, 2 * s.g * s.S * (1 + s.M)


def _sizes(use: Outer | Lookup) -> Sizes:
    M, S, w = (int(use.G.shape[k]) for k in (1, -2, -1))
    if isinstance(use, Lookup):
        return Sizes(M, 1, S, 0, w)
    return Sizes(M, int(use.X.shape[1]), S, int(use.X.shape[3]), w)


class Sides(NamedTuple):
    """Products with what was read (N or 1, S, m) and with cotangents (N, M, S, m)."""

    read: Array
    given: Array
    rows_first: bool  # whether the vectors of the rows met what was read


def _sides(use: Use, U: Array, V: Array) -> Sides:
    xp, width = namespace(cotangent(use)), int(V.shape[0])
    if isinstance(use, Dense):
        first, last = use.start // width, -(-(use.start + use.size) // width)
        N, M, _ = use.J.shape
        J = pad(use.J, use.start - first * width, (last - first) * width)
        J = xp.reshape(J, (N, M, last - first, width))
        return Sides(xp.astype(U[None, first:last, :], J.dtype), _times(J, V), True)
    first = use.start // width
    if isinstance(use, Lookup):
        rows = U[first : first + use.rows, :]
        N, S = use.ids.shape
        found = xp.take(rows, xp.reshape(use.ids, (-1,)), axis=0)
        read = xp.reshape(xp.astype(found, use.G.dtype), (N, S, -1))
        return Sides(read, _times(use.G, V), True)
    N, g, S, d = use.X.shape
    height = d if use.input_first else use.G.shape[4]
    rows = U[first : first + g * height, :]
    rows = rows if g == 1 else xp.reshape(rows, (g, height, -1))
    left, right = (rows, V) if use.input_first else (V, rows)
    read, given = _times(use.X, left), _times(use.G, right)
    M, m = given.shape[1], given.shape[-1]
    read, given = xp.reshape(read, (N, g * S, m)), xp.reshape(given, (N, M, g * S, m))
    return Sides(read, given, use.input_first)


def _times(X: Array, U: Array) -> Array:
    xp = namespace(X, U)
    return xp.matmul(X, xp.astype(U, X.dtype))


def _cells(sides: Sides, side: int) -> Array:
    """Sums over positions of products, for all pairs of vectors of each cell: (N, M, m side)."""
    read, given, rows_first = sides
    xp = namespace(read, given)
    dtype = xp.result_type(read.dtype, given.dtype)
    read, given = (xp.astype(part, dtype, copy=False) for part in (read, given))
    N, M, S, m = given.shape
    if side == 1:
        return xp.sum(read[:, None, :, :] * given, axis=2)
    c = m // side
    A = xp.permute_dims(xp.reshape(read, (-1, S, c, side)), (0, 2, 3, 1))  # n c a S
    B = xp.permute_dims(xp.reshape(given, (N, M, S, c, side)), (0, 3, 2, 1, 4))  # N c S M b
    B = xp.reshape(B, (N, c, S, M * side))
    Z = A * B if S == 1 else xp.matmul(A, B)
    Z = xp.reshape(Z, (N, c, side, M, side))
    Z = xp.permute_dims(Z, (0, 3, 1, 2, 4) if rows_first else (0, 3, 1, 4, 2))
    return xp.reshape(Z, (N, M, m * side))


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else namespace(parts[0]).concat(parts, axis=axis)
