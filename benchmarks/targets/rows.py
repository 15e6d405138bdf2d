"""Arrays whose rows lie in several processes: values, what is summed over all, and memory.

1. PyTorch, DTensors on two and four processes of gloo. The operator is diagonal, so that its
   products exchange nothing, and what is all-reduced is counted.
2. dask, a cluster of two workers: values, and columns of products beside those that are claimed.
3. MPI, rows by a sum callback: memory that estimates take in each process. The same number of rows
   in each of more processes: what each sums, and the largest array of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit as tk

from ..measure import ROOT, apart
from .distributed import CALLS, SAME, M
from .table import FIGURES, Row, Table, figure

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS, RANKS = 16_384, (2, 4)
WEAK, EACH = (2, 8), 512  # processes, and rows of each
TALL, SHARES = 2**20, {2: 0.6, 4: 0.35}  # rows, and the memory of a process beside one alone
SEVERAL = ("hutchinson", "hutchpp", "xtrace", "xnystrace", "xdiag", "logdet", "effective_dimension")


def tables() -> Iterator[Table]:
    """Every engine in turn."""
    yield Table(
        f"PyTorch, DTensors of {ROWS} rows, m = {M}, float64: change of the value <= {SAME:.0e},\n"
        f"largest all-reduce <= 4 m^2 = {4 * M**2} numbers; all of them, by m^2",
        {"function": "<24", "ranks": ">6", "change": ">9.0e", "all-reduces": ">13",
         "numbers": ">9.2f", "largest": ">9"},
        torch_rows(),
    )  # fmt: skip
    yield Table(
        f"dask, a cluster of two workers, {ROWS} rows in four chunks: change <= {SAME:.0e},\n"
        "columns multiplied = those claimed",
        {"function": "<24", "change": ">9.0e", "claimed": ">9", "multiplied": ">12"},
        dask_rows(),
    )
    yield Table(
        f"MPI, rows by a sum callback, {TALL} of them", FIGURES, mpi_rows(),
    )  # fmt: skip
    yield Table(
        f"{EACH} rows in each of {' and '.join(map(str, WEAK))} processes, m = {M}: sums, numbers "
        "by m^2, largest array;\nno more of the last two than the triangles of a tall QR, p m^2",
        {"function": "<24", "sums": ">6", "numbers": ">9.2f", "largest": ">9", "": "<3",
         "sums of 8": ">9", "numbers of 8": ">14.2f", "largest of 8": ">14"},
        weak_rows(),
    )  # fmt: skip


def spectrum(rows: slice) -> np.ndarray:
    """Return a part of the diagonal."""
    return np.arange(rows.start + 1.0, rows.stop + 1.0) ** -1.0 + 1.0


def difference(found: Any, alone: Any) -> float:
    """Return the largest difference of the rows that are held, over the largest entry."""
    alone = np.asarray(alone)
    largest = float(np.max(np.abs(alone)))
    if isinstance(found, tk.RowArray):
        rows = [slice(None)] * alone.ndim
        rows[found.axis] = slice(found.held.start, found.held.stop)
        found, alone = found.local, alone[tuple(rows)]
    return float(np.max(np.abs(np.asarray(found) - alone), initial=0.0)) / largest


def alone_in_numpy(name: str, n: int) -> Any:
    """Return what one process finds."""
    d = spectrum(slice(0, n))
    return CALLS[name](by_diagonal(d, n), d, 0).value


def by_diagonal(d: Any, n: int, **more: Any) -> tk.LinearOperator:
    """Return the operator of a diagonal, or of the rows of it that are held."""

    def product(X: Any) -> Any:
        return d[:, None] * X

    return tk.LinearOperator((n, n), product, product, **more)


# --- 1. PyTorch -----------------------------------------------------------------------------------


def torch_rows() -> Iterator[Row]:
    """Judge what all processes find, and what they reduce."""
    for size in RANKS:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(size) as pool:
            where = f"file://{folder}/meeting"
            calls = [pool.submit(apart, torch_records, where, rank, size) for rank in range(size)]
            found = [call.result() for call in calls]
        for records in zip(*found, strict=True):
            name, _, count, numbers, largest = records[0]
            change = max(record[1] for record in records)
            holds = {"change": change <= SAME, "largest": largest <= 4 * M**2}
            yield Row((name, size, change, count, numbers / M**2, largest), holds)


def torch_records(where: str, rank: int, size: int) -> list[tuple[Any, ...]]:
    """Run every function in one of several processes."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
    mesh, each = init_device_mesh("cpu", (size,)), ROWS // size
    local = torch.asarray(spectrum(slice(rank * each, (rank + 1) * each)))
    whole = torch.asarray(spectrum(slice(0, ROWS)))
    d = DTensor.from_local(local, mesh, [Shard(0)])
    like = {"xp": torch, "dtype": torch.float64}
    sent, reduce = list[int](), dist.all_reduce

    def counted(x: Any, **more: Any) -> Any:
        sent.append(x.numel())
        return reduce(x, **more)

    dist.all_reduce, records = counted, []
    for name, call in CALLS.items():
        sent.clear()
        value = call(by_diagonal(d, ROWS, layout=(mesh, [Shard(0)]), **like), whole, 0).value
        counts = len(sent), sum(sent), max(sent)
        alone = call(by_diagonal(whole, ROWS, **like), whole, 0).value
        records.append((name, difference(value, alone), *counts))
    dist.destroy_process_group()
    return records


