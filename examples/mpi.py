"""A trace over MPI: each process holds some rows of the matrix, and all hold the vectors.

    mpiexec -n 4 python examples/mpi.py

Estimators run in every process alike, from one seed, and meet where the operator multiplies.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

import tracekit as tk

N = 1000


def from_rows(comm: MPI.Comm, rows: np.ndarray) -> tk.LinearOperator:
    """The matrix of which this process holds `rows`, in the order of the processes.

    A product gathers the rows of all: as many numbers as the block has, in each process.
    """
    counts = comm.allgather(rows.shape[0])
    start = sum(counts[: comm.rank])
    mine = slice(start, start + rows.shape[0])

    def matmat(X: np.ndarray) -> np.ndarray:
        return np.concatenate(comm.allgather(rows @ X))

    def rmatmat(X: np.ndarray) -> np.ndarray:
        return np.asarray(comm.allreduce(rows.conj().T @ X[mine, :]))

    return tk.LinearOperator((sum(counts), rows.shape[1]), matmat, rmatmat, dtype=rows.dtype)


def kernel(mine: slice) -> np.ndarray:
    """Some rows of a Gaussian kernel of points on a line, plus noise: nobody makes the others."""
    x = np.linspace(0.0, 1.0, N)
    rows = np.exp(-(((x[mine, None] - x) / 0.02) ** 2))
    rows[np.arange(rows.shape[0]), np.arange(mine.start, mine.stop)] += 0.1
    return rows


def main() -> None:
    """Print what all processes agree on."""
    comm = MPI.COMM_WORLD
    ends = np.linspace(0, N, comm.size + 1).astype(int)
    A = from_rows(comm, kernel(slice(ends[comm.rank], ends[comm.rank + 1])))
    for name, estimate in (
        ("trace", tk.hutchpp(A, 90, rng=0)),
        ("trace of the inverse", tk.trace_inverse(A, 240, rng=0)),
        ("log det", tk.logdet(A, 240, rng=0)),
    ):
        if comm.rank == 0:
            print(f"{name}: {float(estimate)!r} +- {float(estimate.standard_error):.2g}")


if __name__ == "__main__":
    main()
