"""Probing: the trace and the diagonal of inverses of sparse matrices, by colours and plain signs.

Laplacians of grids and graphs plus a multiple of the identity; products are solves with a sparse
factorisation. Two draws of signs on the colours of a distance, beside as many plain sign vectors.
Errors are root mean squares over the seeds, relative to the trace, and relative to the norm of the
diagonal (medians); "covers" is the share of 95 % intervals that hold the trace. Grids have lattice
colours, graphs greedy ones; "hubs" are ten vertices of highest degree, set apart.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tracekit

from .table import FIGURES, Row, Table, figure, seeds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SEEDS, FEW = seeds(200), seeds(40)
TARGET, COVERAGE, SHARE = 2e-3, 0.93, 1 / 3
PROBLEMS: dict[str, tuple[Any, float, tuple[int, ...]]] = {
    "2-D 40 x 40 + 0.5": ((40, 40), 0.5, (2, 4, 6)),
    "2-D 40 x 40 + 0.02": ((40, 40), 0.02, (2, 4, 6)),
    "3-D 12 x 12 x 12 + 0.5": ((12, 12, 12), 0.5, (2, 4, 6)),
    "random 4-regular + 0.5": ("regular", 0.5, (2, 3, 4)),
    "Barabasi-Albert + 0.5": ("hubs", 0.5, (1, 2)),
    "the same, 10 hubs": ("hubs set apart", 0.5, (2, 3)),
}


class Problem(NamedTuple):
    """The inverse as an operator, its trace and diagonal, and the pattern to be coloured."""

    inverse: Any
    trace: float
    diagonal: NDArray[np.float64]
    pattern: Any
    hubs: int


@cache
def problem(name: str) -> Problem:
    """Return one of the problems."""
    import networkx as nx
    import scipy.sparse as sp
    from scipy.sparse.linalg import splu

    where, shift, _ = PROBLEMS[name]
    if isinstance(where, tuple):
        W = sp.csr_array(nx.to_scipy_sparse_array(nx.grid_graph(where[::-1]), dtype=float))
        pattern: Any = tracekit.probes.grid(where)
    else:
        graph = nx.random_regular_graph(4, 1000, seed=1)
        if where != "regular":
            graph = nx.barabasi_albert_graph(1000, 2, seed=1)
        pattern = W = sp.csr_array(nx.to_scipy_sparse_array(graph, dtype=float))
    degrees = np.full(W.shape[0], 2.0 * len(where)) if isinstance(where, tuple) else W.sum(axis=0)
    A = sp.csc_array(sp.diags_array(degrees + shift) - W)
    B = np.linalg.inv(A.toarray())
    inverse = tracekit.LinearOperator(A.shape, splu(A).solve)
    hubs = 10 if where == "hubs set apart" else 0
    return Problem(inverse, float(np.trace(B)), np.diag(B), pattern, hubs)


class Found(NamedTuple):
    """Of all seeds: products, errors of the trace and of the diagonal, coverage."""

    products: int
    trace: float
    diagonal: float
    coverage: float


def found_by(name: str, probes: Any, m: int, count: int) -> Found:
    """Estimate with all seeds."""
    it, values, hits, entries, spent = problem(name), [], [], [], 0
    for seed in range(count):
        estimate = tracekit.hutchinson(it.inverse, m, rng=seed, probes=probes)
        low, high = estimate.confidence_interval()
        values.append(float(estimate) / it.trace - 1)
        hits.append(float(low) <= it.trace <= float(high))
        spent = estimate.num_matvecs
        if seed < FEW:
            d = tracekit.diagonal(it.inverse, m, rng=seed, probes=probes).value
            entries.append(np.linalg.norm(d - it.diagonal) / np.linalg.norm(it.diagonal))
    error = float(np.sqrt(np.mean(np.square(values))))
    return Found(spent, error, float(np.median(entries)), float(np.mean(hits)))


def tables() -> Iterator[Table]:
    """Errors of both kinds of probes, and the targets."""
    yield Table(
        f"Two draws of colours, and as many plain signs; {FEW} seeds",
        {"problem": "<26", "distance": ">9", "colours": ">9", "products": ">9", "trace": ">10.1e",
         "plain": ">10.1e", "diagonal": ">10.1e", "plain ": ">10.1e", "covers": ">9.3f"},
        rows(),
    )  # fmt: skip
    yield Table(f"Targets, {SEEDS} seeds", FIGURES, targets())


def rows() -> Iterator[Row]:
    """Tell the errors of all problems."""
    for name, (_, _, distances) in PROBLEMS.items():
        it = problem(name)
        for distance in distances:
            probes = tracekit.probes.coloured(it.pattern, distance, hubs=it.hubs)
            n = it.inverse.shape[0]
            colours = probes.plan(n, n, tracekit.probes.Source(0, it.inverse)).size
            ours = found_by(name, probes, 2 * colours, FEW)
            plain = found_by(name, tracekit.probes.rademacher, 2 * colours, FEW)
            yield Row(
                (name, distance, colours, ours.products, ours.trace, plain.trace, ours.diagonal,
                 plain.diagonal, ours.coverage)
            )  # fmt: skip


def targets() -> Iterator[Row]:
    """Judge 26 products with the inverse of the grid, the distance found for them."""
    name = "2-D 40 x 40 + 0.5"
    probes = tracekit.probes.coloured(problem(name).pattern)
    ours = found_by(name, probes, 26, SEEDS)
    plain = found_by(name, tracekit.probes.rademacher, 26, SEEDS)
    yield figure("plain signs, 26 products: error of the trace", plain.trace)
    yield figure("colours, 26 products: error of the trace", ours.trace, most=TARGET)
    yield figure("colours, 26 products: 95 % intervals cover", ours.coverage, least=COVERAGE)
    share = ours.diagonal / plain.diagonal
    yield figure("error of the diagonal, relative to plain signs", share, most=SHARE)
