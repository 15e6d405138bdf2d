"""Tall arrays of which each process holds some rows, with the operations that formulas use.

Whatever sums over the rows gives a small array of the library, the same one in every process; all
else is done by each process on the rows that it holds.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import array_api_compat

from .libraries import Array, Namespace


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
    def xp(self) -> Namespace:
        """The library of small arrays."""

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

    Attributes
    ----------
    local : array
        The rows that this process holds.
    axis : int
        The long axis, counted from the last: -1 of a vector, -2 of columns.
    shape : tuple of int
        Of the whole array.
    dtype, device
        As those of `local`.
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
        return array_api_compat.device(self.local)

    @property
    def T(self) -> RowArray:
        """Transposed."""
        return _transposed(self)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        """Functions of such arrays."""
        return row_namespace(self.held.xp)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.held.gathered(self.local).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> RowArray:
        return _item(self, key if isinstance(key, tuple) else (key,))

    def __matmul__(self, other: Any) -> Any:
        return _matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return _matmul(other, self)

    def __neg__(self) -> RowArray:
        return self._like(-self.local)

    def __invert__(self) -> RowArray:
        return self._like(~self.local)

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
        return _elementwise(f, (self, other))

    def reflected(self: RowArray, other: Any) -> Any:
        return _elementwise(f, (other, self))

    name = name.strip("_")
    setattr(RowArray, f"__{name}__", forward)
    if name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(RowArray, f"__r{name}__", reflected)


for _name in ("add", "sub", "mul", "truediv", "pow", "mod", "floordiv", "and_", "or_", "xor",
              "rshift", "lshift", "lt", "le", "gt", "ge", "eq", "ne"):  # fmt: skip
    _binary(_name)
RowArray.__hash__ = object.__hash__  # type: ignore[method-assign]  # compared entry by entry


class RowNamespace:
    """The functions of a library, for its own arrays and for those whose rows are held apart."""

    def __init__(self, base: Namespace) -> None:
        self.base = base
        self.__name__ = base.__name__
        self.linalg = _Linalg(base.linalg)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.base, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*args: Any, **more: Any) -> Any:
            if not any(map(_is_tall, args)):
                return found(*args, **more)
            if name in _FUNCTIONS:
                return _FUNCTIONS[name](*args, **more)
            if name in _ELEMENTWISE:
                return _elementwise(lambda *x, **y: _call(name, *x, **y), args, **more)
            raise TypeError(f"{name} needs all rows in one process; it is not defined for RowArray")

        setattr(self, name, call)
        return call


class _Linalg:
    """Factorisations of small arrays, and the QR factorisation of tall ones."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.base, name)

        def call(*args: Any, **more: Any) -> Any:
            if not any(map(_is_tall, args)):
                return found(*args, **more)
            [X] = args
            if X.shape[-1] == X.shape[-2]:  # n products were paid for: n is small
                return found(X.held.spread(X.local, X.axis), **more)
            if name == "qr" and X.axis == -2:
                Q, R = X.held.qr(X.local)
                return X._like(Q), R
            if name == "svdvals":
                return found(X.held.qr(X.local if X.axis == -2 else _transposed(X).local)[1])
            raise TypeError(
                f"linalg.{name} needs all rows in one process; it is not defined for RowArray"
            )

        setattr(self, name, call)
        return call


@cache
def row_namespace(base: Namespace) -> Any:
    """One for each library."""
    return RowNamespace(base)


def plain(xp: Any) -> Namespace:
    """The library's own namespace."""
    found: Namespace = xp.base if isinstance(xp, RowNamespace) else xp
    return found


_ELEMENTWISE = frozenset(
    {
        "abs", "acos", "add", "astype", "bitwise_and", "bitwise_right_shift", "bitwise_xor", "ceil",
        "clip", "conj", "cos", "divide", "empty_like", "exp", "expm1", "floor", "full_like",
        "hypot", "imag", "isfinite", "isinf", "isnan", "log", "log1p", "logical_and", "logical_not",
        "logical_or", "maximum", "minimum", "multiply", "ones_like", "pow", "real", "round", "sign",
        "sin", "sqrt", "square", "subtract", "where", "zeros_like",
    }
)  # fmt: skip


def _library(x: Array) -> Any:
    return array_api_compat.array_namespace(x)


