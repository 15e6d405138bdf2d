"""Columns and outputs in chunks that bound the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracekit._arrays import Array, Product

from . import checks

BYTES_AT_ONCE = 2**28  # of tangents and cotangents, where no chunk size is asked for


def cut(rows: Array, sizes: Sequence[int], leaves: Sequence[Array], xp: Any) -> list[Array]:
    """Rows of flat parameters, (k, P), as one array (k, ...) for each leaf."""
    parts, start = [], 0
    for size, leaf in zip(sizes, leaves, strict=True):
        parts.append(xp.reshape(rows[:, start : start + size], (rows.shape[0], *leaf.shape)))
        start += size
    return parts


def itemsize(dtype: Any, xp: Any) -> int:
    """Bytes of a number."""
    return int(xp.finfo(dtype).bits) // 8 * (2 if xp.isdtype(dtype, "complex floating") else 1)


def chunk(chunk_size: Any, floats: int, itemsize: int, most: int = BYTES_AT_ONCE) -> int:
    """Columns at once: as asked, or as many as keep within the memory meant for them."""
    if chunk_size is None:
        return max(1, most // (itemsize * max(floats, 1)))
    return checks.positive("chunk_size", chunk_size)


def in_chunks(product: Product, size: int, xp: Any) -> Product:
    """The same product, `size` columns at a time."""

    def run(X: Array) -> Array:
        k = X.shape[-1]
        if k <= size:
            return product(X)
        parts = [product(X[..., i : min(i + size, k)]) for i in range(0, k, size)]
        return xp.concat(parts, axis=-1)

    return run
