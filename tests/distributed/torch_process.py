"""One of several processes of PyTorch, which hold rows of DTensors: started by `torch_groups`."""

from __future__ import annotations

import io
import os
import runpy
import sys
import traceback
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from capabilities import CASES
from ranks import apart, told
from test_capabilities import SEED, positive
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import tracekit as tk

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_rows.py"


@cache
def alone() -> dict[str, Any]:
    """What one process finds."""
    torch.set_num_threads(1)
    A = torch.asarray(positive())
    return {c.name: c.read(c.run(*c.operands(A), c.budget, rng=SEED), A) for c in CASES}


def example(where: str, rank: int, size: int) -> dict[str, Any]:
    """What the example prints in a process that torchrun has started by itself."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    with redirect_stdout(io.StringIO()) as told:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return {"printed": told.getvalue()}


def main(where: str, rank: int, size: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    A = torch.asarray(positive())
    report: dict[str, Any] = {"functions": {}}

    def cut(X: Any, placement: Any = None) -> Any:
        return distribute_tensor(X, mesh, [placement or Shard(0)]) if X.ndim == 2 else X

    for case in (c for c in CASES if "torch processes" not in c.lacks):
        try:
            found = case.run(*map(cut, case.operands(A)), case.budget, rng=SEED)
            report["functions"][case.name] = apart(case.read(found, A), alone()[case.name])
        except Exception:
            report["functions"][case.name] = traceback.format_exc()
    B = torch.asarray(np.random.default_rng(0).standard_normal((26, 26)))  # of unequal parts
    C = B + 1j * B.T
    calls = {
        "columns": (B, Shard(1)), "whole": (B, Replicate()), "unequal": (B, Shard(0)),
        "complex": (C, Shard(0)), "single": (B.float(), Shard(0)),
    }  # fmt: skip
    report["others"] = {
        name: apart(tk.hutchpp(cut(X, placement), 9, rng=0), tk.hutchpp(X, 9, rng=0))
        for name, (X, placement) in calls.items()
    }
    report["others"]["adjoint"] = apart(
        tk.frobenius_norm(cut(C), 12, rng=0), tk.frobenius_norm(C, 12, rng=0)
    )
    seen: list[tuple[int, ...]] = []

    def product(X: Any) -> Any:
        seen.append(tuple(X.to_local().shape))
        return 2 * X

    A = tk.LinearOperator((40, 40), product, xp=torch, layout=(mesh, [Shard(0)]))
    report["declared"] = float(tk.hutchinson(A, 3, rng=0).value)
    report["seen"] = seen
    report["told"] = {
        "seeds": told(lambda: tk.hutchinson(A, 3, rng=rank)),
        "columns": told(lambda: tk.LinearOperator(
            (4, 4), lambda X: X, xp=torch, layout=(mesh, [Shard(1)]))),
        "wide": told(lambda: tk.one_sided(cut(B[:5]), 3, rng=0)),
        "integers": told(lambda: tk.hutchinson(cut(B.long()), 3, rng=0)),
        "undeclared": told(lambda: tk.hutchinson(tk.LinearOperator(
            (26, 26), lambda X: cut(B) @ cut(X), xp=torch, dtype=B.dtype), 3, rng=0)),
        "no seed": told(lambda: tk.hutchinson(np.eye(3), 2)),
        "plain": told(lambda: tk.hutchinson(tk.LinearOperator(
            (4, 4), lambda X: X.to_local(), xp=torch, layout=(mesh, [Shard(0)])), 2, rng=0)),
    }  # fmt: skip
    report["no seed"] = float(tk.hutchpp(cut(B), 9).value)
    torch.distributed.destroy_process_group()
    return report
