"""Tensor axes of an operator's domain: which are kept, which are traced, and how to go between."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import numpy as np

from .._arrays import (
    Array,
    Placement,
    RowArray,
    Rows,
    adjoint,
    colsum,
    conj,
    contract,
    device_of,
    namespace,
)
from .convert import as_operator
from .linear_operator import LinearOperator


@dataclass(frozen=True)
class Axes:
    """A domain of tensors of shape `dims`, in C order; `over` are the axes that are traced."""

    dims: tuple[int, ...]
    over: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The axes, those that are kept first."""
        return (*(a for a in range(len(self.dims)) if a not in self.over), *self.over)

    @property
    def kept_dims(self) -> tuple[int, ...]:
        """Sizes of the kept axes."""
        return tuple(size for a, size in enumerate(self.dims) if a not in self.over)

    @property
    def kept(self) -> int:
        """Entries of the kept axes."""
        return math.prod(self.kept_dims)

    @property
    def traced(self) -> int:
        """Entries of the traced axes."""
        return math.prod(self.dims[a] for a in self.over)

    def apart(self, X: Array) -> Array:
        """Columns (n, k) as (kept, traced, k)."""
        xp, k = namespace(X), X.shape[1]
        X = xp.permute_dims(xp.reshape(X, (*self.dims, k)), (*self.order, len(self.dims)))
        return xp.reshape(X, (self.kept, self.traced, k))

    def together(self, X: Array) -> Array:
        """The inverse of `apart`."""
        xp, k, order = namespace(X), X.shape[2], self.order
        X = xp.reshape(X, (*(self.dims[a] for a in order), k))
        back = tuple(order.index(a) for a in range(len(order)))
        return xp.reshape(xp.permute_dims(X, (*back, len(order))), (math.prod(self.dims), k))

    def lift(self, E: Array, Z: Array, layout: Placement | None = None) -> Array:
        """Kronecker products of the columns of E (kept, c) and Z (traced, m): (n, c * m)."""
        if isinstance(layout, Rows):
            return self._lifted_rows(E, Z, layout)
        both = E[:, None, :, None] * Z[None, :, None, :]
        X = self.together(
            namespace(E).reshape(both, (self.kept, self.traced, E.shape[1] * Z.shape[1]))
        )
        return X if layout is None else layout.place(X)

    def drop(self, Y: Array, Z: Array) -> Array:
        """``(I x z_j)^H`` on columns (n, c * m), z_j that of their own: (kept, c, m)."""
        if isinstance(Y, RowArray):
            return self._of_rows(lambda own, part: own.drop(part, self._own(Z, Y)), Y)
        xp, m = namespace(Y), Z.shape[1]
        Y = xp.reshape(self.apart(Y), (self.kept, self.traced, -1, m))
        Y = xp.reshape(conj(Z)[None, :, None, :] * Y, (self.kept, self.traced, -1))
        return xp.reshape(colsum(Y), (self.kept, -1, m))

    def summed(self, X: Array) -> Array:
        """Columns (n, k) summed over the traced axes: (kept, k)."""
        if isinstance(X, RowArray):
            return self._of_rows(Axes.summed, X)
        return colsum(self.apart(X))

    def outer(self, X: Array) -> Array:
        """The partial trace of ``x_j x_j^H`` for every column: (kept, kept, k)."""
        if isinstance(X, RowArray):
            return self._of_pairs(Axes.outer, X)
        xp = namespace(X)
        X = xp.permute_dims(self.apart(X), (2, 0, 1))
        return xp.permute_dims(X @ adjoint(X), (1, 2, 0))

    def cross(self, X: Array, Y: Array) -> Array:
        """The partial trace of ``X Y^H``: (kept, kept)."""
        if isinstance(X, RowArray):
            return self._of_pairs(Axes.cross, X, Y)
        xp = namespace(X)
        X, Y = (xp.reshape(self.apart(columns), (self.kept, -1)) for columns in (X, Y))
        return contract(X, adjoint(Y))

    def _lifted_rows(self, E: Array, Z: Array, layout: Rows) -> Array:
        """Of Kronecker products the rows that a process holds."""
        xp, rows = namespace(E), np.arange(layout.start, layout.stop)
        at = np.stack(np.unravel_index(rows, self.dims))
        over = [a for a in self.order if a in self.over]
        numbers = [
            np.ravel_multi_index([at[a] for a in axes], [self.dims[a] for a in axes])
            if axes
            else 0 * rows
            for axes in ([a for a in self.order if a not in self.over], over)
        ]
        kept, traced = (
            xp.take(X, xp.asarray(i, device=device_of(X)), axis=0)
            for X, i in zip((E, Z), numbers, strict=True)
        )
        both = kept[:, :, None] * traced[:, None, :]
        return layout.whole(xp.reshape(both, (len(rows), E.shape[1] * Z.shape[1])))

    def _of_rows(self, form: Callable[[Axes, Array], Array], X: RowArray) -> Array:
        """A form that is summed over the rows, as each process forms it of those it holds.

        It fills them with zeros up to whole steps along the first axis.
        """
        own, low, local = self._whole_steps(X)
        part = form(own, local)
        if 0 not in self.over and own.kept < self.kept:
            xp, before = namespace(part), low * (own.kept // own.dims[0])
            sizes = before, self.kept - before - own.kept
            above, below = (
                xp.zeros((k, *part.shape[1:]), dtype=part.dtype, device=device_of(part))
                for k in sizes
            )
            part = xp.concat([above, part, below], axis=0)
        return X.held.total(part)

    def has_pairs_apart(self, held: Any) -> bool:
        """Whether each process holds both rows of all pairs that a trace of pairs adds."""
        step = math.prod(self.dims[1:])
        return 0 in self.over and all(count % step == 0 for count in held.counts)

    def _of_pairs(self, form: Callable[..., Array], *arrays: RowArray) -> Array:
        """A form of pairs of kept entries, where no pair lies in two processes."""
        if not self.has_pairs_apart(arrays[0].held):
            raise ValueError(
                "the first axis of `dims` is divided among processes, and this partial trace needs "
                "pairs of rows in two of them; trace over it, with the rows of each process a "
                f"multiple of {math.prod(self.dims[1:])}"
            )
        steps = [self._whole_steps(X) for X in arrays]
        return arrays[0].held.total(form(steps[0][0], *(local for _, _, local in steps)))

    def _whole_steps(self, X: RowArray) -> tuple[Axes, int, Array]:
        """The rows of a process, and zeros, as a tensor whose first axis is shorter; its start."""
        step, held = math.prod(self.dims[1:]), X.held
        low = min(held.start // step, self.dims[0] - 1)  # of a process that holds no rows, the last
        high = max(-(-held.stop // step), low + 1)
        xp, local = namespace(X.local), X.local
        above, below = (
            xp.zeros((k, *local.shape[1:]), dtype=local.dtype, device=device_of(local))
            for k in (held.start - low * step, high * step - held.start - local.shape[0])
        )
        return (
            replace(self, dims=(high - low, *self.dims[1:])),
            low,
            xp.concat([above, local, below]),
        )

    def _own(self, Z: Array, X: RowArray) -> Array:
        """Of columns of the traced axes those of the first steps that a process holds."""
        if 0 not in self.over:
            return Z
        own, low, _ = self._whole_steps(X)
        Z = namespace(Z).reshape(Z, (self.dims[0], -1, Z.shape[1]))
        return namespace(Z).reshape(Z[low : low + own.dims[0], :, :], (-1, Z.shape[2]))


def read_axes(A: LinearOperator, dims: Any, axis: Any) -> Axes:
    """The axes of an operator's domain, if they make sense."""
    if dims is None and A.dims is None:
        raise ValueError(
            f"this operator of dimension {A.shape[1]} does not carry the shape of its tensors; "
            "pass dims, a tuple of sizes"
        )
    dims = checked_dims(A, A.dims if dims is None else dims)
    given = axis if isinstance(axis, tuple | list) else (axis,)
    try:
        numbers = [_index(a) for a in given]
    except TypeError:
        raise TypeError(
            f"`axis` must be an int or a tuple of ints, got {axis!r}; pass the axes to trace over"
        ) from None
    if any(not -len(dims) <= a < len(dims) for a in numbers):
        raise ValueError(
            f"axis={axis!r} is out of range for dims={dims}; pass positions from {-len(dims)} to "
            f"{len(dims) - 1}"
        )
    over = tuple(sorted({a % len(dims) for a in numbers}))
    if len(over) < len(numbers):
        raise ValueError(f"axis={axis!r} names an axis of dims={dims} twice; pass each once")
    return Axes(dims, over)


def checked_dims(A: LinearOperator, dims: Any) -> tuple[int, ...]:
    """Sizes that multiply to the dimension of the domain."""
    try:
        sizes = tuple(_index(size) for size in dims)
    except TypeError:
        raise TypeError(
            f"`dims` must be a tuple of ints, got {dims!r}; pass the sizes of the tensor's axes"
        ) from None
    if not sizes or any(size < 1 for size in sizes) or math.prod(sizes) != A.shape[1]:
        raise ValueError(
            f"dims={sizes} do not make the dimension {A.shape[1]} of the operator; pass positive "
            "sizes that multiply to it"
        )
    return sizes


def with_dims(A: Any, dims: tuple[int, ...]) -> LinearOperator:
    """The same operator, which now carries the tensor shape of its domain.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Of shape (m, n).
    dims : tuple of int
        Sizes that multiply to n, in C order: entry (i, j, ...) of the tensor is entry
        ``numpy.ravel_multi_index((i, j, ...), dims)`` of the vector.

    Returns
    -------
    LinearOperator
        With ``A.dims`` set, so that `partial_trace` and `block_traces` take None for dims.

    Raises
    ------
    ValueError, TypeError
        If `dims` is no tuple of positive ints that multiply to n.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> K = tk.with_dims(tk.gram(np.ones((6, 2))), (2, 3))
    >>> tk.partial_trace(K, None, 1).value.tolist()
    [[6.0, 6.0], [6.0, 6.0]]
    """
    operator: LinearOperator = as_operator(A)
    return replace(operator, dims=checked_dims(operator, dims))


def _index(number: Any) -> int:
    if isinstance(number, bool):
        raise TypeError("a truth value")
    return index(number)
