"""The backend of the library that the parameters are of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from numpy import generic, ndarray

from ._derivatives import Backend, checks
from .factors import Capture

_SHARDED = (
    "the module is sharded (FSDP), so that its parameters lie on several devices, which is not "
    "supported; pass a module on one device, with the full_tensor() of each parameter"
)
_SCATTERED = {
    "DTensor": "a DTensor is among the parameters or inputs, whose parts lie on several devices, "
    "which is not supported; pass tensors on one device, as x.full_tensor() is",
    "FSDPModule": _SHARDED,
    "FullyShardedDataParallel": _SHARDED,
}


def adapter(params: Any) -> Backend:
    """`_torch` or `_jax`, imported only where such parameters were handed in.

    Trees of NumPy arrays are read by JAX where it is loaded: its functions take them.
    """
    refuse_scattered(params)
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch.utils._pytree")
    if jax is not None and any(isinstance(x, jax.Array) for x in jax.tree.leaves(params)):
        from . import _jax

        return _jax
    if torch is not None:
        tensor = sys.modules["torch"].Tensor
        found = torch.tree_leaves(params)
        if any(isinstance(x, tensor) for x in found):
            from . import _torch

            return _torch
    if jax is not None and any(isinstance(x, ndarray | generic) for x in jax.tree.leaves(params)):
        from . import _jax

        return _jax
    raise TypeError(checks.no_library(params))


def with_inputs(params: Any, x: Any) -> Backend:
    """The backend of the parameters, after a refusal of samples that f cannot be called with."""
    backend = adapter(params)
    refuse_scattered(x)
    leaves = [] if isinstance(x, Iterator) else backend.tree_flatten(x)[0]
    checks.inputs(x, any(hasattr(leaf, "shape") for leaf in leaves))
    return backend


def refuse_scattered(*trees: Any) -> None:
    """Refuse PyTorch's tensors and modules whose parts lie on several devices."""
    torch = sys.modules.get("torch.utils._pytree")
    for leaf in [] if torch is None else torch.tree_leaves(trees):
        for base in type(leaf).__mro__:
            if base.__name__ in _SCATTERED and base.__module__.startswith("torch.distributed"):
                raise TypeError(_SCATTERED[base.__name__])


def capture(f: Callable[[Any, Any], Any], params: Any, x: Any, *, whole: bool = False) -> Capture:
    """The capture of the library that the parameters are of."""
    return with_inputs(params, x).capture(f, params, x, whole=whole)  # type: ignore[no-any-return]
