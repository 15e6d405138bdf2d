"""Linear operators as values: a shape, three products, and where their arrays live."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from .._arrays import (
    Array,
    Device,
    DType,
    Namespace,
    Product,
    Rows,
    coldot,
    colnorm2,
    computed,
    conj,
    default_float,
    device_of,
    dtype_name,
    floating,
    is_array,
    is_complex,
    is_lazy,
    plain,
    row_namespace,
    wrapped,
)
from .checked_product import Checked
from .layout import read_layout


@dataclass(frozen=True)
class Known:
    """A quantity in closed form: a function, the products that it spends, and its name."""

    value: Callable[[], Array]
    num_matvecs: int | Callable[[], int] = 0
    method: str = "exact_trace"

    def __call__(self) -> Array:
        """The quantity."""
        return self.value()


@dataclass(frozen=True, eq=False, repr=False)
class LinearOperator:
    """A linear map known by its block products, spelled as SciPy spells them.

    Parameters
    ----------
    shape : tuple of int
        ``(rows, columns)``.
    matmat : callable
        ``X -> A @ X`` for a block of columns: an array of shape (columns, k) to one of shape
        (rows, k), of the same library, dtype and device. It must not write into X; NumPy blocks
        come as read-only views.
    rmatmat : callable, optional
        ``X -> A.H @ X``, the adjoint (conjugate transpose) product.
    quad : callable, optional
        ``X -> x_j^H A x_j`` for every column, shape (k,), where that is cheaper than `matmat`.
    dtype : dtype, optional
        Of the arrays that the products take and give; the default float of `xp` if not given.
        Integers stand for the default float, half precisions for float32, long doubles for double
        ones. Products of a complex operator may be real.
    xp : namespace, optional
        The array library (``torch``, ``jax.numpy``, ``cupy``, ...); NumPy if not given. Products of
        ``dask.array`` are computed one by one, and all else is NumPy's.
    device : optional
        Where blocks of columns are created.
    factor : LinearOperator, optional
        L, where ``A = L @ L.H``; set by `gram`. Estimators use it without being told.
    dims : tuple of int, optional
        Tensor shape of the domain, in C order.
    exact : mapping of str to callable, optional
        What can be had more cheaply than by products: functions without arguments that
        return arrays, under "trace", "diagonal", "norm" (Frobenius) and "matrix" (all entries). One
        that spends products says how many in an attribute ``num_matvecs``, a number or a function
        that gives it; estimators use it from that budget on, where products do not cost less. An
        attribute ``method`` names what `Estimate.method` or ``reason`` is to say. `as_operator`
        puts the trace of a matrix under "entries", where `trace` alone looks: other estimators do
        as they are told.
    layout : RowLayout, jax.sharding.Sharding, (DeviceMesh, placements) or tuple of int, optional
        How arrays (n, k) of many rows lie over devices: test vectors are made so, and products of a
        square operator have to come so. With a `RowLayout` products take and give the rows that the
        process holds, with a mesh DTensors, with sizes of chunks dask arrays; vectors of another
        size are whole, and the same in all processes. Of JAX, read off the arrays that the products
        hold, if not given.

    Raises
    ------
    ValueError, TypeError
        If shape or dims make no sense, or the layout does not divide the rows; at the first use of
        a product, if it gives back another shape, library, dtype, device or layout than declared,
        or writes into its argument.

    Notes
    -----
    ``A.H`` is the adjoint, ``A @ B``, ``A + B``, ``A - B`` and ``c * A`` are operators again, and
    ``A @ X`` is a product with an array. The quadratic form composes: that of ``J @ J.H`` is
    ``|J^H x|^2``, one product with ``J.H`` and none with ``J``. Operators can be handed to
    SciPy's solvers (`scipy.sparse.linalg.eigsh`, `cg`, `svds`). Making one costs no product.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> shift = tk.LinearOperator((3, 3), lambda X: np.roll(X, 1, axis=0) + 2 * X)
    >>> float(tk.exact_trace(shift))
    6.0
    """

    shape: tuple[int, int]
    matmat: Product
    rmatmat: Product | None = None
    quad: Product | None = None
    _: KW_ONLY
    dtype: DType = None
    xp: Namespace = None  # type: ignore[assignment]  # replaced where it is made
    device: Device = None
    factor: LinearOperator | None = None
    dims: tuple[int, ...] | None = None
    exact: Mapping[str, Callable[..., Any]] | None = None
    layout: Any = None
    _adjoint: LinearOperator | None = field(default=None, init=False)
    _columns: int | None = field(default=None, init=False)  # of a product at a time

    __array_ufunc__ = None  # NumPy scalars and arrays leave operators alone

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        m, n = _shape(self.shape)
        put("shape", (m, n))
        if is_lazy(self.xp):
            for name in ("matmat", "rmatmat", "quad"):
                if callable(product := getattr(self, name)) and self.layout is None:
                    put(name, computed(product, self.xp))
            put("xp", None)
        put("xp", wrapped(self.xp))
        put("dtype", _dtype(self.dtype, self.xp, self.device))
        if self.device is None:
            put("device", device_of(self.xp.empty(0)))  # the library's default one
        products, given = (self.matmat, self.rmatmat, self.quad), self.layout
        put("layout", read_layout(given, (m, n), products, self.xp, self.device))
        if isinstance(self.layout, Rows):
            put("xp", row_namespace(plain(self.xp)))
        laid = self.layout if m == n and self.layout is not None and self.layout.declared else None
        for name, rows, columns in (("matmat", m, n), ("rmatmat", n, m), ("quad", None, n)):
            product = getattr(self, name)
            if not callable(product) and (product is not None or name == "matmat"):
                raise TypeError(
                    f"{name}= got a {type(product).__name__}; pass a function of a block of columns"
                )
            if product is not None and isinstance(self.layout, Rows) and self.layout is not given:
                product = self.layout.around(product, name, rows, self.dtype)
            if product is not None and not isinstance(product, Checked):
                made = product, name, rows, columns, self.xp, self.dtype, self.device, laid
                put(name, Checked(*made))
        if self.quad is None:
            put("quad", lambda X: coldot(X, self.matmat(X)))
        if self.dims is not None and math.prod(self.dims) != n:
            raise ValueError(
                f"dims={self.dims} multiply to {math.prod(self.dims)}, not to the dimension {n}"
            )

    @property
    def H(self) -> LinearOperator:
        """The adjoint; ``A.H.H is A``."""
        if self._adjoint is None:
            if self.rmatmat is None:
                raise TypeError(
                    "this operator has no product with its adjoint; pass rmatmat=, "
                    "X -> A.H @ X, to LinearOperator"
                )
            quad = None if self.shape[0] != self.shape[1] else lambda X: conj(self.quad(X))  # type: ignore[misc]
            adjoint = self._like(
                self.shape[::-1], self.rmatmat, self.matmat, quad, factor=self.factor, dims=None
            )
            object.__setattr__(adjoint, "_adjoint", self)
            object.__setattr__(self, "_adjoint", adjoint)
        return self._adjoint  # type: ignore[return-value]

    def matvec(self, x: Array) -> Array:
        """``A @ x`` for one vector, at the cost of one product.

        Parameters
        ----------
        x : (n,) or (n, 1) array
            In the operator's library, dtype and device.

        Returns
        -------
        (m,) or (m, 1) array
            The product, with as many dimensions as `x`.
        """
        single = getattr(x, "ndim", 2) == 1
        return self.matmat(x[:, None])[:, 0] if single else self.matmat(x)

    def rmatvec(self, x: Array) -> Array:
        """``A.H @ x`` for one vector, at the cost of one product with the adjoint.

        Parameters
        ----------
        x : (m,) or (m, 1) array
            In the operator's library, dtype and device.

        Returns
        -------
        (n,) or (n, 1) array
            The product, with as many dimensions as `x`.

        Raises
        ------
        TypeError
            If the operator has no product with its adjoint.
        """
        return self.H.matvec(x)

    def __matmul__(self, other: Any) -> Any:
        if is_array(other):
            rows = other.shape[0] if other.ndim in (1, 2) else None
            if rows != self.shape[1]:
                raise ValueError(
                    f"an operator of shape {self.shape} cannot act on shape {tuple(other.shape)}"
                )
            return self.matvec(other) if other.ndim == 1 else self.matmat(other)
        return compose(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __add__(self, other: Any) -> LinearOperator:
        return _add(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: Any) -> LinearOperator:
        return _add(self, -other) if isinstance(other, LinearOperator) else NotImplemented

    def __neg__(self) -> LinearOperator:
        return (-1) * self

    def __mul__(self, c: Any) -> LinearOperator:
        return _scale(c, self) if _is_scalar(c) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, c: Any) -> LinearOperator:
        return _scale(1 / c, self) if _is_scalar(c) else NotImplemented

    def __repr__(self) -> str:
        m, n = self.shape
        library = self.xp.__name__.removeprefix("array_api_compat.")
        made = f", factor {self.factor.shape[0]}x{self.factor.shape[1]}" if self.factor else ""
        return f"<{m}x{n} LinearOperator of {library} {dtype_name(self.dtype)}{made}>"

    def _like(self, shape: tuple[int, int], matmat: Product, rmatmat: Product | None = None,
              quad: Product | None = None, **structure: Any) -> LinearOperator:  # fmt: skip
        """Another operator on the same arrays."""
        own = {"dtype": self.dtype, "xp": self.xp, "device": self.device, "layout": self.layout}
        structure = own | structure
        return LinearOperator(shape, matmat, rmatmat, quad, **structure)


LinearOperator.__module__ = "tracekit"


def compose(L: LinearOperator, R: LinearOperator) -> LinearOperator:
    """``L @ R``; where R is the adjoint of L, L becomes its factor."""
    if L.shape[1] != R.shape[0]:
        raise ValueError(f"operators of shapes {L.shape} and {R.shape} cannot be multiplied")

    def matmat(X: Array) -> Array:
        return L.matmat(R.matmat(X))

    def rmatmat(X: Array) -> Array:
        return R.rmatmat(L.rmatmat(X))  # type: ignore[misc]

    def quad(X: Array) -> Array:  # x^H L R x = (L^H x)^H (R x): one product where R is L^H
        Y = R.matmat(X)
        return colnorm2(Y) if factor is not None else coldot(L.rmatmat(X), Y)  # type: ignore[misc]

    factor = L if R._adjoint is L else None
    square = L.shape[0] == R.shape[1]
    reversible = L.rmatmat is not None and R.rmatmat is not None
    return L._like(
        (L.shape[0], R.shape[1]),
        matmat,
        rmatmat if reversible else None,
        quad if square and L.rmatmat is not None else None,
        dtype=common_dtype(L, R),
        layout=L.layout or R.layout,
        factor=factor,
        dims=R.dims,
    )


def _add(A: LinearOperator, B: LinearOperator) -> LinearOperator:
    if A.shape != B.shape:
        raise ValueError(f"operators of shapes {A.shape} and {B.shape} cannot be added")
    reversible = A.rmatmat is not None and B.rmatmat is not None
    return A._like(
        A.shape,
        lambda X: A.matmat(X) + B.matmat(X),
        (lambda X: A.H.matmat(X) + B.H.matmat(X)) if reversible else None,
        (lambda X: A.quad(X) + B.quad(X)) if A.shape[0] == A.shape[1] else None,  # type: ignore[misc]
        dtype=common_dtype(A, B),
        layout=A.layout or B.layout,
        dims=A.dims,
    )


def _scale(c: Any, A: LinearOperator) -> LinearOperator:
    c = c.item() if isinstance(c, np.number) else c
    if isinstance(c, complex) and not is_complex(A):
        raise TypeError(
            f"a complex factor {c} times a real operator; make the operator complex first"
        )
    bar = c.conjugate() if isinstance(c, complex) else conj(c) if is_array(c) else c
    return A._like(
        A.shape,
        lambda X: c * A.matmat(X),
        (lambda X: bar * A.H.matmat(X)) if A.rmatmat is not None else None,
        (lambda X: c * A.quad(X)) if A.shape[0] == A.shape[1] else None,  # type: ignore[misc]
        dims=A.dims,
    )


def common_dtype(*operators: LinearOperator) -> DType:
    """The dtype of what is made of all these operators, which have to live in one place."""
    first = operators[0]
    for other in operators[1:]:
        if other.xp is not first.xp or other.device != first.device:
            raise ValueError(
                f"operators of {first.xp.__name__} on {first.device} and of {other.xp.__name__} on "
                f"{other.device} are incompatible; move one to where the other is"
            )
    return first.xp.result_type(*(operator.dtype for operator in operators))


def _shape(shape: Any) -> tuple[int, int]:
    try:
        m, n = (operator.index(size) for size in shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"`shape` must be a pair of sizes, got {shape!r}; pass (rows, columns)"
        ) from None
    if m < 1 or n < 1:
        raise ValueError(f"an operator of shape {(m, n)} is empty; both sizes must be at least 1")
    return m, n


def _dtype(dtype: DType, xp: Namespace, device: Device) -> DType:
    """The dtype to compute in, as `xp` spells it."""
    if dtype is None:
        return default_float(xp, device)
    try:
        native = xp.empty(0, dtype=dtype).dtype
    except (TypeError, ValueError):
        try:
            native = getattr(xp, np.dtype(dtype).name)
        except (TypeError, AttributeError):
            raise TypeError(
                f"`dtype` must be one of {xp.__name__}, got {dtype!r}; pass a floating-point one"
            ) from None
    return xp.empty(0, dtype=floating(native, xp, device)).dtype


def _is_scalar(c: Any) -> bool:
    return isinstance(c, int | float | complex | np.number) or (is_array(c) and c.ndim == 0)
