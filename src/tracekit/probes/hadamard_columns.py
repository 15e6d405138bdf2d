"""Columns of a Hadamard matrix, by the parity of common bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._arrays import Array, Rows, namespace


def hadamard_columns(columns: Array, rows: list[Array], low: int) -> Array:
    """Signs of columns (k,) at the rows ``high 2^low + low``, as (k, rows).

    An entry is a product of one sign for each half of the bits: `rows` are the numbers of both.
    """
    high, both = signs_of(columns >> low, rows[0]), signs_of(columns, rows[1])
    xp = namespace(columns)
    return xp.reshape(high[:, :, None] * both[:, None, :], (columns.shape[0], -1))


def signs_of(columns: Array, rows: Array) -> Array:
    """Signs (-1)^popcount(row & column)."""
    parity = columns[:, None] & rows[None, :]
    for shift in (16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return 1 - 2 * (parity & 1)


def hadamard_stream(source: Any, n: int, m: int) -> Callable[[int], Array]:
    """A function that hands out the next of m random columns, with random phases of their rows."""
    order = 2 ** (bits := (n - 1).bit_length())
    if m > order:
        raise ValueError(f"a Hadamard matrix of order {order} has no {m} columns; pass at most {n}")
    xp, low = source.xp, bits // 2
    phases = source.signs((n, 1))
    columns, held = source.distinct(order, m), source.held(n)
    first, some = held.start >> low, columns_of(columns[None, :])
    spans = (first, -(-held.stop >> low)), (0, 1 << low)
    rows = [xp.arange(*span, dtype=columns.dtype, device=source.device) for span in spans]
    if source.layout is not None and not isinstance(source.layout, Rows):
        rows[0] = xp.astype(source.layout.rows(spans[0][1])[:, 0], columns.dtype)
    cut = slice(held.start - (first << low), held.stop - (first << low))

    def take(k: int) -> Array:
        signs = hadamard_columns(some(k)[0, :], rows, low)[:, cut]
        drawn = xp.matrix_transpose(xp.astype(signs, phases.dtype))
        return source.whole(drawn, n) * phases

    return take


def columns_of(Omega: Array) -> Callable[[int], Array]:
    """A function that hands out the next columns of an array."""
    done = 0

    def take(k: int) -> Array:
        nonlocal done
        done += k
        return Omega[:, done - k : done]

    return take
