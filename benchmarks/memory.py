"""Memory and time of ten million dimensions: a diagonal plus rank three, known by its products.

Every run is a process of its own, so that its peak resident memory is its own. CPU time on one
thread is compared with that of the bare products, in blocks of the same widths, of a block of
numbers that is there already. Every value has to be that of any other block size, to rounding.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import math
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit
from tracekit import probes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Block = NDArray[np.float64]

N, BUDGET, RANK = 10**7, 100, 3
MEMORY, SAME = 1.5e9, 1e-12
TARGETS = {"signs": 1.6, "hadamard": 2.5}
LAWS = {"signs": probes.rademacher, "hadamard": probes.hadamard}
BLOCK_SIZES = (None, 7)


def diagonal_plus_rank_three(n: int) -> tuple[Callable[[Block], Block], float]:
    """Return the product with ``diag(d) + U @ U.T``, and its trace."""
    d = 1 + np.arange(n, dtype=np.float64) / n
    U = np.random.default_rng(0).standard_normal((n, RANK))
    U *= math.sqrt(0.1)

    def product(X: Block) -> Block:
        Y = U @ (U.T @ X)
        for j in range(X.shape[1]):  # a whole block d * X would be one more block in memory
            Y[:, j] += d * X[:, j]
        return Y

    return product, float(np.sum(d) + np.sum(U * U))


def run(law: str, n: int, block_size: int | None) -> dict[str, Any]:
    """Estimate, then repeat the bare products; return what both took."""
    product, trace = diagonal_plus_rank_three(n)
    widths: list[int] = []

    def noted(X: Block) -> Block:
        widths.append(X.shape[1])
        return product(X)

    A = tracekit.LinearOperator((n, n), noted, dtype=np.dtype(np.float64), xp=np)
    start = time.process_time()
    estimate = tracekit.hutchinson(A, BUDGET, rng=0, probes=LAWS[law], block_size=block_size)
    ours, peak = time.process_time() - start, peak_memory()
    X = np.ones((max(widths), n)).T
    start = time.process_time()
    for width in widths:
        product(X[:, :width])
    bare = time.process_time() - start
    value, error = float(estimate), float(estimate.standard_error)
    return {
        "value": value,
        "errors": (value - trace) / error,
        "peak": peak,
        "bare": bare,
        "ours": ours,
        "width": max(widths),
    }


def peak_memory() -> float:
    """Largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def apart(law: str, n: int, block_size: int | None) -> dict[str, Any]:
    """Do the run in a fresh process."""
    arguments = json.dumps([law, n, block_size])
    command = [sys.executable, __file__, arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print one line for each run, then how many of its figures hold."""
    print(f"hutchinson, n = {N:.0e}, m = {BUDGET}, float64, one thread: peak memory <= 1.5 GB,")
    print(f"CPU time over the bare products, values the same to {SAME:.0e} at every block size\n")
    titles = (
        "block_size",
        "columns",
        "GB",
        "bare s",
        "ours s",
        "ratio",
        "target",
        "error/se",
        "change",
    )
    print(f"{'probes':10}" + "".join(f"{title:>10}" for title in titles))
    verdicts = []
    for law, target in TARGETS.items():
        first = None
        for block_size in BLOCK_SIZES:
            r = apart(law, N, block_size)
            first = r["value"] if first is None else first
            ratio, change = r["ours"] / r["bare"], abs(r["value"] / first - 1)
            holds = [change <= SAME]
            if block_size is None:
                holds += [r["peak"] <= MEMORY, ratio <= target]
            verdicts += holds
            cells = (
                str(block_size),
                r["width"],
                f"{r['peak'] / 1e9:.2f}",
                f"{r['bare']:.1f}",
                f"{r['ours']:.1f}",
                f"{ratio:.2f}",
                target if block_size is None else "-",
                f"{r['errors']:.2f}",
                f"{change:.0e}",
            )
            verdict = "ok" if all(holds) else "SHORT"
            print(
                f"{law:10}" + "".join(f"{cell:>10}" for cell in cells) + f"  {verdict}", flush=True
            )
    held = sum(verdicts)
    print(f"\n{len(verdicts)} figures: {held} hold, {len(verdicts) - held} fall short")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(*json.loads(sys.argv[1]))))
    else:
        main()
