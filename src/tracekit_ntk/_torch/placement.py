"""Where samples are in what a network's operations give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tracekit._arrays import Array

from .cotangents import Cotangents
from .noted import Noted


class Place(NamedTuple):
    """Which axis of the positions runs over the samples, and what else it runs over."""

    axis: int
    outer: int
    inner: int


class Placement:
    """Finds the samples in the output of every operation that reads a parameter."""

    def __init__(self, noted: Noted, check: Cotangents, samples: int) -> None:
        self._noted, self._check, self._samples = noted, check, samples
        self._places: dict[int, Place] = {}

    def find(self, grads: Sequence[Array | None]) -> tuple[list[int], list[int]]:
        """From derivatives for the check's rows: reads that mix samples, others without an axis."""
        self._places = {}
        if self._samples == 1:
            return [], []
        keys: dict[int, Any] = {}
        arranged: dict[Any, tuple[Array, int]] = {}
        numbered = zip(self._noted.reads, self._noted.edge_numbers, strict=True)
        for i, (read, k) in enumerate(numbered):
            if (G := grads[k]) is not None:
                A = read.arrange(G)
                view = A.untyped_storage().data_ptr() == G.untyped_storage().data_ptr()
                same = id(G), A.shape, A.stride(), A.storage_offset(), read.positions
                keys[i] = same if view else i  # a bias is read where its weight is
                arranged.setdefault(keys[i], (A, read.positions))
        found = dict(zip(arranged, self._of([*arranged.values()]), strict=True))
        self._places = {i: place for i, key in keys.items() if (place := found[key]) is not None}
        lost = [i for i in keys if i not in self._places]
        mixed = [i for i in lost if self._meets(grads[self._noted.edge_numbers[i]])]
        return mixed, [i for i in lost if i not in mixed]

    def by_sample(self, i: int, t: Array, lead: int) -> Array:
        """Data (0 axes before the positions) or derivatives (1) of a read, samples first."""
        return by_sample(
            t, self._noted.reads[i].positions, self._places.get(i), lead, self._samples
        )

    def _meets(self, G: Array | None) -> bool:
        """Whether outputs of both halves of the samples depend on one entry."""
        return G is not None and bool(((G[0] != 0) & (G[1] != 0)).any())

    def _of(self, arranged: Sequence[tuple[Array, int]]) -> list[Place | None]:
        """For arrays G (3, *positions, ...): the first axis where every sample has its own part."""
        N = len(self._check.parts)
        alike: dict[Any, list[int]] = {}  # most operations have arrays of one shape
        for i, (G, n) in enumerate(arranged):
            if n and G.shape[1] % N == 0:
                alike.setdefault((tuple(G.shape), G.dtype, n), []).append(i)
        found: list[Place | None] = [None] * len(arranged)
        for (shape, _, n), which in alike.items():
            place = Place(0, 1, shape[1] // N)
            norms = self._norms(torch.stack([arranged[i][0] for i in which], 1), n, place)
            for i, right in zip(which, self._right(norms), strict=True):
                found[i] = place if right else None
        return [
            self._searched(G, n) if place is None else place
            for place, (G, n) in zip(found, arranged, strict=True)
        ]

    def _searched(self, G: Array, positions: int) -> Place | None:
        N = len(self._check.parts)
        for axis, size in enumerate(G.shape[1 : 1 + positions]):
            for outer in dict.fromkeys((1, size // N)) if size % N == 0 else ():
                place = Place(axis, outer, size // N // outer)
                if self._right(self._norms(G[:, None], positions, place))[0]:
                    return place
        return None

    def _norms(self, G: Array, positions: int, place: Place) -> Array:
        """Of arrays (3, count, *positions, ...): the sizes of their parts, (count, N, 3)."""
        N = len(self._check.parts)
        by = by_sample(G, positions, place, 2, N).flatten(3)  # N, 3, count, numbers
        by = torch.matmul(self._check.parts.to(by), by.flatten(2)).reshape(by.shape)
        return torch.linalg.vector_norm(by, dim=-1).permute(2, 0, 1).double()

    def _right(self, norms: Array) -> list[bool]:
        """Of each (N, 3): whether there is none of others, and all cancels but rounding."""
        none, cancel, own = norms.unbind(-1)
        floor = own.amax(-1, keepdim=True) * self._check.precision
        holds = (none == 0) & (cancel <= self._check.tolerance * own + floor)
        return holds.all(-1).tolist()  # type: ignore[no-any-return]


def by_sample(t: Array, positions: int, place: Place | None, lead: int, N: int) -> Array:
    """Samples first, then the leading axes, all other positions as one, and the rest."""
    tail = t.shape[lead + positions :]
    if N == 1 or place is None:
        return t.reshape(1, *t.shape[:lead], -1, *tail)
    axis = lead + place.axis
    t = t.reshape(*t.shape[:axis], place.outer, N, place.inner, *t.shape[axis + 1 :])
    t = t.movedim(axis + 1, 0)
    return t.reshape(N, *t.shape[1 : 1 + lead], -1, *tail)
