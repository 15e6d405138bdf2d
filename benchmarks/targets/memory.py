"""Memory and time of ten million dimensions: a diagonal plus rank three, known by its products.

Every run is a process of its own, so that its peak resident memory is its own. CPU time on one
thread is compared with that of the bare products, in blocks of the same widths, of a block of
numbers that is there already. Every value has to be that of any other block size, to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit
from tracekit import probes

from ..measure import apart, cpu_seconds, peak_memory
from ..problems import diagonal_plus_rank_three
from .table import Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Block = NDArray[np.float64]

N, BUDGET = 10**7, 100
MEMORY, SAME = 1.5e9, 1e-12
TARGETS = {"signs": 1.6, "hadamard": 2.5}
LAWS = {"signs": probes.rademacher, "hadamard": probes.hadamard}
BLOCK_SIZES = (None, 7)


def tables() -> Iterator[Table]:
    """All runs."""
    yield Table(
        f"hutchinson, n = {N:.0e}, m = {BUDGET}, float64, one thread: peak memory <= 1.5 GB, CPU "
        f"time over the\nbare products, values the same to {SAME:.0e} at every block size",
        {"probes": "<10", "chunk_size": ">10", "columns": ">9", "GB": ">7.2f", "bare s": ">8.1f",
         "ours s": ">8.1f", "ratio": ">7.2f", "target": ">8", "error/se": ">10.2f",
         "change": ">9.0e"},
        rows(),
    )  # fmt: skip


def rows() -> Iterator[Row]:
    """Judge memory and time of the block size that the library chooses, and all values."""
    for law, target in TARGETS.items():
        first = None
        for chunk_size in BLOCK_SIZES:
            r = apart(run, law, N, chunk_size)
            first = r["value"] if first is None else first
            ratio, change = r["ours"] / r["bare"], abs(r["value"] / first - 1)
            holds = {"change": change <= SAME}
            if chunk_size is None:
                holds |= {"GB": r["peak"] <= MEMORY, "ratio": ratio <= target}
            values = (
                *(law, str(chunk_size), r["width"], r["peak"] / 1e9, r["bare"], r["ours"], ratio),
                *(target if chunk_size is None else None, r["errors"], change),
            )
            yield Row(values, holds)


def run(law: str, n: int, chunk_size: int | None) -> dict[str, Any]:
    """Estimate, then repeat the bare products; return what both took."""
    product, trace = diagonal_plus_rank_three(n)
    widths: list[int] = []
    estimates: list[tracekit.Estimate] = []

    def noted(X: Block) -> Block:
        widths.append(X.shape[1])
        return product(X)

    def estimate() -> None:
        found = tracekit.hutchinson(A, BUDGET, rng=0, probes=LAWS[law], chunk_size=chunk_size)
        estimates.append(found)

    A = tracekit.LinearOperator((n, n), noted, dtype=np.dtype(np.float64), xp=np)
    ours, peak = cpu_seconds(estimate), peak_memory()
    X = np.ones((max(widths), n)).T

    def products() -> None:
        for width in widths:
            product(X[:, :width])

    value, error = float(estimates[0]), float(estimates[0].standard_error)
    return {
        "value": value,
        "errors": (value - trace) / error,
        "peak": peak,
        "bare": cpu_seconds(products),
        "ours": ours,
        "width": max(widths),
    }
