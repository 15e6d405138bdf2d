"""What arrays are of: their library, device and dtype; whether their values are known."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Protocol, TypeAlias, cast

import array_api_compat
import numpy as np

Array: TypeAlias = Any  # until the array API standard has a typed protocol
DType: TypeAlias = Any
Device: TypeAlias = Any
Namespace: TypeAlias = ModuleType
Rng: TypeAlias = Any  # None, an int, or a generator of NumPy, torch, JAX or CuPy
Product: TypeAlias = Callable[[Array], Array]
Probes: TypeAlias = Callable[..., Array]  # (source, n, m) -> (n, m)


np_compat: Namespace = array_api_compat.array_namespace(np.empty(0))
is_array = array_api_compat.is_array_api_obj


_namespaces: dict[type, Namespace] = {}


class Space(Protocol):
    """Where the arrays live: an operator, or anything that names these three."""

    @property
    def dtype(self) -> DType:
        """Of the entries."""

    @property
    def xp(self) -> Namespace:
        """Of the library."""

    @property
    def device(self) -> Device:
        """Where."""


@dataclass(frozen=True)
class ArraySpace:
    """A dtype, library and device, for arrays that belong to no operator."""

    dtype: DType
    xp: Namespace
    device: Device


def namespace(*arrays: Any) -> Namespace:
    """The namespace of arrays as array_api_compat wraps it, looked up once for each type."""
    kinds = {type(x) for x in arrays}
    if len(kinds) == 1 and (known := _namespaces.get(type(arrays[0]))) is not None:
        return known
    for x in arrays:
        if hasattr(type(x), "held"):  # rows of a tall array, of whatever library, beside small ones
            return cast(Namespace, x.__array_namespace__())
    found = array_api_compat.array_namespace(*arrays)
    if len(kinds) == 1:
        _namespaces[type(arrays[0])] = found
    return found


def wrapped(xp: Namespace | None) -> Namespace:
    """A namespace as array_api_compat wraps it; NumPy's if there is none."""
    return np_compat if xp is None else namespace(xp.empty(0))


def plain(xp: Namespace) -> Namespace:
    """The namespace of small arrays, where that of rows of tall ones is given."""
    return cast(Namespace, getattr(xp, "of_small", xp))


def is_lazy(xp: Namespace | None) -> bool:
    """Whether the arrays of a namespace are computed only when their values are asked for."""
    return xp is not None and array_api_compat.is_dask_namespace(xp)


def computed(product: Product, xp: Namespace) -> Product:
    """The product by lazy arrays as one of NumPy's, computed once, when it is called."""
    return lambda X: np.asarray(product(xp.asarray(X)))


def device_of(x: Array) -> Device:
    """Where to create arrays that meet `x`: None for JAX, whose placement follows the data."""
    x = x.local if hasattr(type(x), "held") else x
    return None if array_api_compat.is_jax_array(x) else array_api_compat.device(x)


def beside(x: Array, value: float | np.ndarray, dtype: DType) -> Array:
    """A number of the host as a 0-d array, or an array of the host, where `x` is."""
    made = namespace(x).asarray(value, dtype=dtype, device=device_of(x))
    if array_api_compat.is_jax_array(x) and not is_traced(x) and len(x.devices()) == 1:
        # no data that it could follow, where x itself follows none
        return array_api_compat.to_device(made, x.device) if x.committed else made
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


def read_only(X: Array) -> Array:
    """An array that cannot be written through, where its library knows of such."""
    if not isinstance(X, np.ndarray):
        return X
    view = X.view()
    view.flags.writeable = False
    return view


def is_finite(x: Array) -> bool:
    """Whether all entries are finite; True where they are not known yet. Waits for the device."""
    return is_traced(x) or bool(namespace(x).all(namespace(x).isfinite(x)))


def to_number(x: Array) -> complex:
    """A 0-d array as a Python number, outside of any gradient."""
    return complex(x.detach() if hasattr(x, "detach") else x)


def to_host(x: Array) -> np.ndarray:
    """A copy of an array in NumPy, memory order kept."""
    x = x.detach() if hasattr(x, "detach") else x
    if package_of(type(x)) == "array_api_strict":  # of any of its devices
        return np.from_dlpack(x)
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
        return xp.float32 if bits(dtype, xp) == 32 else xp.float64
    return dtype


