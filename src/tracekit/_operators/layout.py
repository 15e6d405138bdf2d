"""How tall arrays (n, k) lie over devices: as an operator says, or what it multiplies by does."""

from __future__ import annotations

from typing import Any

import array_api_compat

from .._arrays import Namespace, Product, is_sharding, layout_of


def layout_for(layout: Any, product: Product, xp: Namespace, n: int) -> Any:
    """The layout of n rows that is asked for, if they can have it; else that of the product."""
    if layout is None:
        return layout_of(product, xp, n)
    if not is_sharding(layout):
        raise TypeError(
            f"`layout` must be a jax.sharding.Sharding of arrays (n, k), got a "
            f"{type(layout).__name__}; leave it out where arrays lie on one device"
        )
    if not array_api_compat.is_jax_namespace(xp):
        raise TypeError(
            f"`layout` is JAX's, and the operator is of {xp.__name__}; pass xp=jax.numpy"
        )
    try:
        layout.shard_shape((n, 1))
    except ValueError as error:
        parts = len(layout.device_set)
        raise ValueError(
            f"a layout over {parts} devices does not divide {n} rows; pad the operator to "
            f"{-(-n // parts) * parts}, or pass a layout that does"
        ) from error
    return layout
