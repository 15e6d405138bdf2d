"""The few array operations that the array API standard lacks."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from functools import cache
from typing import Any

import array_api_compat
import numpy as np

from ._typing import Array, Device, DType, Namespace, Product

np_compat: Namespace = array_api_compat.array_namespace(np.empty(0))
is_array = array_api_compat.is_array_api_obj
_SMALL = 2**14  # entries of a block whose cost is that of the calls
_FEW, _FOLD = 64, 16  # rows that are added one after the other, and parts that are added at a time
_LONG = 2**10  # rows of one product with a long inner dimension in single precision
_namespaces: dict[type, Namespace] = {}


def namespace(*arrays: Any) -> Namespace:
    """The namespace of arrays as array_api_compat wraps it, looked up once for each type."""
    kinds = {type(x) for x in arrays}
    if len(kinds) > 1:
        for kind in kinds - _namespaces.keys():
            _refuse_scattered(kind)
        return array_api_compat.array_namespace(*arrays)
    [kind] = kinds
    if kind not in _namespaces:
        _refuse_scattered(kind)
        _namespaces[kind] = array_api_compat.array_namespace(*arrays)
    return _namespaces[kind]


def wrapped(xp: Namespace | None) -> Namespace:
    """A namespace as array_api_compat wraps it; NumPy's if there is none."""
    return np_compat if xp is None else namespace(xp.empty(0))


def is_lazy(xp: Namespace | None) -> bool:
    """Whether the arrays of a namespace are computed only when their values are asked for."""
    return xp is not None and array_api_compat.is_dask_namespace(xp)


def computed(product: Product, xp: Namespace) -> Product:
    """The product by lazy arrays as one of NumPy's, computed once, when it is called."""
    return lambda X: np.asarray(product(xp.asarray(X)))


def device(x: Array) -> Device:
    """Where to create arrays that meet `x`: None for JAX, whose placement follows the data."""
    return None if array_api_compat.is_jax_array(x) else array_api_compat.device(x)


def beside(x: Array, value: float, dtype: DType) -> Array:
    """A number of the host as a 0-d array where `x` is."""
    made = namespace(x).asarray(value, dtype=dtype, device=device(x))
    if array_api_compat.is_jax_array(x) and len(x.devices()) == 1:  # no data that it could follow
        return array_api_compat.to_device(made, x.device)
    return made


def is_traced(x: Array) -> bool:
    """Whether `x` stands for values that are not known yet (under jit, vmap or grad)."""
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(x, jax.core.Tracer):
        return True
    if array_api_compat.is_torch_array(x):
        functorch = sys.modules["torch"]._C._functorch
        return bool(functorch.is_functorch_wrapped_tensor(x)) or _compiling()
    return False


def is_differentiated(x: Array) -> bool:
    """Whether derivatives of `x` may be asked for."""
    return is_traced(x) or bool(getattr(x, "requires_grad", False))


def constant(X: Array) -> Array:
    """The same array without its derivatives."""
    if array_api_compat.is_jax_array(X):
        return sys.modules["jax"].lax.stop_gradient(X)
    return X.detach() if array_api_compat.is_torch_array(X) else X


def copied(X: Array) -> Array:
    """The same values in memory of their own; the array itself where nobody can write into it."""
    if array_api_compat.is_jax_array(X) or is_traced(X):
        return X
    if array_api_compat.is_torch_array(X):
        return X.clone()
    return namespace(X).asarray(X, copy=True)


def is_finite(x: Array) -> bool:
    """Whether all entries are finite; True where they are not known yet. Waits for the device."""
    return is_traced(x) or bool(namespace(x).all(namespace(x).isfinite(x)))


def number(x: Array) -> complex:
    """A 0-d array as a Python number, outside of any gradient."""
    return complex(x.detach() if hasattr(x, "detach") else x)


