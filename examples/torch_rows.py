"""A log-determinant of a DTensor: each process holds some rows of a matrix and of every vector.

    torchrun --nproc-per-node 2 examples/torch_rows.py

Estimators run in every process alike, and sum small matrices over all of them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import tracekit as tk

N = 1000


def kernel(mine: slice) -> torch.Tensor:
    """Some rows of a Gaussian kernel of points on a line, plus noise: nobody makes the others."""
    x = torch.linspace(0, 1, N, dtype=torch.float64)
    rows = torch.exp(-(((x[mine, None] - x) / 0.02) ** 2))
    rows[torch.arange(rows.shape[0]), torch.arange(mine.start, mine.stop)] += 0.1
    return rows


def main() -> None:
    """Print what all processes agree on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    each = -(-N // dist.get_world_size())  # as PyTorch cuts N rows
    start = min(dist.get_rank() * each, N)
    rows = kernel(slice(start, min(start + each, N))).to(mesh.device_type)
    A = DTensor.from_local(rows, mesh, [Shard(0)], shape=(N, N), stride=(N, 1))
    for name, estimate in (
        ("trace", tk.hutchpp(A, 90, rng=0)),
        ("trace of the inverse", tk.trace_inverse(A, 240, rng=0)),
        ("log det", tk.logdet(A, 240, rng=0)),
    ):
        if dist.get_rank() == 0:
            print(f"{name}: {float(estimate)!r} +- {float(estimate.standard_error):.2g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