def _call(name: str, *args: Any, **more: Any) -> Any:
    [first, *_] = (x for x in args if hasattr(x, "shape"))
    return getattr(_library(first), name)(*args, **more)


def _is_tall(x: Any) -> bool:
    return isinstance(x, RowArray) or (isinstance(x, list | tuple) and any(map(_is_tall, x)))


def _elementwise(f: Callable[..., Any], args: Sequence[Any], **more: Any) -> Any:
    first: RowArray = next(x for x in args if isinstance(x, RowArray))
    return first._like(f(*(_meeting(first, x) for x in args), **more))


def _meeting(X: RowArray, other: Any) -> Any:
    """What of another array meets the rows that are held."""
    if isinstance(other, RowArray):
        if other.axis != X.axis or other.held.n != X.held.n:
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


def _axes(x: RowArray, axis: Any) -> tuple[int, ...]:
    """Axes of a reduction, counted from the last."""
    if axis is None:
        return tuple(range(-x.ndim, 0))
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(a if a < 0 else a - x.ndim for a in axes)


def _after(x: RowArray, axes: tuple[int, ...], keepdims: bool) -> int:
    """The long axis of what a reduction over others gives."""
    return x.axis if keepdims else x.axis + sum(a > x.axis for a in axes)


def _sum(x: RowArray, /, *, axis: Any = None, keepdims: bool = False, **more: Any) -> Any:
    axes = _axes(x, axis)
    part = _call("sum", x.local, axis=axes, keepdims=keepdims, **more)
    return x.held.total(part) if x.axis in axes else x._like(part, _after(x, axes, keepdims))


