"""Columns of a Hadamard matrix, by the parity of common bits."""

from __future__ import annotations

from .._arrays import Array, namespace


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
