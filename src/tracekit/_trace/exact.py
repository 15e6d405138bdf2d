"""The exact trace, by products with all coordinate vectors or in closed form."""

from __future__ import annotations

from typing import Any

from .._estimates import Estimate, former_name
from .._operators import in_blocks, square
from .sums import exact_trace_of


@former_name("block_size", "chunk_size")
def exact_trace(A: Any, *, chunk_size: int | None = None) -> Estimate:
    """The exact trace, by products with all coordinate vectors.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.
    chunk_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given.

    Returns
    -------
    Estimate
        With standard error 0. The value is a 0-d array in A's library, dtype and device.

    Raises
    ------
    ValueError, TypeError
        If A is not square, is no operator, or returns something unusable; NotFiniteError if that is
        NaN or infinity.

    Notes
    -----
    Costs n products, and memory for one block of columns and its products. Where ``A = L L^H`` is
    made by `gram`, the products are with ``L^H``, or with L if that has fewer columns. Costs
    nothing where the trace is known in closed form.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> tk.exact_trace(np.diag([1.0, 2.0, 3.0]))
    Estimate(6.0 +- 0.0, 3 matvecs, exact_trace)
    """
    return exact_trace_of(in_blocks(square(A), chunk_size))
