"""Random signs for the rows and columns of every parameter, the same whatever reads it."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt, prod
from typing import Any, TypeAlias

import tracekit as tk
from tracekit._arrays import Array, ArraySpace, Rng, device_of, namespace, real

from .._backend import adapter
from .._factors import spans
from .._kernel import zeros

CELLS, LARGEST_SIDE = 64, 8
THIN, SMALL = 8, 2**14  # matrices of fewer rows or columns, if no larger, are folded
NUMBERS_DRAWN = 2**25  # signs of all parameters at once

Signs: TypeAlias = dict[str, tuple[Array, Array]]  # (rows, m) and (columns, m) of each parameter


def side_of(dim: int) -> int:
    """Vectors along each side of a cell: as many as leave 64 cells, which are independent."""
    side = 1
    while side < LARGEST_SIDE and CELLS * (2 * side) ** 2 <= dim:
        side *= 2
    return side


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that a parameter is projected as, by its shape alone.

    The first axis and the others, or the others and the last, as in most layers; what is no matrix,
    or a small thin one, is folded to a square, the last row of which may be incomplete.
    """
    size = prod(shape)
    if len(shape) > 1 and size:
        first, last = (shape[0], size // shape[0]), (size // shape[-1], shape[-1])
        found = min(first, last, key=sum)
        if min(found) >= THIN or size > SMALL:
            return found
    columns = max(1, isqrt(size))
    return -(-size // columns), columns


class Vectors:
    """A stream of cells: side vectors for the rows of every parameter, side for its columns.

    Parameters are in the order of their names, which no library changes. Column t of all
    vectors together is column t of the stream of `rng`, however many are drawn at a time: neither
    samples nor what reads a parameter changes them.
    """

    def __init__(self, params: Any, rng: Rng, side: int) -> None:
        named = sorted(adapter(params).leaves(params), key=lambda leaf: leaf[0])
        self.side = side
        self.matrices = {name: matrix_of(tuple(leaf.shape)) for name, leaf in named}
        self._height = sum(map(sum, self.matrices.values()))
        like = real(zeros(params, ()))
        space = ArraySpace(like.dtype, namespace(like), device_of(like))
        self._source = tk.probes.Source(rng, space)

    def draw(self, cells: int) -> Iterator[Signs]:
        """The signs of the next cells, in blocks that bound the memory."""
        step = max(1, NUMBERS_DRAWN // max(1, self._height * self.side))
        for low, high in spans(cells, step):
            signs = self._source.signs((self._height, (high - low) * self.side))
            found, start = {}, 0
            for name, (rows, columns) in self.matrices.items():
                middle, stop = start + rows, start + rows + columns
                found[name] = signs[start:middle, :], signs[middle:stop, :]
                start = stop
            yield found
