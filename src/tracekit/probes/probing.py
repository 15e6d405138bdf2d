"""Probing vectors: of colours, of levels of a grid, of the factors of a tensor product."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import Array, is_complex
from .colourings import Graph, Grid, checked_dims, checked_offsets, is_count, read_pattern
from .plans import Colours, Levels, Plan, Products
from .source import Source, whole_only

LEAST = 2  # draws that have an error


class Draws(ABC):
    """A distribution whose probes come in whole draws, each of several columns."""

    joint, chooses = True, False
    __name__: str

    @abstractmethod
    def plan(self, n: int, m: int, source: Source) -> Plan:
        """What m products of dimension n are spent on."""

    def population(self, n: int) -> float:
        """No number of columns makes the estimate exact."""
        return math.inf

    def __call__(self, source: Source, n: int, m: int) -> Array:
        """Columns of whole draws."""
        plan = self.plan(n, m, source)
        if plan.whole(m) != m:
            raise ValueError(
                f"{m} probes are no whole draws of {plan.told}; pass {plan.whole(m) or plan.size}"
            )
        return plan.stream(source, n, m)(m)


class _Coloured(Draws):
    __name__ = "coloured"

    def __init__(self, pattern: Grid | Graph, distance: int | None) -> None:
        self.pattern, self.distance, self.chooses = pattern, distance, distance is None
        self._found, self._further = list[tuple[Array, int]](), pattern.levels()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Coloured, (self.pattern, self.distance)

    def plan(self, n: int, m: int, source: Source) -> Colours:
        whole_only(source, n, "coloured")
        if n != self.pattern.size:
            raise ValueError(
                f"the pattern has {self.pattern.size} points, and probes have {n} entries; pass "
                "the pattern of the operator"
            )
        d = self.distance or self._chosen(m / LEAST)
        colours = self._level(d)[0] if d else np.zeros(n, dtype=np.int64)
        C = int(colours.max()) + 1
        if m < C:
            raise ValueError(
                f"the {C} colours of distance {d} take {C} probes a draw, and the budget allows "
                f"{m}; allow {LEAST * C} or more, or pass distance=None"
            )
        return Colours(colours, C, f"{C} colours of distance {d}" if d else "1 colour")

    def _level(self, distance: int) -> tuple[Array, int]:
        """The colours, and how many the next distance takes at least; each found once."""
        while len(self._found) < distance and (level := next(self._further, None)):
            self._found.append(level)
        return self._found[min(distance, len(self._found)) - 1]

    def _chosen(self, most: float) -> int:
        """The largest distance with so many colours at most; 0 if there is none."""
        distance, least = 0, 1
        while least <= most:
            colours, least = self._level(distance + 1)
            if int(colours.max()) + 1 > most:
                break
            distance += 1
            if distance > len(self._found):
                return len(self._found)
        return distance


@dataclass(frozen=True, eq=False)
class _Hierarchical(Draws):
    dims: tuple[int, ...]
    count: int
    __name__ = "hierarchical"

    def plan(self, n: int, m: int, source: Source) -> Levels:
        whole_only(source, n, "hierarchical")
        _require_size(self.dims, n, "grid")
        if m < self.count:
            raise ValueError(
                f"{self.count} draws take {self.count} probes, and the budget allows {m}; allow "
                "more"
            )
        x, D = np.indices(self.dims).reshape(len(self.dims), -1), len(self.dims)
        codes, bits, levels = np.zeros(n, dtype=np.int64), 0, [1]
        while (1 << len(levels) - 1) < max(self.dims):
            bit = (x >> len(levels) - 1) & 1
            for b in (bit.sum(axis=0) & 1, *bit[1:]):  # red and black first
                codes |= b << bits
                bits += 1
            levels.append(1 << D * len(levels))
        whole = max(N for N in levels if N * self.count <= m)
        told = f"{whole} hierarchical columns"
        return Levels(codes, tuple(levels), self.count, told)


@dataclass(frozen=True, eq=False)
class _Kronecker(Draws):
    dims: tuple[int, ...]
    __name__ = "kronecker"

    def plan(self, n: int, m: int, source: Source) -> Products:
        whole_only(source, n, "kronecker")
        _require_size(self.dims, n, "tensor product")
        size = 1 if is_complex(source) else 2
        if m < size:
            raise ValueError(
                f"Kronecker products of phases take {size} probes each with a real operator, and "
                f"the budget allows {m}; allow {LEAST * size} or more"
            )
        return Products(self.dims, size, "Kronecker products of phases")


def grid(dims: Any, offsets: Any = None) -> Grid:
    """The pattern of a stencil on a grid, for `coloured`.

    Parameters
    ----------
    dims : sequence of int
        Points along each axis; they are numbered in C order.
    offsets : sequence of tuple of int, optional
        The steps to the neighbours of a point; the opposite of each is one, too. The nearest ones
        along the axes, if not given.

    Returns
    -------
    Grid
        A record of both. Boundaries are open: of periodic grids pass a sparse matrix instead.

    Raises
    ------
    ValueError
        If the lengths are no positive integers, or steps have another number of axes.

    Examples
    --------
    >>> import tracekit as tk
    >>> tk.probes.grid((40, 40)).size
    1600
    """
    lengths = checked_dims(dims)
    return Grid(lengths, checked_offsets(offsets, lengths))


def coloured(pattern: Any, distance: int | None = None, *, hubs: int = 0) -> _Coloured:
    r"""Random signs on vertices of one colour, no two of which are within a distance.

    For operators whose entries fall off with the distance in a graph, above all inverses and other
    functions of sparse matrices. Variance of the trace of a symmetric B from R draws:
    ``2 / R`` times the sum of :math:`b_{ij}^2` over pairs i != j of one colour; entries between
    colours cost nothing.

    Parameters
    ----------
    pattern : sparse matrix, array, networkx graph, or what `grid` makes
        Which entries are nonzero: symmetric, or made so. Nodes of a graph are in its own order.
        Grids have lattice colours: fewer, and found without a graph.
    distance : int, optional
        Steps in the graph within which no colour occurs twice. The largest such that the budget
        pays for two draws, if not given: one colour, plain signs, where it pays for none.
    hubs : int, optional
        Vertices of highest degree that have a colour of their own, and through which no distance is
        measured. About ten where a few vertices have so many neighbours that colours explode.

    Returns
    -------
    callable
        A distribution ``(source, n, m) -> (n, m) array`` for `hutchinson`, `diagonal`,
        `trace_function` and `trace_inverse`; others refuse it. Of C colours a draw takes C
        products; what does not fill a draw is left unspent, and ``reason`` says so.

    Raises
    ------
    ValueError, TypeError
        If the pattern is not square or not read, `distance` or `hubs` no such integer; when
        probes are drawn, if it is of another size, or the budget below one draw.

    Notes
    -----
    The error is found colour by colour, whose forms are independent: the squared standard error is
    :math:`\sum_c v_c / R`, v_c the sample variance of a colour over R draws, with
    :math:`(R - 1) (\sum v_c)^2 / \sum v_c^2` degrees of freedom. One draw has no error: it is
    infinite. Always random signs (phases, if the operator is complex): vectors of ones are biased.

    Colours of graphs are greedy, vertices by falling degree: the time and memory of the entries of
    the pattern's power. Probes are n by C, as many at a time as fit. Not combined with deflation:
    where entries fall off fast it destroys that, and where they do so slowly probing gains little.

    References
    ----------
    Tang, Saad (2012), Numer. Linear Algebra Appl. 19, doi:10.1002/nla.779; Frommer, Schimmel,
    Schweitzer (2021), SIAM J. Matrix Anal. Appl. 42, doi:10.1137/20M1364461.

    Examples
    --------
    >>> import numpy as np, scipy.sparse, tracekit as tk
    >>> T = scipy.sparse.diags_array([-1.0, 3.0, -1.0], offsets=[-1, 0, 1], shape=(60, 60))
    >>> B = np.linalg.inv(T.toarray())
    >>> estimate = tk.hutchinson(B, 16, rng=0, probes=tk.probes.coloured(T))
    >>> bool(abs(estimate.value - np.trace(B)) < 1e-2 * np.trace(B))
    True
    """
    if not (distance is None or is_count(distance, 1)):
        raise ValueError(
            f"`distance` must be a positive integer or None, got {distance!r}; pass 1 or more"
        )
    if not is_count(hubs, 0):
        raise ValueError(f"`hubs` must be an integer of 0 or more, got {hubs!r}; pass about 10")
    return _Coloured(read_pattern(pattern, hubs), distance)


def hierarchical(dims: Any, *, draws: int = 2) -> _Hierarchical:
    r"""Random signs times Hadamard vectors over the bits of a grid's coordinates.

    Levels of 1, 2^D, 4^D, 8^D columns for D axes. A level is as good as colours that are as many,
    and contains all columns of the lower ones: one seed spends the same first products at any
    budget, and with a tolerance none is lost as a level follows on another.

    Parameters
    ----------
    dims : sequence of int
        Points along each axis; they are numbered in C order.
    draws : int, optional
        Independent signs for which all columns are spent; at least 2 for an error.

    Returns
    -------
    callable
        A distribution ``(source, n, m) -> (n, m) array`` for `hutchinson`, `diagonal`,
        `trace_function` and `trace_inverse`. The highest level that the budget pays for is spent,
        and the rest left unspent.

    Raises
    ------
    ValueError
        If `dims` or `draws` are no positive integers; when probes are drawn, if the grid has
        another size, or the budget is below the number of draws.

    Notes
    -----
    The error is that of the draws alone, with ``draws - 1`` degrees of freedom: intervals from two
    are wide. Prefer `coloured` at a fixed budget. Entries are made from the bits, without a matrix.

    References
    ----------
    Stathopoulos, Laeuchli, Orginos (2013), SIAM J. Sci. Comput. 35, arXiv:1302.4018.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> T = 3 * np.eye(64) - np.eye(64, k=1) - np.eye(64, k=-1)
    >>> B = np.linalg.inv(T)
    >>> estimate = tk.hutchinson(B, 32, rng=0, probes=tk.probes.hierarchical((64,)))
    >>> bool(abs(estimate.value - np.trace(B)) < 1e-3 * np.trace(B))
    True
    """
    if not is_count(draws, 1):
        raise ValueError(f"`draws` must be a positive integer, got {draws!r}; pass 2 or more")
    return _Hierarchical(checked_dims(dims), draws)


def kronecker(dims: Any) -> _Kronecker:
    r"""Kronecker products of random phases, for operators that act on tensor products.

    Parameters
    ----------
    dims : sequence of int
        Dimensions of the factors, in C order.

    Returns
    -------
    callable
        A distribution ``(source, n, m) -> (n, m) array`` for `hutchinson`, `diagonal`,
        `trace_function` and `trace_inverse`. Complex vectors always: of a real operator, real and
        imaginary part are two columns, and two products a draw.

    Raises
    ------
    ValueError
        If `dims` are no positive integers; when probes are drawn, if their product is not n, or
        where a real operator has a budget of 1.

    Notes
    -----
    Each column is a tensor of rank one, which networks of tensors multiply cheaply, and takes
    ``sum(dims)`` random numbers. The price is variance: of the trace of a Hermitian A, a draw has

    .. math:: \sum_{S \neq \emptyset} \sum_{i_d \neq j_d} |(\mathrm{tr}_{\bar S} A)_{ij}|^2,

    over all sets S of factors, A traced over the others: up to 2^D - 1 times the squared trace
    where D factors are positive semidefinite. Real signs would have up to 3^D - 1, which is why
    there are none.

    References
    ----------
    Meyer, Avron (2023), arXiv:2309.04952.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.kron(np.diag([1.0, 2.0]), np.diag([1.0, 2.0, 3.0]))
    >>> estimate = tk.hutchinson(A, 4, rng=0, probes=tk.probes.kronecker((2, 3)))
    >>> round(float(estimate), 9)
    18.0
    """
    return _Kronecker(checked_dims(dims))


def _require_size(dims: tuple[int, ...], n: int, what: str) -> None:
    if math.prod(dims) != n:
        raise ValueError(
            f"a {what} of {dims} has {math.prod(dims)} points, and probes have {n} entries; pass "
            "the `dims` of the operator"
        )
