"""What is raised of products that are not finite."""

from __future__ import annotations

from typing import Any

from .._arrays import Array, is_finite


class NotFiniteError(ValueError):
    """An operator returned NaN or infinity.

    Parameters
    ----------
    message : str
        What was found, and what to do.
    estimate : Estimate, optional
        What the products spent before were worth, if they were enough for an estimate; kept as the
        attribute `estimate`.

    Notes
    -----
    A ValueError. It is raised where values can be looked at; under `jax.jit` NaN passes through.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.LinearOperator((4, 4), lambda X: X * np.nan)
    >>> try:
    ...     tk.hutchinson(A, 2, rng=0)
    ... except tk.NotFiniteError as error:
    ...     print(error.estimate)
    None
    """

    def __init__(self, message: str, estimate: Any = None) -> None:
        super().__init__(message)
        self.estimate = estimate


NotFiniteError.__module__ = "tracekit"


def require_finite(x: Array, quantity: str = "", *, columns: Array | None = None) -> None:
    """Raise NotFiniteError if values that are known hold NaN or infinity.

    The error names the `quantity` that was wanted, and the first of the `columns` that is not
    finite: products, or what is made of each of them, along the last axis.
    """
    if is_finite(x):
        return
    where = ""
    if columns is not None and not is_finite(columns):
        count = columns.shape[-1]
        first = next(j for j in range(count) if not is_finite(columns[..., j]))
        where = f" (first in column {first} of {count})"
    what = f"its {quantity} cannot" if quantity else "nothing can"
    raise NotFiniteError(
        f"the operator's products contain NaN or infinity{where}, so that {what} be estimated; "
        "check the operator with tracekit.testing.adjoint_test or by A @ x on a vector of yours"
    )