def _mean(x: RowArray, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return _sum(x, axis=axis, keepdims=keepdims) / math.prod(x.shape[a] for a in _axes(x, axis))


def _extreme(name: str) -> Callable[..., Any]:
    """Largest or smallest: of the rows that are held, and then of all processes that hold any."""

    def extreme(x: RowArray, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        axes, xp = _axes(x, axis), _library(x.local)
        if x.axis not in axes:
            part = getattr(xp, name)(x.local, axis=axes, keepdims=keepdims)
            return x._like(part, _after(x, axes, keepdims))
        local = x.local
        if local.shape[x.axis] == 0:
            shape = [1 if i == x.ndim + x.axis else k for i, k in enumerate(local.shape)]
            worst = -math.inf if name == "max" else math.inf
            local = xp.full(tuple(shape), worst, dtype=x.dtype, device=x.device)
        part = getattr(xp, name)(local, axis=axes, keepdims=keepdims)
        parts = x.held.stacked(part)
        xp = _library(parts[0])
        return getattr(xp, name)(xp.stack(parts), axis=0)

    return extreme


def _count(name: str) -> Callable[..., Any]:
    """Whether all or any are true."""

    def judge(x: RowArray, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        axes, xp = _axes(x, axis), _library(x.local)
        part = getattr(xp, name)(x.local, axis=axes, keepdims=keepdims)
        if x.axis not in axes:
            return x._like(part, _after(x, axes, keepdims))
        counted = x.held.total(xp.astype(part if name == "any" else ~part, xp.float64))
        return counted > 0 if name == "any" else counted == 0

    return judge


def _matmul(X: Any, Y: Any) -> Any:
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
    if Ellipsis not in key:
        key = (*key, Ellipsis)
    i, taken = key.index(Ellipsis), sum(k is not None for k in key) - 1
    key = (*key[:i], *[slice(None)] * (x.ndim - taken), *key[i + 1 :])
    old, new, position, local = 0, 0, None, list[Any]()
    for k in key:
        if k is None:
            new += 1
        else:
            if old == x.ndim + x.axis:
                position, k = new, _whole(k, x)
            new += isinstance(k, slice) or getattr(k, "ndim", 0) == 1
            old += 1
        local.append(k)
    assert position is not None
    return x._like(x.local[tuple(local)], position - new)


def _whole(k: Any, x: RowArray) -> slice:
    if isinstance(k, slice) and k.indices(x.held.n) == (0, x.held.n, 1):
        return slice(None)
    raise TypeError(f"rows {k} of a RowArray lie in other processes; use all of them")


def _reshape(x: RowArray, /, shape: tuple[int, ...], **more: Any) -> RowArray:
    """Other axes beside the long one, which has to stay."""
    n, size = x.held.n, math.prod(x.shape)
    if -1 in shape:
        rest = max(-math.prod(shape), 1)
        shape = tuple(size // rest if k == -1 else k for k in shape)
    before = math.prod(x.shape[: x.ndim + x.axis])
    for i, k in enumerate(shape):
        if k == n and math.prod(shape[:i]) == before:
            local = (*shape[:i], x.local.shape[x.axis], *shape[i + 1 :])
            made = _library(x.local).reshape(x.local, local, **more)
            return x._like(made, i - len(shape))
    raise TypeError(
        f"a RowArray of shape {x.shape} cannot be reshaped to {tuple(shape)}, as rows would lie in "
        "several processes"
    )


def _permuted(x: RowArray, /, axes: tuple[int, ...]) -> RowArray:
    local = _library(x.local).permute_dims(x.local, axes)
    return x._like(local, [a % x.ndim for a in axes].index(x.ndim + x.axis) - x.ndim)


def _transposed(x: RowArray, /) -> RowArray:
    axes = list(range(x.ndim))
    axes[-2:] = axes[-1], axes[-2]
    return _permuted(x, tuple(axes))


def _moved(x: RowArray, source: int, destination: int, /) -> RowArray:
    axes = [a for a in range(x.ndim) if a != source % x.ndim]
    axes.insert(destination % x.ndim, source % x.ndim)
    return _permuted(x, tuple(axes))


def _concat(arrays: Sequence[Any], /, *, axis: int | None = 0) -> RowArray:
    first: RowArray = next(x for x in arrays if isinstance(x, RowArray))
    along = first.ndim + axis if axis is not None and axis < 0 else axis
    if along is None or along == first.ndim + first.axis:
        raise TypeError("rows held by several processes cannot be put below one another")
    parts = [_meeting(first, x) for x in arrays]
    return first._like(_library(first.local).concat(parts, axis=along))


def _stack(arrays: Sequence[Any], /, *, axis: int = 0) -> RowArray:
    first: RowArray = next(x for x in arrays if isinstance(x, RowArray))
    local = _library(first.local).stack([_meeting(first, x) for x in arrays], axis=axis)
    along, position = axis % (first.ndim + 1), first.ndim + first.axis
    return first._like(local, position + (along <= position) - first.ndim - 1)


def _broadcast(x: RowArray, /, shape: tuple[int, ...]) -> RowArray:
    own = list(shape)
    own[x.axis] = x.local.shape[x.axis]
    return x._like(_library(x.local).broadcast_to(x.local, tuple(own)))


def _taken(x: RowArray, indices: Array, /, *, axis: int) -> RowArray:
    if axis % x.ndim == x.ndim + x.axis:
        raise TypeError("some rows of a RowArray lie in other processes; use all of them")
    return x._like(_library(x.local).take(x.local, indices, axis=axis))


def _rolled(x: RowArray, shift: int, /, *, axis: int) -> RowArray:
    """Each row by one further, the last of all in the place of the first."""
    xp, held = _library(x.local), x.held
    if shift != 1 or axis % x.ndim != x.ndim + x.axis or x.axis != -x.ndim:
        raise TypeError("rows of a RowArray are rolled by 1 alone")
    empty = x.local.shape[0] == 0
    last = xp.zeros((1, *x.local.shape[1:]), dtype=x.dtype, device=x.device)
    ends = held.stacked(last if empty else x.local[-1:, ...])
    held_rows = [i for i, count in enumerate(held.counts) if count]
    before = ends[held_rows[held_rows.index(held.rank) - 1]] if not empty else last
    return x if empty else x._like(xp.concat([before, x.local[:-1, ...]]))


def _as_array(x: RowArray, /, **more: Any) -> RowArray:
    if array_api_compat.is_dask_array(x.local):  # which nobody writes into
        return x
    return x._like(_library(x.local).asarray(x.local, **more))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": _sum, "mean": _mean, "max": _extreme("max"), "min": _extreme("min"),
    "all": _count("all"), "any": _count("any"), "matmul": _matmul, "reshape": _reshape,
    "permute_dims": _permuted, "matrix_transpose": _transposed, "moveaxis": _moved,
    "concat": _concat, "stack": _stack, "broadcast_to": _broadcast, "take": _taken,
    "asarray": _as_array, "roll": _rolled,
}  # fmt: skip
