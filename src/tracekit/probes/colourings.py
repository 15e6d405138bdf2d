"""Colours of vertices such that no two within a distance share one: of graphs, and of grids."""

from __future__ import annotations

import importlib
import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import Array

MOST = 2**13  # lattices of one number of colours that are all tried


@dataclass(frozen=True)
class Grid:
    """A pattern on a grid: its points, in C order, and which of their neighbours they meet."""

    dims: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """How many points there are."""
        return math.prod(self.dims)

    def levels(self) -> Iterator[tuple[Array, int]]:
        """A lattice colour of every point, for distances 1, 2, 3, ... until these are the same.

        Beside each the least number of colours of the next.
        """
        seen = {(0,) * len(self.dims)}
        balls, before = [1], 2
        for distance in itertools.count(1):
            steps = {self._sum(p, o) for p in seen for o in self.offsets} | seen
            balls.append(sum(self._is_central(s) for s in steps))
            # points of a ball of half the distance have colours of their own
            colours = self._lattice(steps, max(balls[distance // 2], before))
            before = int(colours.max()) + 1
            yield colours, max(balls[(distance + 1) // 2], before)
            if len(steps) == len(seen) or before == self.size:
                return
            seen = steps

    def _is_central(self, step: tuple[int, ...]) -> bool:
        """Whether the step and its opposite stay inside from the middle of the grid."""
        return all(abs(x) <= (d - 1) // 2 for x, d in zip(step, self.dims, strict=True))

    def _sum(self, p: tuple[int, ...], o: tuple[int, ...]) -> tuple[int, ...]:
        """A sum of offsets, kept to what the grid holds."""
        moved = (x + y for x, y in zip(p, o, strict=True))
        return tuple(max(-d, min(d, x)) for x, d in zip(moved, self.dims, strict=True))

    def _lattice(self, steps: set[tuple[int, ...]], least: int) -> Array:
        """The least C, and a, with ``(a . x) mod C`` of its own at all these steps from a point."""
        inside = [s for s in steps if all(abs(x) < d for x, d in zip(s, self.dims, strict=True))]
        far = np.array([s for s in sorted(inside) if any(s)], dtype=np.int64)
        far = far.reshape(-1, len(self.dims))
        if not far.size:
            return np.zeros(self.size, dtype=np.int64)
        points = np.indices(self.dims).reshape(len(self.dims), -1)
        for C in range(max(least, 2), self.size):
            a = _multipliers(C, len(self.dims))
            for step in far:
                a = a[:, (step @ a) % C != 0]
            if a.shape[1]:
                return compact((a[:, 0] @ points) % C)
        return np.arange(self.size)


@dataclass(frozen=True, eq=False)
class Graph:
    """A symmetric sparse pattern, of which the vertices of highest degree are set apart."""

    adjacent: Any  # of entries 0 and 1, ones on its diagonal
    hubs: Array

    @property
    def size(self) -> int:
        """How many vertices there are."""
        return int(self.adjacent.shape[0])

    def levels(self) -> Iterator[tuple[Array, int]]:
        """A greedy colour of every vertex, as those of a grid."""
        power, halves = self.adjacent, [1]
        for distance in itertools.count(1):
            # all of a ball of half the distance have colours of their own
            halves.append(int(np.diff(power.indptr).max()))
            yield self._coloured(power), halves[(distance + 1) // 2] + len(self.hubs)
            grown = power @ self.adjacent
            grown.data[:] = 1
            if grown.nnz == power.nnz:
                return
            power = grown

    def _coloured(self, power: Any) -> Array:
        """Vertices by falling degree, each the least colour that is free; hubs one of their own."""
        start, other, colours = power.indptr.tolist(), power.indices.tolist(), [-1] * self.size
        for v in np.argsort(-np.diff(power.indptr), kind="stable").tolist():
            taken, c = {colours[w] for w in other[start[v] : start[v + 1]]}, 0
            while c in taken:
                c += 1
            colours[v] = c
        found = np.array(colours)
        found[self.hubs] = found.max(initial=-1) + 1 + np.arange(len(self.hubs))
        return compact(found)


def _multipliers(C: int, axes: int) -> Array:
    """Columns (1, a_2, a_3, ...) below C: all of them; of many, those that are powers (Korobov)."""
    if C ** (axes - 1) <= MOST:
        rest = [np.ravel(x) for x in np.indices((C,) * (axes - 1))]
        return np.stack([np.ones(C ** (axes - 1), dtype=np.int64), *rest])
    powers = [np.ones(C, dtype=np.int64)]
    for _ in range(axes - 1):
        powers.append(powers[-1] * np.arange(C) % C)
    return np.stack(powers)


def read_pattern(pattern: Any, hubs: int) -> Grid | Graph:
    """Vertices and edges of a grid, a sparse matrix, an array or a networkx graph."""
    if isinstance(pattern, Grid):
        if hubs:
            raise ValueError("a grid has no hubs; leave out `hubs`, or pass a sparse matrix")
        return pattern
    if hasattr(pattern, "nodes") and hasattr(pattern, "edges"):
        networkx = importlib.import_module("networkx")
        pattern = networkx.to_scipy_sparse_array(pattern, weight=None, dtype=np.int32)
    import scipy.sparse

    try:
        A = scipy.sparse.coo_array(pattern)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`pattern` must be a sparse matrix, a networkx graph or tracekit.probes.grid(dims), "
            f"got {type(pattern).__name__}; pass one of these"
        ) from error
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not A.shape[0]:
        raise ValueError(
            f"`pattern` must be square, got shape {A.shape}; pass that of the operator"
        )
    n = A.shape[0]
    there = A.data != 0
    i, j = A.coords[0][there], A.coords[1][there]
    i, j = np.concatenate([i, j, np.arange(n)]), np.concatenate([j, i, np.arange(n)])
    both = scipy.sparse.csr_array((np.ones(i.size, dtype=np.int32), (i, j)), shape=(n, n))
    most = np.argsort(-np.diff(both.indptr), kind="stable")[:hubs]
    if hubs:
        kept = np.ones(n, dtype=np.int32)
        kept[most] = 0
        D = scipy.sparse.dia_array((kept[None, :], [0]), shape=(n, n))
        both = (D @ both @ D + scipy.sparse.eye_array(n, dtype=np.int32)).tocsr()
        both.eliminate_zeros()
    both.data[:] = 1
    return Graph(both, most)


def compact(colours: Array) -> Array:
    """Colours without those that no vertex has."""
    return np.unique(colours, return_inverse=True)[1].reshape(-1)


def is_count(x: Any, least: int) -> bool:
    """Whether it is an int, and at least so large."""
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def checked_dims(dims: Any) -> tuple[int, ...]:
    """Lengths of axes, each an int of 1 or more."""
    try:
        found = tuple(operator.index(d) for d in dims)
    except TypeError:
        found = ()
    if not found or min(found) < 1:
        raise ValueError(
            f"`dims` must be positive integers, got {dims!r}; pass the lengths of the axes"
        )
    return found


def checked_offsets(offsets: Any, dims: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Steps to neighbours, and back; the nearest ones by default."""
    D = len(dims)
    if offsets is None:
        steps = [tuple(int(i == k) for i in range(D)) for k in range(D)]
    else:
        try:
            steps = [tuple(operator.index(x) for x in o) for o in offsets]
        except TypeError:
            steps = [()]
        if any(len(o) != D for o in steps):
            raise ValueError(
                f"`offsets` must be steps of {D} integers each, got {offsets!r}; pass such as "
                f"{(1,) + (0,) * (D - 1)}"
            )
    both = {o for step in steps for o in (step, tuple(-x for x in step)) if any(o)}
    return tuple(sorted(both))
