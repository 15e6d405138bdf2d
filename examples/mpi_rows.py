"""A log-determinant over MPI: each process holds some rows of the features, and of every vector.

    mpiexec -n 4 python examples/mpi_rows.py

No process holds an array with a row for every point: all that is sent are sums of small matrices.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

import tracekit as tk
from tracekit.functions import log1p

N, FEATURES, NOISE = 20_000, 300, 0.1


def features(mine: slice) -> np.ndarray:
    """Random Fourier features of some points on a line: nobody makes those of the others."""
    rng = np.random.default_rng(0)
    frequencies, phases = 20 * rng.standard_normal(FEATURES), 2 * np.pi * rng.random(FEATURES)
    x = np.linspace(0.0, 1.0, N)[mine]
    return np.cos(x[:, None] * frequencies + phases) * np.sqrt(2 / FEATURES)


def main() -> None:
    """Print what all processes agree on."""
    comm = MPI.COMM_WORLD
    ends = np.linspace(0, N, comm.size + 1).astype(int).tolist()
    mine = slice(ends[comm.rank], ends[comm.rank + 1])
    L = features(mine)
    layout = tk.RowLayout(mine, comm.allreduce, rank=comm.rank, size=comm.size)
    factor = tk.LinearOperator(
        (N, FEATURES), lambda X: L @ X, lambda X: comm.allreduce(L.T @ X), layout=layout
    )
    K = tk.gram(factor)  # N by N
    diagonal = tk.diagonal(K, 40, rng=0).value  # a RowArray: `local` has the rows of this process
    largest = comm.allreduce(float(np.max(diagonal.local)), op=MPI.MAX)
    for name, estimate in (
        ("trace", tk.hutchpp(K, 90, rng=0)),
        ("effective dimension", tk.effective_dimension(K, NOISE, 200, rng=0)),
        ("log det(I + K / noise)", tk.trace_function(K * (1 / NOISE), log1p, 200, rng=0)),
    ):
        if comm.rank == 0:
            print(f"{name}: {float(estimate)!r} +- {float(estimate.standard_error):.2g}")
    if comm.rank == 0:
        print(f"largest entry of the diagonal, as estimated: {largest!r}")


if __name__ == "__main__":
    main()