def to_host(x: Array) -> np.ndarray:
    """A copy of an array in NumPy, memory order kept."""
    x = x.detach() if hasattr(x, "detach") else x
    return np.asarray(array_api_compat.to_device(x, "cpu")) if _elsewhere(x) else np.asarray(x)


def is_complex(x: Array) -> bool:
    """Whether an array, or anything else with a dtype and xp, is complex."""
    return _is_complex(x.dtype, getattr(x, "xp", None) or namespace(x))


@cache
def _is_complex(dtype: DType, xp: Namespace) -> bool:
    return bool(xp.isdtype(dtype, "complex floating"))


def real_dtype(dtype: DType, xp: Namespace) -> DType:
    """The dtype of the real part."""
    if xp.isdtype(dtype, "complex floating"):
        return xp.float32 if _bits(dtype, xp) == 32 else xp.float64
    return dtype


def floating(dtype: DType, xp: Namespace, where: Device = None) -> DType:
    """The dtype to compute in: integers become the default float, half precisions float32."""
    if xp.isdtype(dtype, ("integral", "bool")):
        return default_float(xp, where)
    single = _bits(dtype, xp) <= 32
    if xp.isdtype(dtype, "complex floating"):
        return xp.complex64 if single else xp.complex128
    return xp.float32 if single else xp.float64


def as_declared(Y: Array, dtypes: Collection[DType]) -> Array | None:
    """An array in one of these dtypes, if it is real for a complex one, or a long double."""
    xp = namespace(Y)
    for dtype in dtypes:
        is_real_part = Y.dtype == real_dtype(dtype, xp)
        is_long = xp is np_compat and Y.dtype.char in "gG" and _bits(dtype, xp) == 64
        if is_real_part or (is_long and is_complex(Y) <= _is_complex(dtype, xp)):
            return xp.astype(Y, dtype)
    return None


def default_float(xp: Namespace, where: Device = None) -> DType:
    """The dtype that the library gives to Python floats."""
    return xp.asarray(0.0, device=where).dtype


def eps(x: Array) -> float:
    """Distance from one to the next number of the dtype of `x`."""
    return float(namespace(x).finfo(x.dtype).eps)


def adjoint(X: Array) -> Array:
    """Conjugate transpose of a matrix."""
    xp = namespace(X)
    Xt = xp.matrix_transpose(X)
    return xp.conj(Xt) if is_complex(X) else Xt


def conj(X: Array) -> Array:
    """Complex conjugate; a real array itself."""
    return namespace(X).conj(X) if is_complex(X) else X


def real(X: Array) -> Array:
    """Real part; a real array itself."""
    return namespace(X).real(X) if is_complex(X) else X


def abs2(X: Array) -> Array:
    """Squared modulus, real, without a square root."""
    xp = namespace(X)
    return xp.real(X) * xp.real(X) + xp.imag(X) * xp.imag(X) if is_complex(X) else X * X


def inner(X: Array, Y: Array) -> Array:
    """``X^H Y``, accurate however many rows there are."""
    return contract(adjoint(X), Y)


def contract(X: Array, Y: Array) -> Array:
    """``X @ Y``, accurate however long the inner dimension is.

    Libraries add the parts of a long inner dimension one after the other, which in single precision
    is off by 1e-4 at 10^7 equal terms: here they are products of their own.
    """
    n = Y.shape[-2]
    parts = n // _LONG
    if parts < 2 or X.ndim > 2 or _bits(Y.dtype, xp := namespace(X, Y)) > 32:
        return X @ Y
    k, m, long = X.shape[-2], Y.shape[-1], parts * _LONG
    first = xp.permute_dims(xp.reshape(X[:, :long], (k, parts, _LONG)), (1, 0, 2))
    many = first @ xp.reshape(Y[:long, :], (parts, _LONG, m))
    result = xp.reshape(colsum(xp.reshape(many, (parts, k * m))), (k, m))
    return result if long == n else result + X[:, long:] @ Y[long:, :]


