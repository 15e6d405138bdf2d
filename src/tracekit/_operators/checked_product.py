"""A product whose argument is protected and whose result is what was declared."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .._arrays import (
    Array,
    Device,
    DType,
    Namespace,
    Placement,
    Product,
    as_declared,
    copied,
    device_of,
    dtype_name,
    is_array,
    is_dtensor,
    namespace,
    plain,
    read_only,
    real_dtype,
)


class Checked:
    """A product whose argument is protected and whose result is what was declared."""

    __slots__ = (
        "__weakref__",
        "columns",
        "device",
        "dtype",
        "layout",
        "name",
        "product",
        "rows",
        "xp",
    )

    def __init__(self, product: Product, name: str, rows: int | None, columns: int,
                 xp: Namespace, dtype: DType, device: Device,
                 layout: Placement | None = None) -> None:  # fmt: skip
        self.product, self.name, self.rows, self.columns = product, name, rows, columns
        self.xp, self.dtype, self.device, self.layout = xp, dtype, device, layout

    def __call__(self, X: Array) -> Array:
        if not is_array(X) or plain(namespace(X)) is not plain(self.xp):
            raise TypeError(
                f"{self.name} takes an array of {self.xp.__name__}, not {type(X).__module__}."
                f"{type(X).__name__}; convert it first"
            )
        if X.ndim != 2 or X.shape[0] != self.columns:
            raise ValueError(
                f"{self.name} takes an array of shape ({self.columns}, k), not {tuple(X.shape)}"
            )
        Y = self._guarded(X)
        shape = (X.shape[1],) if self.rows is None else (self.rows, X.shape[1])
        if not is_array(Y):
            raise TypeError(
                f"{self.name} returned {type(Y).__name__}; it must return an array of shape {shape}"
            )
        if tuple(Y.shape) != shape:
            raise ValueError(
                f"{self.name} returned shape {tuple(Y.shape)} for a block of shape "
                f"{tuple(X.shape)}; it must return shape {shape}"
            )
        if is_dtensor(Y):
            raise TypeError(
                f"{self.name} returned a DTensor, whose parts lie in several processes; say so "
                "with layout=(mesh, placements), or return a tensor, as full_tensor() gives it"
            )
        if plain(namespace(Y)) is not plain(self.xp):
            raise TypeError(
                f"{self.name} returned an array of {type(Y).__module__} for one of "
                f"{self.xp.__name__}; declare the library with xp=, or convert inside the product"
            )
        expected = {self.xp.result_type(self.dtype, X.dtype)}
        if self.rows is None:
            expected |= {real_dtype(dtype, self.xp) for dtype in expected}
        if not any(Y.dtype == dtype for dtype in expected):
            declared = as_declared(Y, expected)
            if declared is None:
                raise TypeError(
                    f"{self.name} returned dtype {dtype_name(Y.dtype)} from an operator of dtype "
                    f"{dtype_name(self.dtype)}; declare it with dtype={dtype_name(Y.dtype)}"
                )
            Y = declared
        if device_of(Y) != device_of(X):
            raise ValueError(
                f"{self.name} returned an array on {device_of(Y)} for one on {device_of(X)}; "
                "declare where the operator lives with device="
            )
        if self.layout is not None and (complaint := self.layout.complaint(Y)) is not None:
            raise ValueError(
                f"{self.name} returned an array that lies as {complaint}; place what it returns, "
                "or declare how it lies"
            )
        # a work buffer that the operator keeps, and fills again at the next product
        return copied(Y) if _references(Y) > _OURS or _is_view_of_kept(Y) else Y

    def _guarded(self, X: Array) -> Array:
        try:
            return self.product(read_only(X))
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            raise ValueError(
                f"{self.name} wrote into its argument, which estimators use again; work on a copy"
            ) from error


def _is_view_of_kept(Y: Array) -> bool:
    """Whether an array is part of one that may be held elsewhere."""
    base = getattr(Y, "base" if isinstance(Y, np.ndarray) else "_base", None)
    if base is None:
        return False
    return not isinstance(base, np.ndarray) or _references(base) > _OURS + 1  # Y itself holds it


def _references(x: Any) -> int:
    return sys.getrefcount(x)


def _of_an_array_of_ours() -> int:
    x = np.empty(0)
    return _references(x)


_OURS = _of_an_array_of_ours()  # references to what one local variable alone holds
