"""The functions of array libraries, for arrays of which each process holds some rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import array_api_compat

from .libraries import Array, Namespace
from .row_array import RowArray, elementwise, library, matmul, meeting, permuted, transposed


class RowNamespace:
    """The functions of a library, for its own arrays and for those whose rows are held apart."""

    def __init__(self, base: Namespace) -> None:
        self.of_small = base
        self.__name__ = base.__name__
        self.linalg = _Linalg(base.linalg)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.of_small, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*args: Any, **more: Any) -> Any:
            if not any(map(_is_tall, args)):
                return found(*args, **more)
            if name in _FUNCTIONS:
                return _FUNCTIONS[name](*args, **more)
            if name in _ELEMENTWISE:
                return elementwise(lambda *x, **y: _call(name, *x, **y), args, **more)
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
            X = args[0]
            alone = isinstance(X, RowArray) and len(args) == 1
            if alone and X.shape[-1:] == X.shape[-2:-1]:  # n products were paid for: n is small
                return found(X.held.spread(X.local, X.axis), **more)
            if alone and name == "qr" and X.axis == -2:
                Q, R = X.held.qr(X.local)
                return X._like(Q), R
            if alone and name == "svdvals" and X.ndim > 1:
                return found(X.held.qr(X.local if X.axis == -2 else transposed(X).local)[1])
            raise TypeError(
                f"linalg.{name} needs all rows in one process; it is not defined for RowArray"
            )

        setattr(self, name, call)
        return call


@cache
def row_namespace(base: Namespace) -> Any:
    """One for each library."""
    return RowNamespace(base)


_ELEMENTWISE = frozenset(
    {
        "abs", "acos", "add", "astype", "bitwise_and", "bitwise_right_shift", "bitwise_xor", "ceil",
        "clip", "conj", "cos", "divide", "empty_like", "exp", "expm1", "floor", "full_like",
        "hypot", "imag", "isfinite", "isinf", "isnan", "log", "log1p", "logical_and", "logical_not",
        "logical_or", "maximum", "minimum", "multiply", "ones_like", "pow", "real", "round", "sign",
        "sin", "sqrt", "square", "subtract", "where", "zeros_like",
    }
)  # fmt: skip


def _call(name: str, *args: Any, **more: Any) -> Any:
    [first, *_] = (x for x in args if hasattr(x, "shape"))
    return getattr(library(first), name)(*args, **more)


def _is_tall(x: Any) -> bool:
    return isinstance(x, RowArray) or (isinstance(x, list | tuple) and any(map(_is_tall, x)))


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
        axes, xp = _axes(x, axis), library(x.local)
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
        xp = library(parts[0])
        return getattr(xp, name)(xp.stack(parts), axis=0)

    return extreme


def _count(name: str) -> Callable[..., Any]:
    """Whether all or any are true."""

    def judge(x: RowArray, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        axes, xp = _axes(x, axis), library(x.local)
        part = getattr(xp, name)(x.local, axis=axes, keepdims=keepdims)
        if x.axis not in axes:
            return x._like(part, _after(x, axes, keepdims))
        counted = x.held.total(xp.astype(part if name == "any" else ~part, xp.float64))
        return counted > 0 if name == "any" else counted == 0

    return judge


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
            made = library(x.local).reshape(x.local, local, **more)
            return x._like(made, i - len(shape))
    raise TypeError(
        f"a RowArray of shape {x.shape} cannot be reshaped to {tuple(shape)}, as rows would lie in "
        "several processes"
    )


def _moved(x: RowArray, source: int, destination: int, /) -> RowArray:
    axes = [a for a in range(x.ndim) if a != source % x.ndim]
    axes.insert(destination % x.ndim, source % x.ndim)
    return permuted(x, tuple(axes))


def _concat(arrays: Sequence[Any], /, *, axis: int | None = 0) -> RowArray:
    first: RowArray = next(x for x in arrays if isinstance(x, RowArray))
    along = first.ndim + axis if axis is not None and axis < 0 else axis
    if along is None or along == first.ndim + first.axis:
        raise TypeError("rows held by several processes cannot be put below one another")
    parts = [meeting(first, x) for x in arrays]
    return first._like(library(first.local).concat(parts, axis=along))


def _stack(arrays: Sequence[Any], /, *, axis: int = 0) -> RowArray:
    first: RowArray = next(x for x in arrays if isinstance(x, RowArray))
    local = library(first.local).stack([meeting(first, x) for x in arrays], axis=axis)
    along, position = axis % (first.ndim + 1), first.ndim + first.axis
    return first._like(local, position + (along <= position) - first.ndim - 1)


def _broadcast(x: RowArray, /, shape: tuple[int, ...]) -> RowArray:
    own = list(shape)
    own[x.axis] = x.local.shape[x.axis]
    return x._like(library(x.local).broadcast_to(x.local, tuple(own)))


def _taken(x: RowArray, indices: Array, /, *, axis: int) -> RowArray:
    if axis % x.ndim == x.ndim + x.axis:
        raise TypeError("some rows of a RowArray lie in other processes; use all of them")
    return x._like(library(x.local).take(x.local, indices, axis=axis))


def _rolled(x: RowArray, shift: int, /, *, axis: int) -> RowArray:
    """Each row by one further, the last of all in the place of the first."""
    xp, held = library(x.local), x.held
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
    return x._like(library(x.local).asarray(x.local, **more))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": _sum, "mean": _mean, "max": _extreme("max"), "min": _extreme("min"),
    "all": _count("all"), "any": _count("any"), "matmul": matmul, "reshape": _reshape,
    "permute_dims": permuted, "matrix_transpose": transposed, "moveaxis": _moved,
    "concat": _concat, "stack": _stack, "broadcast_to": _broadcast, "take": _taken,
    "asarray": _as_array, "roll": _rolled,
}  # fmt: skip
