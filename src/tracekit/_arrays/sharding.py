"""How tall arrays (n, k) of JAX lie over devices."""

from __future__ import annotations

import sys
from typing import Any

import array_api_compat

from .libraries import Array, Namespace, Product, is_traced


def is_sharding(layout: Any) -> bool:
    """Whether JAX can lay arrays out so."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(layout, jax.sharding.Sharding)


def laid_out(X: Any, layout: Any) -> Array:
    """Columns of JAX or of the host as a layout says, where there is one that suits their rows."""
    if layout is None or is_traced(X):  # compiled, columns lie as what they meet does
        return X
    try:
        layout.shard_shape(X.shape)
    except ValueError:
        return X
    return sys.modules["jax"].device_put(X, layout)


def row_parts(X: Array) -> int:
    """Into how many parts the rows of a matrix may be cut: one for each device of JAX's arrays."""
    if not array_api_compat.is_jax_array(X):
        return 1
    if is_traced(X):  # what holds it is not known yet
        return int(sys.modules["jax"].device_count())
    if _is_explicit(X.sharding):
        return 1
    return int(X.shape[0] // X.sharding.shard_shape(X.shape)[0])


def layout_of(product: Product, xp: Namespace, n: int) -> Any:
    """The layout of the sharded arrays of JAX that a product closes over; None where it has none.

    Nothing is called: a product may keep what it has seen.
    """
    if not array_api_compat.is_jax_namespace(xp) or sys.modules["jax"].device_count() == 1:
        return None
    held, seen = [product], dict[int, Any]()  # what is kept has an id of its own
    while held:
        x = held.pop()
        if id(x) in seen:
            continue
        seen[id(x)] = x
        if array_api_compat.is_jax_array(x):
            found = None if is_traced(x) else _along(x, n)
            if found is not None:
                return found
        held += [
            cell.cell_contents for cell in getattr(x, "__closure__", None) or () if _filled(cell)
        ]
        held += [
            getattr(x, name) for name in ("product", "matmat") if callable(getattr(x, name, None))
        ]
    return None


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _along(A: Array, n: int) -> Any:
    """A layout of n rows, as an axis of that length of an array is cut."""
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = A.sharding
    if not isinstance(sharding, NamedSharding) or len(sharding.device_set) == 1:
        return None
    if _is_explicit(sharding):
        return None
    spec = (*sharding.spec, *[None] * (A.ndim - len(sharding.spec)))
    cut = [name for size, name in zip(A.shape, spec, strict=True) if size == n and name is not None]
    return NamedSharding(sharding.mesh, PartitionSpec(cut[0], None)) if cut else None


def _is_explicit(sharding: Any) -> bool:
    """Whether each operation of JAX is to be told how its result lies, which formulas do not do."""
    kinds = getattr(getattr(sharding, "mesh", None), "axis_types", None) or ()
    return any(kind.name == "Explicit" for kind in kinds)
