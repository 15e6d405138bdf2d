"""Tall arrays of which each process holds some rows, with the operations that formulas use.

Whatever sums over the rows gives a small array of the library, the same one in every process; all
else is done by each process on the rows that it holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import array_api_compat

from .libraries import Array, device_of


class Held(Protocol):
    """Which of n rows this process holds, and how small arrays go over to the others."""

    @property
    def n(self) -> int:
        """How many rows there are."""

    @property
    def start(self) -> int:
        """The first row of this process."""

    @property
    def stop(self) -> int:
        """The first that is no longer its own."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each process."""

    @property
    def namespace(self) -> Any:
        """Functions of such arrays, and of small ones."""

    def kept(self, local: Array, axis: int) -> Array:
        """The rows that are held, as they are kept."""

    def spread(self, local: Array, axis: int) -> Array:
        """All rows in every process."""

    def gathered(self, local: Array) -> Any:
        """All rows on the host, where one process has them."""

    def total(self, x: Array) -> Array:
        """The sum of one small array of each process."""

    def stacked(self, x: Array) -> list[Array]:
        """The small arrays of all processes, all of one shape, in their order."""

    def rows(self, n: int) -> Array:
        """The numbers of n rows as a column."""

    def qr(self, Y: Array) -> tuple[Array, Array]:
        """``Q R = Y`` of the rows that are held, and the triangle of all."""


