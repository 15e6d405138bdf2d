"""Probes of every sample's own: what a distribution draws for each sample of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tracekit as tk
from tracekit._arrays import Array, Probes

INDEPENDENT_ENTRIES = (tk.probes.rademacher, tk.probes.normal)


def for_samples(probes: Any, N: int) -> Probes:
    """The distribution of N tiles, each drawn by itself, and all at once wherever that can be."""
    if probes is tk.probes.hadamard:
        return _hadamard(N)
    if probes in INDEPENDENT_ENTRIES:
        return probes  # type: ignore[no-any-return]
    if not callable(probes) or getattr(probes, "joint", False):
        return tk.probes.tiled(probes, N)
    return _independent_columns(probes, N)


def _independent_columns(probes: Probes, N: int) -> Probes:
    """Tiles of columns that do not depend on each other: N columns of one block for each."""

    def drawn(source: Any, n: int, m: int) -> Array:
        D, xp = n // N, source.xp
        X = probes(source, D, N * m)
        if getattr(X, "shape", None) != (D, N * m):
            return X  # refused where it is drawn for
        return xp.reshape(xp.permute_dims(xp.reshape(X, (D, m, N)), (2, 0, 1)), (n, m))

    drawn.tiles = probes  # type: ignore[attr-defined]
    return drawn


def _hadamard(N: int) -> Probes:
    """Tiles of distinct random columns of a Hadamard matrix, rows given random signs."""

    def order(n: int) -> int:
        return int(2 ** (n // N - 1).bit_length())

    def start(source: Any, n: int, m: int) -> Callable[[int], Array]:
        xp, D, size, done = source.xp, n // N, order(n), 0
        signs = _numbers(source.signs, (N, D), xp)
        shuffled = xp.argsort(_numbers(source.normal, (N, size), xp), axis=1)
        numbers = xp.astype(xp.matrix_transpose(shuffled[:, :m]), xp.int32)

        def rows(numbers: Array) -> Array:
            """Columns of the Hadamard matrix as rows, D entries of each."""
            at = xp.arange(D, dtype=xp.int32, device=source.device)
            common = numbers[:, None] & at[None, :]
            for shift in (16, 8, 4, 2, 1):
                common = common ^ (common >> shift) if 2**shift < 2 * size else common
            return xp.astype(1 - 2 * (common & 1), source.dtype)

        def take(k: int) -> Array:
            nonlocal done
            done += k
            some = xp.reshape(numbers[done - k : done, :], (k * N,))
            if size <= k * N:
                every = xp.arange(size, dtype=xp.int32, device=source.device)
                drawn = xp.take(rows(every), some, axis=0)
            else:
                drawn = rows(some)
            return xp.matrix_transpose(xp.reshape(xp.reshape(drawn, (k, N, D)) * signs, (k, n)))

        return take

    def drawn(source: Any, n: int, m: int) -> Array:
        return start(source, n, m)(m)

    drawn.joint, drawn.tiles = True, tk.probes.hadamard  # type: ignore[attr-defined]
    drawn.population, drawn.stream = order, start  # type: ignore[attr-defined]
    return drawn


def _numbers(draw: Callable[[tuple[int, int]], Array], shape: tuple[int, int], xp: Any) -> Array:
    """Numbers of a distribution, all those that generators draw at a time, which is 32 columns."""
    count = shape[0] * shape[1]
    drawn = xp.reshape(draw((-(-count // 32), 32)), (-1,))
    return xp.reshape(drawn[:count], shape)
