"""A layout of rows that the caller describes: what this process holds, and a sum over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .libraries import Array, Device, Namespace, plain, to_host
from .row_functions import row_namespace
from .rows import Rows


@dataclass(frozen=True)
class RowLayout:
    """Rows of tall arrays that this process holds, and a sum over all processes.

    Every process runs the same program, with a layout of its own. Products take and give the rows
    that the process holds; sums over rows, and nothing else, go through `allsum`. What a product
    gives that has no such rows, as of the adjoint of a factor, it gives whole, summed over all.

    Parameters
    ----------
    rows : slice
        Those of this process, ``slice(start, stop)``. Processes hold rows in the order of their
        rank; one may hold none.
    allsum : callable
        ``x -> sum of the x of all processes``, of small arrays of the operator's library, such as
        ``MPI.COMM_WORLD.allreduce``. All processes have to be given the same numbers.
    rank, size : int
        The number of this process, and how many there are.

    Examples
    --------
    One process that holds all rows:

    >>> import numpy as np, tracekit as tk
    >>> layout = tk.RowLayout(slice(0, 500), lambda x: x, rank=0, size=1)
    >>> d = 1 / np.arange(1.0, 501) ** 2  # of these rows
    >>> A = tk.LinearOperator((500, 500), lambda X: d[:, None] * X, layout=layout)
    >>> low, high = tk.hutchpp(A, 60, rng=0).confidence_interval(0.95)
    >>> bool(low < d.sum() < high)
    True
    """

    rows: slice
    allsum: Callable[[Array], Array]
    rank: int
    size: int

    def __post_init__(self) -> None:
        start, stop, step = (getattr(self.rows, x, ...) for x in ("start", "stop", "step"))
        ends = [end for end in (start, stop) if isinstance(end, int | np.integer)]
        if len(ends) < 2 or not 0 <= ends[0] <= ends[1] or step not in (None, 1):
            raise ValueError(f"`rows` must be slice(start, stop) of ints, got {self.rows}")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"`rank` must be below `size`, got {self.rank} of {self.size}")
        if not callable(self.allsum):
            raise TypeError(f"`allsum` must be a function, got {type(self.allsum).__name__}")


RowLayout.__module__ = "tracekit"


def rows_of(layout: RowLayout, shape: tuple[int, int], xp: Namespace, device: Device) -> Rows:
    """A layout for the long axis, or both axes, of an operator."""
    start, stop, library = layout.rows.start, layout.rows.stop, plain(xp)
    held = library.asarray([float(stop - start)], device=device)
    total = int(to_host(layout.allsum(held) if layout.size > 1 else held)[0])
    n = total if total in shape else max(shape)
    return Rows(
        n, start, stop, layout.rank, layout.size, layout.allsum, row_namespace(library), device
    )