def coldot(X: Array, Y: Array) -> Array:
    """Inner product ``x_j^H y_j`` of every pair of columns."""
    return colsum(conj(X) * Y)


def colnorm2(X: Array) -> Array:
    """Squared Euclidean norm of every column, real."""
    return colsum(abs2(X))


def norm2(X: Array) -> Array:
    """Squared Frobenius norm of a matrix, real."""
    return namespace(X).sum(colnorm2(X), axis=-1)


def colsum(X: Array) -> Array:
    """Sums of columns, over the last axis but one; rounding grows with the log of their length.

    NumPy adds along a strided axis one entry after the other: of 10^7 equal ones in single
    precision it loses 4 %. Here blocks of rows are added, which is faster too where there are few
    columns. The other libraries sum in trees.
    """
    xp = namespace(X)
    if _sums_in_trees(X):
        return xp.sum(X, axis=-2)
    while (n := X.shape[-2]) > _FEW:
        rows = n // _FOLD
        total = X[..., :rows, :]
        for start in range(rows, rows * _FOLD, rows):
            total = total + X[..., start : start + rows, :]
        rest = X[..., rows * _FOLD :, :]
        X = total if rest.shape[-2] == 0 else xp.concat([total, rest], axis=-2)
    return xp.sum(X, axis=-2)


def weights(X: Array) -> Array:
    """A number between 1/2 and 3/2 for each row, in no simple relation to each other."""
    xp = namespace(X)
    rows = xp.arange(X.shape[0], dtype=xp.int32, device=device(X)) % 2**15
    real = xp.astype(rows * 20251 % 2**15, real_dtype(X.dtype, xp))
    return xp.astype(real / 2**15 + 0.5, X.dtype, copy=False)


def diagonal(X: Array) -> Array:
    """The diagonal of a matrix."""
    return namespace(X).linalg.diagonal(X)


def trace(X: Array) -> Array:
    """The trace of a small dense matrix."""
    return namespace(X).linalg.trace(X)


def eye_like(X: Array, n: int) -> Array:
    """An n by n identity of the dtype of `X`, where `X` is."""
    return namespace(X).eye(n, dtype=X.dtype, device=device(X))


def magnitude(X: Array) -> Array:
    """The largest modulus as a real 0-d array, 1 where all entries are zero: divide by it first.

    A unit, and as such a constant to differentiation: what is divided by it is multiplied later.
    """
    xp = namespace(X)
    if math.prod(X.shape) == 0:
        return xp.ones((), dtype=real_dtype(X.dtype, xp), device=device(X))
    largest = xp.max(xp.abs(constant(X)))
    return xp.where(largest == 0, xp.ones_like(largest), largest)


def positive(x: Array) -> Array:
    """`x`, or 1 where it is not positive: divide by it where that is zero over zero. NaN stays."""
    xp = namespace(x)
    return xp.where(x <= 0, xp.ones_like(x), x)


def orthonormalise(Y: Array) -> tuple[Array, Array]:
    """``Q R = Y`` with orthonormal columns, by the fastest way that is safe.

    NumPy's reflections are slow, those of PyTorch and JAX on one CPU are not: there they take half
    the time of two Cholesky factorisations (2000 x 100, one thread), and as much at 100000 x 64.
    """
    reflected = is_traced(Y) or math.prod(Y.shape) <= _SMALL or _has_fast_qr(Y)
    return householder_qr(Y) if reflected else cholesky_qr2(Y)


def householder_qr(Y: Array) -> tuple[Array, Array]:
    """``Q R = Y`` by Householder reflections; orthonormal whatever the rank of `Y`."""
    Q, R = namespace(Y).linalg.qr(Y)
    return Q, R


