"""Projections of the Jacobians of some batches, by the same vectors, that can grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from tracekit._arrays import Array, Rng, namespace

from .._factors import Uses, spans
from .._kernel import chunk_of, cotangent_columns, zeros
from ..factors import Capture
from .contractions import projected
from .vectors import Vectors, side_of


class Batch:
    """Samples in factored form: all of their outputs, or one combination of them."""

    def __init__(self, found: Capture, params: Any, cotangent: Any = None) -> None:
        self.found, self.params = found, params
        self.V = None if cotangent is None else cotangent_columns(found, params, cotangent)
        self.spans = spans(found.outputs, chunk_of(found, None))
        self.shape = found.output_shape if cotangent is None else ()

    def project(self, signs: Any, side: int, width: int) -> Array:
        """Columns (N, O, width) of the next cells."""
        parts = []
        for outputs, uses in self._uses():
            found = projected(uses, signs, side)
            shape = (self.found.samples, outputs, width)
            parts.append(zeros(self.params, shape) if found is None else found)
        return parts[0] if len(parts) == 1 else namespace(*parts).concat(parts, axis=1)

    def _uses(self) -> Iterator[tuple[int, Uses]]:
        if self.V is not None or len(self.spans) == 1:
            yield self._at_once
            return
        for low, high in self.spans:
            yield high - low, self.found.uses(low, high)

    @cached_property
    def _at_once(self) -> tuple[int, Uses]:
        if self.V is not None:
            return 1, self.found.combined(self.V)
        return self.found.outputs, self.found.uses(0, self.found.outputs)


class Projections:
    """Columns of each batch, of variance one: `blocks[k]` of batch k are (N, O, columns)."""

    def __init__(self, params: Any, batches: Sequence[Batch], rng: Rng, dim: int) -> None:
        self.side, self.cells = side_of(dim), 0  # `dim` may be exceeded later
        self._vectors = Vectors(params, rng, self.side)
        self._batches = batches
        self._blocks: list[list[Array]] = [[] for _ in batches]

    def columns(self, dim: int) -> list[Array]:
        """The first `dim` columns of each batch, (N, O, dim), of which some may be there."""
        area = self.side**2
        cells = -(-dim // area)
        for signs in self._vectors.draw(cells - self.cells):
            width = next(iter(signs.values()))[0].shape[1] * self.side
            for batch, blocks in zip(self._batches, self._blocks, strict=True):
                blocks.append(batch.project(signs, self.side, width))
        self.cells = max(cells, self.cells)
        for k, blocks in enumerate(self._blocks):
            if len(blocks) > 1:
                self._blocks[k] = [namespace(blocks[0]).concat(blocks, axis=2)]
        return [blocks[0][:, :, :dim] for blocks in self._blocks]