# --- 2. dask --------------------------------------------------------------------------------------


def dask_rows() -> Iterator[Row]:
    """Judge values and products."""
    for name, change, claimed, multiplied in apart(dask_records):
        holds = {"change": change <= SAME, "multiplied": multiplied == claimed}
        yield Row((name, change, claimed, multiplied), holds)


def dask_records() -> list[tuple[Any, ...]]:
    """Run several functions on a cluster."""
    import dask.array as da
    from distributed import Client, LocalCluster

    records = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        d = da.from_array(spectrum(slice(0, ROWS)), chunks=ROWS // 4)
        for name in SEVERAL:
            columns: list[int] = []

            def product(X: Any, columns: list[int] = columns) -> Any:
                columns.append(X.shape[1])
                return d[:, None] * X

            A = tk.LinearOperator((ROWS, ROWS), product, product, xp=da, layout=d.chunks[0])
            found = CALLS[name](A, None, 0)
            change = difference(np.asarray(found.value), alone_in_numpy(name, ROWS))
            records.append((name, change, found.num_matvecs, sum(columns)))
    return records


# --- 3. MPI, and any sum --------------------------------------------------------------------------


def mpi_rows() -> Iterator[Row]:
    """Judge the memory of a process that holds a part of the rows."""
    alone: dict[str, float] = {}
    for size in (1, *SHARES):
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(size), sys.executable,
                   "-m", "benchmarks.targets.rows"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        alone = alone or found
        for name, size_of in found.items() if size > 1 else ():
            yield figure(
                f"{name}: memory of one of {size} processes", size_of / alone[name],
                most=SHARES[size], told=f"{size_of / 1e6:.0f} of {alone[name] / 1e6:.0f} MB",
            )  # fmt: skip


def mpi_process() -> None:
    """Print the most memory that arrays take in a process, for each function."""
    import tracemalloc

    from mpi4py import MPI

    comm, found = MPI.COMM_WORLD, {}
    each = TALL // comm.size
    rows = slice(comm.rank * each, (comm.rank + 1) * each)
    layout = tk.RowLayout(rows, comm.allreduce, rank=comm.rank, size=comm.size)
    A = by_diagonal(spectrum(rows), TALL, layout=layout)
    for name, call in {
        "hutchpp": lambda: tk.hutchpp(A, 30, rng=0),
        "xnystrace": lambda: tk.xnystrace(A, 20, rng=0),
        "logdet": lambda: tk.logdet(A, 20, rng=0, depth=5),
        "diagonal": lambda: tk.diagonal(A, 20, rng=0),
    }.items():
        tracemalloc.start()
        call()
        found[name] = comm.allreduce(tracemalloc.get_traced_memory()[1], op=MPI.MAX)
        tracemalloc.stop()
    if comm.rank == 0:
        print(json.dumps(found))


def weak_rows() -> Iterator[Row]:
    """Judge what each process sums where there are more processes, of as many rows each."""
    for name in CALLS:
        few, many = (summed(name, size) for size in WEAK)
        most = {size: (2 * size + 6) * M**2 for size in WEAK}  # triangles, and Gram matrices
        holds = {
            "numbers": few[1] <= 2 * most[WEAK[0]] and many[1] <= 2 * most[WEAK[1]],
            "largest": few[2] <= most[WEAK[0]] and many[2] <= most[WEAK[1]],
        }
        yield Row(
            (name, few[0], few[1] / M**2, few[2], "", many[0], many[1] / M**2, many[2]), holds
        )


def summed(name: str, size: int) -> tuple[int, int, int]:
    """Return sums of one of several processes, which are threads here, their numbers, the most."""
    n, told, meeting = EACH * size, [None] * size, threading.Barrier(size, timeout=60)
    sent: list[int] = []

    def run(rank: int) -> None:
        def allsum(x: Any) -> Any:
            told[rank] = x
            meeting.wait()
            total = sum(told[1:], told[0])
            meeting.wait()
            if rank == 0:
                sent.append(x.size)
            return total

        rows = slice(rank * EACH, (rank + 1) * EACH)
        layout = tk.RowLayout(rows, allsum, rank=rank, size=size)
        CALLS[name](by_diagonal(spectrum(rows), n, layout=layout), spectrum(slice(0, n)), 0)

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(run, range(size)))
    return len(sent), sum(sent), max(sent)


if __name__ == "__main__":
    mpi_process()
