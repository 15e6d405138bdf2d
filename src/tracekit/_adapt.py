"""Reads a linear operator from whatever the caller holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, cast

import numpy as np

from . import _xp
from ._operator import LinearOperator
from ._typing import Array, Device, DType, Namespace, Product


@singledispatch
def as_operator(A: Any, *, xp: Namespace | None = None, device: Device = None) -> LinearOperator:
    """Read anything that behaves as a linear operator.

    Parameters
    ----------
    A : LinearOperator, array, sparse matrix, or any object with a shape and products
        A matrix of NumPy, PyTorch, JAX, CuPy or any array API library; a SciPy or CuPy sparse array
        or matrix; a SciPy, CuPy or PyLops linear operator; any object with ``shape`` and
        ``matmat``, ``matvec`` or ``@``.
    xp : namespace, optional
        The array library that a foreign object's products take, where it cannot be told from the
        object; NumPy otherwise.
    device : optional
        Where such an object's arrays live.

    Returns
    -------
    LinearOperator
        Integers become the default float, half precisions float32; nothing else is copied.

    Raises
    ------
    TypeError
        If no shape or no product is found.
    ValueError
        If an array does not have two dimensions.

    Notes
    -----
    ``as_operator.register(YourType)`` teaches a new type: a function of the object (and of the
    keywords `xp` and `device`) that returns a `LinearOperator`. Reading costs no product.

    Examples
    --------
    >>> import numpy as np, scipy.sparse, tracekit as tk
    >>> tk.as_operator(np.eye(3))
    <3x3 LinearOperator of numpy float64>
    >>> tk.as_operator(scipy.sparse.eye_array(1000, dtype="float32"))
    <1000x1000 LinearOperator of numpy float32>
    """
    if isinstance(A, np.matrix):
        A = np.asarray(A)
    if _xp.is_array(A) and not isinstance(A, type):
        return _from_array(A)
    shape = None if isinstance(A, type) else getattr(A, "shape", None)
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        hint = (
            "wrap it as LinearOperator((n, n), function)"
            if callable(A)
            else "pass an array, a sparse matrix, or an object with shape and matmat"
        )
        raise TypeError(f"{_describe(A)} has no shape, so it is no linear operator; {hint}")
    if len(shape) != 2:
        raise ValueError(f"{_describe(A)} has shape {tuple(shape)}; an operator needs two sizes")
    xp = xp or _library(A)
    if hasattr(A, "tocsr"):
        return _from_sparse(A, xp, device)
    return _from_products(A, xp, device)


@as_operator.register
def _(A: LinearOperator, *, xp: Namespace | None = None, device: Device = None) -> LinearOperator:
    return A


def _from_array(A: Array) -> LinearOperator:
    if A.ndim != 2:
        raise ValueError(
            f"an array of shape {tuple(A.shape)} is no matrix; pass one with two dimensions"
        )
    xp, device = _xp.namespace(A), _xp.device(A)
    if isinstance(A, np.ma.MaskedArray):
        raise TypeError("a masked array has unknown entries; pass A.filled(value) instead")
    if xp is _xp.np_compat and not (np.issubdtype(A.dtype, np.number) or A.dtype == bool):
        raise TypeError(
            f"an array of dtype {A.dtype} holds no numbers; pass floats, ints or complex numbers"
        )
    dtype = _xp.floating(A.dtype, xp, device)
    if A.dtype != dtype:
        A = xp.astype(A, dtype)
    return LinearOperator(
        A.shape, lambda X: A @ X, lambda X: _xp.adjoint(A) @ X, dtype=dtype, xp=xp, device=device
    )


def _from_sparse(A: Any, xp: Namespace, device: Device) -> LinearOperator:
    """A sparse matrix of SciPy or CuPy; its adjoint is laid out once, when first used."""
    dtype = _floating_like(A, xp, device)
    adjoint: list[Any] = []

    def rmatmat(X: Array) -> Array:
        if not adjoint:
            adjoint.append(A.conj().T)
        return adjoint[0] @ X

    return LinearOperator(A.shape, lambda X: A @ X, rmatmat, dtype=dtype, xp=xp, device=device)


def _from_products(A: Any, xp: Namespace, device: Device) -> LinearOperator:
    matmat = _product(A, "matmat", "matvec", xp)
    if matmat is None and hasattr(A, "__matmul__"):

        def matmat(X: Array) -> Array:
            return A @ X

    if matmat is None:
        raise TypeError(
            f"{_describe(A)} has a shape but no product; give it matmat, matvec or @, or wrap it "
            "as LinearOperator(A.shape, function)"
        )
    return LinearOperator(
        A.shape,
        matmat,
        _product(A, "rmatmat", "rmatvec", xp),
        dtype=_floating_like(A, xp, device),
        xp=xp,
        device=getattr(A, "device", None) if device is None else device,
    )


def _product(A: Any, block: str, single: str, xp: Namespace) -> Product | None:
    """The block product of an object, if need be column by column."""
    if callable(getattr(A, block, None)):
        return _stated(getattr(A, block), A, single)
    if callable(getattr(A, single, None)):
        product = _stated(getattr(A, single), A, single)

        def columns(X: Array) -> Array:
            return xp.stack(
                [xp.reshape(product(X[:, j]), (-1,)) for j in range(X.shape[1])], axis=1
            )

        return columns
    return None


def _stated(product: Callable[[Array], Array], A: Any, name: str) -> Product:
    def call(X: Array) -> Array:
        try:
            return product(X)
        except (NotImplementedError, TypeError) as error:
            if isinstance(error, TypeError) and "NoneType" not in str(error):
                raise  # SciPy calls the None that stands for a product it was not given
            raise TypeError(
                f"{_describe(A)} does not implement {name}, which is needed here; define it"
            ) from error

    return call


def _floating_like(A: Any, xp: Namespace, device: Device) -> DType:
    """The dtype that an object declares, as `xp` spells it."""
    return LinearOperator(
        (1, 1), lambda X: X, dtype=getattr(A, "dtype", None), xp=xp, device=device
    ).dtype


def _library(A: Any) -> Namespace:
    """The array library of a foreign object: what it says, or where its class is from."""
    for name in ("xp", "_xp"):
        told = getattr(A, name, None)
        if told is not None and hasattr(told, "asarray"):
            return cast(Namespace, told)
    root = type(A).__module__.partition(".")[0]
    if root in ("cupyx", "cupy"):
        return sys.modules["cupy"]
    if root == "jax":
        return sys.modules["jax.numpy"]
    return _xp.np_compat


def _describe(A: Any) -> str:
    if isinstance(A, str):
        return f"the string {A!r}"
    kind = type(A)
    return f"an object of type {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
