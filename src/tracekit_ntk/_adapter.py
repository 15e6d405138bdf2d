"""The adapter of the library that the parameters are of."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def adapter(params: Any) -> ModuleType:
    """`_torch` or `_jax`, imported only where such parameters were handed in."""
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
    raise TypeError(
        f"params, a {type(params).__name__}, holds no PyTorch or JAX array, and no other library "
        "differentiates; pass a tree of such arrays (a dict, list, ...; for a torch.nn.Module see "
        "functional(module)), or both products to jacobian_from_pair"
    )