class RowArray:
    """An array with one long axis, of which each process holds a part.

    Estimates have such values where there is one number for each row, as `diagonal` gives.

    Parameters
    ----------
    local : array
        The rows that this process holds.
    axis : int
        The long axis, counted from the last: -1 of a vector, -2 of columns.
    held : layout
        Which rows these are, as an operator's ``layout`` tells.
    """

    __slots__ = ("axis", "held", "local")
    __array_ufunc__ = None  # NumPy's arrays leave operators alone

    def __init__(self, local: Array, axis: int, held: Held) -> None:
        self.local, self.axis, self.held = held.kept(local, axis), axis, held

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        shape = list(self.local.shape)
        shape[self.axis] = self.held.n
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.local.ndim)

    @property
    def dtype(self) -> Any:
        """Of the entries."""
        return self.local.dtype

    @property
    def device(self) -> Any:
        """Of the rows that are held here."""
        return device_of(self.local)

    @property
    def T(self) -> RowArray:
        """Transposed."""
        return transposed(self)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        """Functions of such arrays."""
        return self.held.namespace

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.held.gathered(self.local).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> RowArray:
        return _item(self, key if isinstance(key, tuple) else (key,))

    def __matmul__(self, other: Any) -> Any:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return matmul(other, self)

    def __neg__(self) -> RowArray:
        return self._like(-self.local)

    def __invert__(self) -> RowArray:
        return self._like(~self.local)

    def __bool__(self) -> bool:
        raise ValueError(
            f"the truth value of a RowArray of shape {self.shape} is ambiguous; reduce it first, "
            "as by its namespace's all or any"
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        rows = f"rows {self.held.start} to {self.held.stop} held here"
        return f"RowArray(shape={self.shape}, {rows}: {self.local!r})"

    def _like(self, local: Array, axis: int | None = None) -> RowArray:
        return RowArray(local, self.axis if axis is None else axis, self.held)


RowArray.__module__ = "tracekit"


def _binary(name: str) -> None:
    f = getattr(operator, name)

    def forward(self: RowArray, other: Any) -> Any:
        return elementwise(f, (self, other))

    def reflected(self: RowArray, other: Any) -> Any:
        return elementwise(f, (other, self))

    name = name.strip("_")
    setattr(RowArray, f"__{name}__", forward)
    if name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(RowArray, f"__r{name}__", reflected)


for _name in ("add", "sub", "mul", "truediv", "pow", "mod", "floordiv", "and_", "or_", "xor",
              "rshift", "lshift", "lt", "le", "gt", "ge", "eq", "ne"):  # fmt: skip
    _binary(_name)
RowArray.__hash__ = object.__hash__  # type: ignore[method-assign]  # compared entry by entry


def library(x: Array) -> Any:
    return array_api_compat.array_namespace(x)


def whole(x: Array) -> Array:
    """All rows in every process, where they are few."""
    return x.held.spread(x.local, x.axis) if isinstance(x, RowArray) else x


def elementwise(f: Callable[..., Any], args: Sequence[Any], **more: Any) -> Any:
    first: RowArray = next(x for x in args if isinstance(x, RowArray))
    return first._like(f(*(meeting(first, x) for x in args), **more))


def meeting(X: RowArray, other: Any) -> Any:
    """What of another array meets the rows that are held."""
    if isinstance(other, RowArray):
        if (other.held.counts, other.held.n) != (X.held.counts, X.held.n):
            raise ValueError(
                "arrays whose rows are divided in two ways cannot meet; pass one layout to both"
            )
        if other.axis != X.axis:
            raise ValueError(
                f"arrays of shapes {X.shape} and {other.shape} have their rows along different "
                "axes; one n by n array is more than any process holds"
            )
        return other.local
    ndim = getattr(other, "ndim", 0)
    if not isinstance(ndim, int) or ndim < -X.axis:  # a dtype, a number, an array of fewer axes
        return other
    size = other.shape[X.axis]
    if size == 1 or X.held.n == 1:
        return other
    if size != X.held.n:
        raise ValueError(f"arrays of shapes {X.shape} and {tuple(other.shape)} cannot meet")
    return other[(..., slice(X.held.start, X.held.stop), *[slice(None)] * (-X.axis - 1))]


def matmul(X: Any, Y: Any) -> Any:
    if isinstance(X, RowArray) and isinstance(Y, RowArray):
        if X.axis == -1 and Y.axis == -2:
            return X.held.total(X.local @ Y.local)
        if X.axis == Y.axis and X.axis < -2:
            return X._like(X.local @ Y.local)
    elif isinstance(X, RowArray):
        if X.axis != -1:
            return X._like(X.local @ Y)
        if getattr(Y, "ndim", 0) > 1 and Y.shape[-2] == X.held.n:
            return X.held.total(X.local @ Y[..., X.held.start : X.held.stop, :])
    else:
        if Y.axis != -2:
            return Y._like(X @ Y.local)
        if X.shape[-1] == Y.held.n:
            return Y.held.total(X[..., Y.held.start : Y.held.stop] @ Y.local)
    raise ValueError(
        f"the product of arrays of shapes {tuple(X.shape)} and {tuple(Y.shape)} has one entry for "
        "every pair of rows, more than any process holds"
    )


def _item(x: RowArray, key: tuple[Any, ...]) -> RowArray:
    """Entries, where all rows are kept."""
    places = [i for i, k in enumerate(key) if k is Ellipsis]
    key = key if places else (*key, Ellipsis)
    i, taken = [*places, len(key) - 1][0], sum(k is not None for k in key) - 1
    key = (*key[:i], *[slice(None)] * (x.ndim - taken), *key[i + 1 :])
    old, new, position, local = 0, 0, None, list[Any]()
    for k in key:
        if k is None:
            new += 1
        else:
            if not _selects(k):
                raise TypeError(
                    f"a RowArray is indexed by slices, ints and arrays of ints, got "
                    f"{type(k).__name__}; use its rows, as `local`"
                )
            if old == x.ndim + x.axis:
                position, k = new, _whole(k, x)
            new += isinstance(k, slice) or getattr(k, "ndim", 0) == 1
            old += 1
        local.append(k)
    assert position is not None
    return x._like(x.local[tuple(local)], position - new)


def _selects(k: Any) -> bool:
    if isinstance(k, slice | int) and not isinstance(k, bool):
        return True
    return not isinstance(k, RowArray) and getattr(k, "ndim", 2) < 2 and "int" in str(k.dtype)


def _whole(k: Any, x: RowArray) -> slice:
    if isinstance(k, slice) and k.indices(x.held.n) == (0, x.held.n, 1):
        return slice(None)
    raise TypeError(f"rows {k} of a RowArray lie in other processes; use all of them")


def permuted(x: RowArray, /, axes: tuple[int, ...]) -> RowArray:
    local = library(x.local).permute_dims(x.local, axes)
    return x._like(local, [a % x.ndim for a in axes].index(x.ndim + x.axis) - x.ndim)


def transposed(x: RowArray, /) -> RowArray:
    axes = list(range(x.ndim))
    axes[-2:] = axes[-1], axes[-2]
    return permuted(x, tuple(axes))