def cholesky_qr2(Y: Array) -> tuple[Array, Array]:
    """``Q R = Y`` by two Cholesky factorisations; Householder where `Y` is close to rank-deficient.

    Yamamoto, Nakatsukasa, Yanagisawa, Fukaya (2015), ETNA 44: orthonormal to machine precision
    while the condition number of `Y` stays below about ``eps**-0.5``, which the second Gram
    matrix shows.
    """
    first = _cholesky_qr(Y)
    if first is not None:
        Q, R = first
        eye = eye_like(R, R.shape[0])
        G = inner(Q, Q)
        # the first pass has to leave Q near orthonormal, or the second cannot repair it
        if bool(namespace(Y).all(namespace(Y).abs(G - eye) < 1e-2)):
            second = cholesky(G)
            if second is not None:
                C = adjoint(second)
                return Q @ namespace(Y).linalg.solve(C, eye), C @ R
    return householder_qr(Y)


def _cholesky_qr(Y: Array) -> tuple[Array, Array] | None:
    scale = magnitude(Y)
    Ys = Y / scale
    C = cholesky(inner(Ys, Ys))
    if C is None:
        return None
    R = adjoint(C)
    return Ys @ namespace(Y).linalg.solve(R, eye_like(R, R.shape[0])), R * scale


def cholesky(G: Array) -> Array | None:
    """Lower Cholesky factor of a Hermitian matrix, or None where it is not positive definite.

    Libraries raise errors of their own or return NaN; under tracing NaN passes through.
    """
    try:
        C = namespace(G).linalg.cholesky(G)
    except (RuntimeError, ValueError):  # torch: LinAlgError(RuntimeError); NumPy: (ValueError)
        return None
    return C if is_finite(C) else None


def triangular_dual(R: Array) -> Array:
    """``R^-H`` of an upper triangle whose diagonal is floored at rounding level.

    The columns are the dual basis of the columns of `R`. Where `R` is numerically singular, the
    floor keeps the dual vectors finite and in the directions that carry nothing.
    """
    xp = namespace(R)
    d = diagonal(R)
    size = xp.abs(d)
    floor = R.shape[0] * eps(R) * magnitude(R)
    phase = xp.where(size > 0, d / xp.where(size > 0, size, xp.ones_like(size)), xp.ones_like(d))
    lift = xp.where(size < floor, phase * floor - d, xp.zeros_like(d))
    eye = eye_like(R, R.shape[0])
    return xp.linalg.solve(adjoint(R + eye * lift[None, :]), eye)


def _has_fast_qr(Y: Array) -> bool:
    """Whether an array is PyTorch's or JAX's, on one CPU."""
    if array_api_compat.is_jax_array(Y):
        return [device.platform for device in Y.devices()] == ["cpu"]
    return array_api_compat.is_torch_array(Y) and Y.device.type == "cpu"


def _sums_in_trees(X: Array) -> bool:
    """Whether a library's sums over any axis are accurate: those of all but NumPy, and its like."""
    return (
        array_api_compat.is_jax_array(X)
        or array_api_compat.is_torch_array(X)
        or array_api_compat.is_cupy_array(X)
    )


def _elsewhere(x: Array) -> bool:
    return array_api_compat.is_torch_array(x) or array_api_compat.is_cupy_array(x)


def _compiling() -> bool:
    return bool(sys.modules["torch"].compiler.is_compiling())


def _bits(dtype: DType, xp: Namespace) -> int:
    """Bits of one real number of that dtype."""
    return int(xp.finfo(dtype).bits)


_SCATTERED = {  # arrays in parts, by package and class: why not, and what to pass instead
    ("dask", "Array"): "dask arrays are not supported, as estimators read the values of every "
    "product; pass one with values, A.compute(), or a LinearOperator whose products are computed, "
    "such as lambda X: (A @ X).compute()",
    ("torch", "DTensor"): "DTensors, whose parts lie on several devices, are not supported; pass "
    "tensors on one device, as x.full_tensor() is",
}


def _refuse_scattered(kind: type) -> None:
    for base in kind.__mro__:
        reason = _SCATTERED.get((base.__module__.partition(".")[0], base.__name__))
        if reason is not None:
            raise TypeError(reason)