def floating(dtype: DType, xp: Namespace, where: Device = None) -> DType:
    """The dtype to compute in: integers become the default float, half precisions float32."""
    if xp.isdtype(dtype, ("integral", "bool")):
        return default_float(xp, where)
    single = bits(dtype, xp) <= 32
    if xp.isdtype(dtype, "complex floating"):
        return xp.complex64 if single else xp.complex128
    return xp.float32 if single else xp.float64


def as_declared(Y: Array, dtypes: Collection[DType]) -> Array | None:
    """An array in one of these dtypes, if it is real for a complex one, or a long double."""
    xp = namespace(Y)
    for dtype in dtypes:
        is_real_part = Y.dtype == real_dtype(dtype, xp)
        is_long = xp is np_compat and Y.dtype.char in "gG" and bits(dtype, xp) == 64
        if is_real_part or (is_long and is_complex(Y) <= _is_complex(dtype, xp)):
            return xp.astype(Y, dtype)
    return None


def default_float(xp: Namespace, where: Device = None) -> DType:
    """The dtype that the library gives to Python floats."""
    return xp.asarray(0.0, device=where).dtype


def eps_of(x: Array) -> float:
    """Distance from one to the next number of the dtype of `x`."""
    return float(namespace(x).finfo(x.dtype).eps)


def _elsewhere(x: Array) -> bool:
    return array_api_compat.is_torch_array(x) or array_api_compat.is_cupy_array(x)


def _compiling() -> bool:
    return bool(sys.modules["torch"].compiler.is_compiling())


def bits(dtype: DType, xp: Namespace) -> int:
    """Bits of one real number of that dtype."""
    return int(xp.finfo(dtype).bits)


def fingerprint(rng: Rng) -> str | None:
    """A digest of what a seed or a generator draws next; None where that is not known."""
    if isinstance(rng, bool):
        return None
    if isinstance(rng, np.random.Generator | np.random.SeedSequence) or (
        isinstance(rng, int | np.integer) and rng >= 0
    ):
        state = np.random.default_rng(rng).bit_generator.state
        told = json.dumps(state, default=lambda x: x.tolist()).encode()
    elif array_api_compat.is_jax_array(rng):
        data = sys.modules["jax"].random.key_data(rng)  # traced under jit, where the key is not
        if is_traced(data):
            return None
        told = np.asarray(data).tobytes()
    elif package_of(type(rng)) == "torch" and hasattr(rng, "get_state") and not _compiling():
        told = to_host(rng.get_state()).tobytes()
    else:
        return None
    return hashlib.sha256(told).hexdigest()[:16]


def dtype_name(dtype: DType) -> str:
    """As a user writes it."""
    return str(dtype).removeprefix("torch.").removeprefix("array_api_strict.")


def refuse_traced(x: Array) -> None:
    """Raise TypeError where values are not known, so that nothing can be decided by them."""
    if is_traced(x):
        raise TypeError(
            "what to spend is decided by the values of products, which jax.jit and jax.grad hide; "
            "call an estimator with num_matvecs and without a tolerance there"
        )


def library_of(A: Any) -> Namespace:
    """The array library of a foreign object: what it says, or where class, dtype, device are of."""
    for name in ("xp", "_xp"):
        declared = getattr(A, name, None)
        if declared is not None and hasattr(declared, "asarray"):
            return cast(Namespace, declared)
    for thing in (A, getattr(A, "dtype", None), getattr(A, "device", None)):
        found = NAMESPACES.get(package_of(type(thing)))
        if found is not None:
            return sys.modules[found]
    return np_compat


def package_of(kind: type) -> str:
    return kind.__module__.partition(".")[0]


NAMESPACES = {
    "torch": "torch", "jax": "jax.numpy", "jaxlib": "jax.numpy", "cupy": "cupy", "cupyx": "cupy"
}  # fmt: skip


_registered: set[tuple[str, type]] = set()


def register_as_pytree(kind: type, flatten: Any, unflatten: Any) -> None:
    """Teach JAX and torch, where they are loaded, to look inside the objects of a class."""
    if "jax" in sys.modules and ("jax", kind) not in _registered:
        from jax.tree_util import register_pytree_node

        _registered.add(("jax", kind))
        register_pytree_node(kind, flatten, lambda rest, arrays: unflatten(arrays, rest))
    if "torch" in sys.modules and ("torch", kind) not in _registered:
        from torch.utils._pytree import register_pytree_node

        _registered.add(("torch", kind))
        register_pytree_node(kind, flatten, unflatten)
