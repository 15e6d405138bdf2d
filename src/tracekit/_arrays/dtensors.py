"""Rows of tall arrays as DTensors of PyTorch hold them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from .libraries import Array, Device, Namespace, dtype_name, plain
from .row_functions import row_namespace
from .rows import Rows

_COMPUTED = "float32", "float64", "complex64", "complex128"


def is_dtensor(A: Any) -> bool:
    """Whether something is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(A, module.DTensor)


def rows_of_mesh(
    layout: tuple[Any, Any], shape: tuple[int, int], xp: Namespace, device: Device
) -> Rows:
    """The layout (DeviceMesh, placements) for a square operator."""
    mesh, placements = layout
    rank, size, allsum = sharers_of_mesh(layout)
    n = shape[0]
    if n != shape[1]:
        raise ValueError(
            f"operators of DTensors have to be square, got shape {tuple(shape)}; pass products of "
            "local rows, layout=RowLayout"
        )
    each = -(-n // size)  # as PyTorch cuts
    start = min(rank * each, n)
    return Rows(
        n, start, min(start + each, n), rank, size, allsum, row_namespace(plain(xp)), device,
        partial(_outward, mesh=mesh, placements=placements, n=n),
        partial(_inward, mesh=mesh, placements=placements),
    )  # fmt: skip


def sharers_of_mesh(layout: tuple[Any, Any]) -> tuple[int, int, Callable[[Array], Array]]:
    """The number of this process, how many hold rows, and a sum over them, of such a layout."""
    mesh, placements = layout
    cut = [i for i, placement in enumerate(placements) if placement.is_shard()]
    if len(cut) > 1 or any(
        placement.is_partial() or (placement.is_shard() and placement.dim != 0)
        for placement in placements
    ):
        raise ValueError(
            f"`layout` must cut tall arrays (n, k) by rows along one axis of the mesh, got "
            f"{tuple(placements)}; pass [Shard(0)], or Replicate() for further axes"
        )
    rank, size = (mesh.get_local_rank(cut[0]), mesh.size(cut[0])) if cut else (0, 1)
    return rank, size, partial(_allsum, group=mesh.get_group(cut[0]) if cut else None)


def products_of(A: Any) -> dict[str, Any]:
    """Products with a DTensor of two dimensions, and how tall arrays lie beside it."""
    from torch.distributed.tensor import Replicate, Shard

    if A.shape[0] != A.shape[1] or dtype_name(A.dtype) not in _COMPUTED:
        raise ValueError(
            f"a DTensor has to be a square matrix of one of {', '.join(_COMPUTED)}, got one of "
            f"{dtype_name(A.dtype)} and shape {tuple(A.shape)}; convert it, or pass a "
            "LinearOperator of local rows, layout=RowLayout"
        )
    placements = [
        Shard(0) if placement.is_shard() or placement.is_partial() else Replicate()
        for placement in A.placements
    ]
    return {
        "matmat": lambda X: A @ X,
        "rmatmat": lambda X: A.mH @ X,
        "xp": sys.modules["torch"],
        "dtype": A.dtype,
        "device": A.to_local().device,
        "layout": (A.device_mesh, placements),
    }


def _allsum(x: Array, group: Any) -> Array:
    import torch

    total = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    total = total.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=group)
    return torch.view_as_complex(total) if x.is_complex() else total


def _outward(X: Array, mesh: Any, placements: Any, n: int) -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        X.contiguous(), mesh, placements, run_check=False, shape=(n, X.shape[1]),
        stride=(X.shape[1], 1),
    )  # fmt: skip


def _inward(Y: Any, mesh: Any, placements: Any) -> Array:
    if not is_dtensor(Y):
        raise TypeError(
            f"a product with layout=(DeviceMesh, placements) takes and returns DTensors, got a "
            f"{type(Y).__name__}; pass tracekit.RowLayout for products of local tensors"
        )
    return Y.redistribute(mesh, placements).to_local()
