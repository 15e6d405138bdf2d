"""Reads a linear operator from whatever the caller holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import reduce, singledispatch
from operator import add
from typing import Any

import numpy as np

from .._arrays import (
    NAMESPACES,
    Array,
    Device,
    DType,
    Namespace,
    Product,
    conj,
    copied,
    device_of,
    floating,
    in_chunks,
    is_array,
    is_complex,
    is_dtensor,
    library_of,
    namespace,
    np_compat,
    package_of,
    products_of,
)
from .layout import laid, placed
from .linear_operator import LinearOperator

_BAND = 2**17  # entries that are converted at once
_OPENED: dict[str, Callable[[Any], Any]] = {  # what containers of a package hold
    "pandas": lambda A: A.to_numpy(),
    "xarray": lambda A: A.data,
    "sparse": lambda A: A.asformat("coo").to_scipy_sparse(),
}


@singledispatch
def as_operator(A: Any, *, xp: Namespace | None = None, device: Device = None) -> LinearOperator:
    """Read anything that behaves as a linear operator.

    Parameters
    ----------
    A : LinearOperator, array, sparse matrix, or any object with a shape and products
        A matrix of NumPy, PyTorch, JAX, CuPy or any array API library; a SciPy, CuPy or
        pydata-sparse array; a dask array of such chunks; a DTensor; a pandas.DataFrame or
        xarray.DataArray (without labels); a linear operator of SciPy, CuPy, PyLops, GPyTorch
        (linear_operator), CoLA, curvlinops or lineax; any object with ``shape`` and a product.
    xp : namespace, optional
        The array library that a foreign object's products take, where it cannot be told from the
        object's class, dtype or device; NumPy otherwise.
    device : optional
        Where such an object's arrays live.

    Returns
    -------
    LinearOperator
        Integers become the default float, half precisions float32, long doubles double.

    Raises
    ------
    TypeError
        If no shape or no product is found.
    ValueError
        If an array does not have two dimensions, or chunks of unknown sizes.

    Notes
    -----
    ``as_operator.register(YourType)`` teaches a new type: a function of the object (and of the
    keywords `xp` and `device`) that returns a `LinearOperator`. Reading costs no product, and
    copies nothing. An array of integers, half precision or long doubles is converted in blocks of
    rows in every product, so that one on disk (`numpy.memmap`) is never whole in memory. The
    adjoint of an object is that of its ``rmatmat``, ``rmatvec``, ``H``, ``adjoint`` or ``T``. Tall
    arrays beside a dask array or a DTensor lie as its rows do, in a `RowArray`.

    An operator of PyLops that takes or gives real vectors in a complex dtype (``clinear=False``,
    such as a real FFT) is read as the complex matrix that it multiplies by, at two of its products
    for one; a square one with complex vectors on a side (a conjugation, a real part) is refused.

    Examples
    --------
    >>> import numpy as np, scipy.sparse, tracekit as tk
    >>> tk.as_operator(np.eye(3))
    <3x3 LinearOperator of numpy float64>
    >>> tk.as_operator(scipy.sparse.eye_array(1000, dtype="float32"))
    <1000x1000 LinearOperator of numpy float32>
    """
    A = _held(A)
    if _is_of(A, "lineax", "AbstractLinearOperator"):
        return _from_lineax(A)
    if is_array(A) and not isinstance(A, type):
        return _from_array(A)
    shape = None if isinstance(A, type) else getattr(A, "shape", None)
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        hint = "pass an array, a sparse matrix, or an object with shape and matmat"
        hint = "wrap it as LinearOperator((n, n), function)" if callable(A) else hint
        raise TypeError(f"{_describe(A)} has no shape, so it is no linear operator; {hint}")
    if len(shape) != 2:
        raise ValueError(f"{_describe(A)} has shape {tuple(shape)}; an operator needs two sizes")
    return (_from_sparse if hasattr(A, "tocsr") else _from_products)(A, xp or library_of(A), device)


@as_operator.register
def _(A: LinearOperator, *, xp: Namespace | None = None, device: Device = None) -> LinearOperator:
    return A


def _from_array(A: Array) -> LinearOperator:
    if A.ndim != 2:
        raise ValueError(
            f"a matrix must have two dimensions, got an array of shape {tuple(A.shape)}; reshape it"
        )
    if _is_of(A, "dask", "Array") or is_dtensor(A):
        return LinearOperator(tuple(A.shape), **(products_of if is_dtensor(A) else in_chunks)(A))
    xp, device = namespace(A), device_of(A)
    if isinstance(A, np.ma.MaskedArray):
        raise TypeError("a masked array has unknown entries; pass A.filled(value) instead")
    if xp is np_compat and not (np.issubdtype(A.dtype, np.number) or A.dtype == bool):
        raise TypeError(
            f"an array of dtype {A.dtype} holds no numbers; pass floats, ints or complex numbers, "
            "as A.astype(float) gives them"
        )
    dtype = floating(A.dtype, xp, device)
    entries = _entries(A, xp, dtype, device)
    if A.dtype != dtype and _is_sparse(A):
        A = xp.astype(A, dtype)
    A, layout = laid(A)
    matmat, transposed = (placed(product, layout) for product in _products(A, dtype, xp))

    def rmatmat(X: Array) -> Array:  # the conjugate of X is a copy, as that of A would be
        return conj(transposed(conj(X)))

    return LinearOperator(
        A.shape, matmat, rmatmat, dtype=dtype, xp=xp, device=device, exact=entries, layout=layout
    )


def _products(A: Array, dtype: DType, xp: Namespace) -> tuple[Product, Product]:
    """Products with an array and its transpose; of another dtype, in blocks that are converted."""
    if A.dtype == dtype:
        return (lambda X: A @ X), (lambda X: xp.matrix_transpose(A) @ X)
    is_by_columns = getattr(getattr(A, "flags", None), "fnc", False)
    B = xp.matrix_transpose(A) if is_by_columns else A

    def rows(X: Array) -> Array:
        return xp.concat([xp.astype(B[band, :], dtype) @ X for band in _bands(B)], axis=0)

    def columns(X: Array) -> Array:
        Bt = xp.matrix_transpose(B)
        return reduce(add, (xp.astype(Bt[:, band], dtype) @ X[band, :] for band in _bands(B)))

    return (columns, rows) if is_by_columns else (rows, columns)


def _is_sparse(A: Array) -> bool:
    """Whether a tensor of PyTorch is of a layout that has no blocks of rows."""
    return not str(getattr(A, "layout", "strided")).endswith("strided")


def _bands(A: Array) -> list[slice]:
    """Rows of a matrix whose entries take a megabyte or so where they have to be converted."""
    m, n = A.shape
    step = max(1, _BAND // n)
    return [slice(start, min(start + step, m)) for start in range(0, m, step)]


def _from_sparse(A: Any, xp: Namespace, device: Device) -> LinearOperator:
    """A sparse matrix of SciPy or CuPy; its transpose is laid out once, when first used."""
    dtype = _floating_like(A, xp, device)
    transpose: list[Any] = []

    def rmatmat(X: Array) -> Array:
        if not transpose:
            transpose.append(A.T)
        return conj(transpose[0] @ conj(X))

    return LinearOperator(
        A.shape, lambda X: A @ X, rmatmat, dtype=dtype, xp=xp, device=device,
        exact=_entries(A, xp, dtype, device),
    )  # fmt: skip


def _entries(
    A: Any, xp: Namespace, dtype: DType, device: Device
) -> dict[str, Callable[[], Array]] | None:
    """The trace of a matrix, dense or sparse, as the sum of its entries on the diagonal."""
    if A.shape[0] != A.shape[1] or getattr(A, "n_batch", 0) or getattr(A, "n_dense", 0):
        return None

    def trace() -> Array:
        entries = _diagonal_entries(A, xp)
        if isinstance(entries, np.ndarray):  # SciPy's, whatever library its products take
            entries = xp.asarray(entries, device=device)
        return xp.sum(xp.astype(entries, dtype, copy=False))

    return {"entries": trace}


def _diagonal_entries(A: Any, xp: Namespace) -> Any:
    """The entries on the diagonal; of a sparse matrix those that are stored, which may repeat."""
    if hasattr(A, "to_sparse_coo") and A.layout is not sys.modules["torch"].strided:
        A = A.to_sparse_coo().coalesce()
        return A.values()[A.indices()[0] == A.indices()[1]]
    if _is_jax_sparse(A):
        A = A if hasattr(A, "indices_sorted") and A.indices.ndim == 2 else A.to_bcoo()
        rows, columns = A.indices[:, 0], A.indices[:, 1]
        stored = (rows == columns) & (rows < A.shape[0])  # padding lies outside
        return xp.where(stored, A.data, xp.zeros_like(A.data))
    if hasattr(A, "tocsr"):
        return (A if hasattr(A, "diagonal") else A.tocsr()).diagonal()
    return xp.linalg.diagonal(A)


def _is_jax_sparse(A: Any) -> bool:
    name = type(A).__name__
    return type(A).__module__.startswith("jax.experimental.sparse") and name in ("BCOO", "BCSR")


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
    rmatmat = _product(A, "rmatmat", "rmatvec", xp) or _adjoint(A)
    dtype = _floating_like(A, xp, device)
    if not getattr(A, "clinear", True) and is_complex(xp.empty(0, dtype=dtype)):
        matmat, rmatmat = _complexified(A, matmat, rmatmat, xp, dtype)
    device = _place(A) if device is None else device
    exact = _entries(A, xp, dtype, device) if _is_jax_sparse(A) else None
    return LinearOperator(A.shape, matmat, rmatmat, dtype=dtype, xp=xp, device=device, exact=exact)


def _adjoint(A: Any) -> Product | None:
    """The product with the adjoint or the transpose that an object has, if it has one."""
    for name in ("H", "adjoint", "mH", "T"):
        try:
            B = getattr(A, name)
            B = B() if name == "adjoint" and not hasattr(B, "shape") else B
        except (AttributeError, NotImplementedError, TypeError):
            continue
        if hasattr(B, "__matmul__") and tuple(getattr(B, "shape", ())) == tuple(A.shape)[::-1]:
            return _conjugated(B) if name == "T" else B.__matmul__
    return None


def _conjugated(B: Any) -> Product:
    """The product with the conjugate of a matrix, which is not formed."""
    return lambda X: conj(B @ conj(X))


def _complexified(
    A: Any, matmat: Product, rmatmat: Product | None, xp: Namespace, dtype: DType
) -> tuple[Product, Product]:
    """The products with the complex matrix of a map that takes or gives real vectors alone."""

    def of_real(product: Product) -> Product:  # M x, where x is real
        return lambda X: product(xp.real(X) + 0j) + 1j * product(xp.imag(X) + 0j)

    def real_part_of(product: Product) -> Product:  # re(M y)
        return lambda Y: product(Y) + 1j * product(-1j * Y)

    m, n = A.shape
    if rmatmat is not None:
        takes_real = not is_complex(rmatmat(xp.zeros((m, 1), dtype=dtype)))
        gives_real = not is_complex(matmat(xp.zeros((n, 1), dtype=dtype)))
        if takes_real and (gives_real or m != n):
            return of_real(matmat), real_part_of(rmatmat)
        if gives_real and m != n:
            return real_part_of(matmat), of_real(rmatmat)
    raise TypeError(
        f"{_describe(A)} is linear over the real numbers alone (clinear=False), so that it has no "
        "complex trace; wrap what it does to real and imaginary parts as a real operator, "
        "LinearOperator((2 * n, 2 * n), function)"
    )


def _from_lineax(A: Any) -> LinearOperator:
    """An operator of lineax, between trees of arrays, which are flattened."""
    from jax import numpy as jnp
    from jax import tree, vmap
    from jax.flatten_util import ravel_pytree

    leaves = tree.leaves((A.in_structure(), A.out_structure()))
    dtype = jnp.result_type(*(leaf.dtype for leaf in leaves))

    def flat(B: Any) -> Product:
        zeros = tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), B.in_structure())
        like, unflatten = ravel_pytree(zeros)

        def one(x: Array) -> Array:
            return ravel_pytree(B.mv(unflatten(x.astype(like.dtype))))[0].astype(x.dtype)

        return vmap(one, in_axes=1, out_axes=1)  # type: ignore[no-any-return]

    transpose = flat(A.T)
    return LinearOperator(
        (A.out_size(), A.in_size()),
        flat(A),
        lambda X: conj(transpose(conj(X))),
        dtype=dtype,
        xp=jnp,
    )


def _product(A: Any, block: str, single: str, xp: Namespace) -> Product | None:
    """The block product of an object, if need be column by column."""
    if callable(getattr(A, block, None)):
        whole = _stated(getattr(A, block), A, single)
        if not _stacks(A, "_" + block):
            return whole
        return lambda X: xp.concat([whole(X[:, j : j + 1]) for j in range(X.shape[1])], axis=1)
    if callable(getattr(A, single, None)):
        product = _stated(getattr(A, single), A, single)

        def columns(X: Array) -> Array:  # each may lie in one work buffer that the object keeps
            each = (product(X[:, j]) for j in range(X.shape[1]))
            return xp.stack([copied(xp.reshape(y, (-1,))) for y in each], axis=1)

        return columns
    return None


def _stacks(A: Any, name: str) -> bool:
    """Whether an operator of SciPy or CuPy stacks single products, which one buffer may hold.

    ``hstack`` of such a buffer, returned k times, is the last product k times.
    """
    bases = (base for base in type(A).__mro__ if base.__name__ == "LinearOperator")
    base: Any = next((base for base in bases if package_of(base) in ("scipy", "cupyx")), None)
    if base is None:
        return False
    kind: Any = type(A)
    if kind.__name__ == "_CustomLinearOperator":
        return vars(A).get(f"_CustomLinearOperator_{name}_impl", A) is None
    if getattr(kind, name, None) is getattr(base, name, None):
        by_adjoint = name == "_rmatmat" and kind._adjoint is not base._adjoint
        return not by_adjoint or _stacks(A.H, "_matmat")
    if kind.__name__ in ("_AdjointLinearOperator", "_TransposedLinearOperator"):
        name = {"_matmat": "_rmatmat", "_rmatmat": "_matmat"}[name]
    return any(_stacks(part, name) for part in getattr(A, "args", ()))


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


def _place(A: Any) -> Device:
    """Where a foreign object lives; None for JAX, whose placement follows the data."""
    device = getattr(A, "device", None)
    return None if NAMESPACES.get(package_of(type(device))) == "jax.numpy" else device


def _held(A: Any) -> Any:
    """The array or sparse matrix that a container of another library holds; else itself."""
    if isinstance(A, np.matrix):
        return np.asarray(A)
    for base in type(A).__mro__:
        if package_of(base) in _OPENED:
            with suppress(AttributeError):  # of another class of that package
                return _OPENED[package_of(base)](A)
    return A


def _is_of(A: Any, package: str, name: str) -> bool:
    """Whether an object is of a class that is not imported here."""
    return any((package_of(base), base.__name__) == (package, name) for base in type(A).__mro__)


def _describe(A: Any) -> str:
    if isinstance(A, str):
        return f"the string {A!r}"
    kind = type(A)
    return f"an object of type {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


def square(A: Any, what: str = "trace") -> LinearOperator:
    """Read an operator that has to be square."""
    operator: LinearOperator = as_operator(A)
    if operator.shape[0] != operator.shape[1]:
        hint = "; pass gram(A) for the trace of A A^H, which is the squared norm of A"
        raise ValueError(
            f"the {what} needs a square operator, not one of shape {operator.shape}"
            + hint * (what == "trace")
        )
    return operator
