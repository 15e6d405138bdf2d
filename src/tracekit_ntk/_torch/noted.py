"""All reads of a network: which are of one kind, and what their parameters were multiplied by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from tracekit._arrays import Array

from .._factors import Use
from .reads import Read
from .reverse import Edge

Part = tuple[int, Array]  # the number of a read, and derivatives by what its operation gave


class Noted:
    """The reads that a run noted, and the edges of the graph where their outputs are."""

    def __init__(self, reads: Sequence[tuple[Read, Edge]], graph: bool) -> None:
        self.reads = [read for read, _ in reads]
        self.edges = list(dict.fromkeys(edge for _, edge in reads))
        number = {edge: k for k, edge in enumerate(self.edges)}
        self.edge_numbers = [number[edge] for _, edge in reads]
        self.sizes = {k: r.out.numel() for k, r in zip(self.edge_numbers, self.reads, strict=True)}
        self._graph = graph
        self._data: dict[int, Any] = {}

    def by_kind(
        self, grads: Sequence[Array | None], missed: Collection[str]
    ) -> dict[str, list[list[Part]]]:
        """For each parameter its reads with their derivatives, those of one kind together."""
        kinds: dict[Any, list[Part]] = {}
        for i, (read, k) in enumerate(zip(self.reads, self.edge_numbers, strict=True)):
            G = grads[k]
            if G is not None and read.seen.name not in missed:
                key = read.seen.name, i if read.kind is None else read.kind
                kinds.setdefault(key, []).append((i, G))
        found: dict[str, list[list[Part]]] = {}
        for (name, _), parts in kinds.items():
            found.setdefault(name, []).append(parts)
        return found

    def take(self, i: int) -> Any:
        """What an operation multiplied its parameter by, which is not kept from then on."""
        return self._data.pop(i) if i in self._data else self._made(i)

    def whole_use(self, parts: Sequence[Part], *, absolute: bool = False) -> Use:
        """Reads of one kind by all samples as if they were one, or that of absolute values."""
        data: list[Any] = []
        given: list[Array] = []
        for i, G in parts:
            if i not in self._data:
                self._data[i] = self._made(i)
            read, Z, G = self.reads[i], self._data[i], self.reads[i].arrange(G)
            if read.positions:
                Z = Z if Z is None else Z.flatten(0, read.positions - 1)
                G = G.flatten(1, read.positions)
            else:
                Z, G = Z if Z is None else Z[None], G[:, None]
            data.append(Z if Z is None else Z[None])
            given.append(in_precision(G, read))
        X: Any = data[0] if len(data) == 1 or data[0] is None else torch.cat(data, 1)
        G = (given[0] if len(given) == 1 else torch.cat(given, 1))[None]
        if absolute:
            number = X is not None and (X.is_floating_point() or X.is_complex())
            X, G = X.abs() if number else X, G.abs()
        return self.reads[parts[0][0]].use(X, G)

    def _made(self, i: int) -> Any:
        """What an operation multiplied its parameter by, in the parameter's precision."""
        read = self.reads[i]
        with torch.set_grad_enabled(self._graph):
            X = read.data() if callable(read.data) else read.data
        if X is None:
            return X
        X = X if self._graph else X.detach()
        return in_precision(X, read) if X.is_floating_point() or X.is_complex() else X


def in_precision(X: Array, read: Read) -> Array:
    """Numbers in the precision of the parameter that was read."""
    own = read.seen.storage_view.dtype
    return X.to(own.to_complex() if X.is_complex() else own)
