"""Samples that several processes hold: what these tell each other of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from tracekit._arrays import (
    Array,
    Device,
    Namespace,
    RowLayout,
    Rows,
    device_of,
    namespace,
    plain,
    real,
    row_namespace,
    sharers_of_mesh,
    to_host,
)

from .linearised import generic

T = TypeVar("T")
_NUMBERS = 4  # that a process tells of what it made, at most


def sharers(layout: Any, xp: Namespace, device: Device) -> Rows:
    """The processes that a layout names, a row each, whatever rows of an operator they hold."""
    if isinstance(layout, RowLayout):
        rank, size, allsum = layout.rank, layout.size, layout.allsum
    elif isinstance(layout, tuple) and len(layout) == 2 and hasattr(layout[0], "get_local_rank"):
        rank, size, allsum = sharers_of_mesh(layout)
    else:
        raise TypeError(
            f"`layout` must be a tracekit.RowLayout of outputs, or (DeviceMesh, [Shard(0)]), got a "
            f"{type(layout).__name__}; pass one of them, or none for the samples of one process"
        )
    return Rows(size, rank, rank + 1, rank, size, allsum, row_namespace(plain(xp)), device)


def agreed(
    processes: Rows,
    make: Callable[[], T],
    numbers: Callable[[T], Sequence[float]] = lambda made: (),
    parameters: Sequence[Array] = (),
) -> tuple[T, np.ndarray]:
    """What this process makes of its samples, and the numbers that each tells of it, by one sum.

    Raises in all processes if one of them fails, or has other parameters than the first.
    """
    failed: BaseException | None = None
    told = np.zeros(3 + _NUMBERS)
    try:
        made = make()
        told[1:3] = _checksum(parameters)
        for place, number in enumerate(numbers(made), start=3):
            told[place] = number
    except BaseException as error:  # told to the others first
        failed, told[0] = error, 1
    here = processes.xp.asarray(told, device=processes.device)
    table = np.stack([to_host(row) for row in processes.stacked(here)])
    if failed is not None:
        raise failed
    if table[:, 0].any():
        raise RuntimeError(f"process {np.argmax(table[:, 0])} failed; its own error says why")
    differ = np.abs(table[:, 1] - table[0, 1]) > table[0, 2]
    if differ.any():
        raise ValueError(
            f"process {np.argmax(differ)} has other parameters than process 0; all have to hold "
            "the same ones, as a broadcast from process 0 gives them, and samples of their own"
        )
    return made, table[:, 3:]


def held_rows(processes: Rows, layout: Any, counts: Sequence[int]) -> Rows:
    """Which rows of the Jacobian each process holds: as its layout says, or one after the other."""
    rank, n = processes.rank, sum(counts)
    start = sum(counts[:rank])
    held = layout.rows if isinstance(layout, RowLayout) else slice(start, start + counts[rank])
    return Rows(n, held.start, held.stop, rank, processes.size, processes.allsum,
                processes.namespace, processes.device)  # fmt: skip


def check_rows(layout: Any, count: int) -> None:
    """Refuse layouts of other rows than a process has outputs."""
    if isinstance(layout, RowLayout) and layout.rows.stop - layout.rows.start != count:
        raise ValueError(
            f"`layout` must name the rows of the Jacobian that this process holds, samples times "
            f"outputs, got {layout.rows.start} to {layout.rows.stop} for {count} outputs"
        )


def _checksum(parameters: Sequence[Array]) -> tuple[float, float]:
    """A weighted sum that differs for other parameters, and what rounding may change in it."""
    total = allowed = 0.0
    for leaf in parameters:
        xp = namespace(leaf)
        weighted = xp.reshape(leaf, (-1,)) * generic(int(np.prod(leaf.shape)), xp, device_of(leaf))
        if xp.isdtype(leaf.dtype, "complex floating"):
            weighted = weighted * (1 - 1j)
        weighted = real(weighted)
        widest = xp.__array_namespace_info__().dtypes(kind="real floating").get("float64")
        sums = [xp.sum(x, dtype=widest or x.dtype) for x in (weighted, xp.abs(weighted))]
        total += float(sums[0])
        allowed += 1e3 * float(xp.finfo(sums[0].dtype).eps) * float(sums[1])
    return total, allowed
