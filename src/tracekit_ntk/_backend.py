"""The backend of the library that the parameters are of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from numpy import generic, ndarray

from tracekit._arrays import Array, Rows, device_of, namespace

from ._derivatives import Backend, checks, sharers
from .factors import Capture


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


def kept(params: Any, x: Any) -> Any:
    """Copies of the samples, which nobody else can write into."""
    library = adapter(params)
    leaves = library.tree_flatten(x)[0]
    return library.unflatten(x, [_copy(leaf) for leaf in leaves])


def shared(params: Any, layout: Any) -> tuple[Any, list[Array], Rows]:
    """Copies of parameters that no gradient reaches, as a tree and as a list, and who has them."""
    backend = adapter(params)
    leaves = [backend.detached(leaf) for _, leaf in backend.leaves(params)]
    processes = sharers(layout, namespace(leaves[0]), device_of(leaves[0]))
    return backend.unflatten(params, leaves), leaves, processes


def refuse_scattered(*trees: Any) -> None:
    """Refuse PyTorch's tensors and modules whose parts lie on several devices."""
    torch = sys.modules.get("torch.utils._pytree")
    for leaf in [] if torch is None else torch.tree_leaves(trees):
        checks.scattered(type(leaf))


def capture(
    f: Callable[[Any, Any], Any], params: Any, x: Any, *, whole: bool = False, alone: bool = False
) -> Capture:
    """The capture of the library that the parameters are of.

    With `alone`, of samples that meet those of other captures: where f mixes those of a batch, the
    batch has a Jacobian, but two of them have none between them.
    """
    library = with_inputs(params, x)
    found = library.capture(f, params, x, whole=whole)
    if alone and not whole:
        library.independent(f, params, x)
    return found  # type: ignore[no-any-return]


def _copy(leaf: Any) -> Any:
    if hasattr(leaf, "clone"):  # of PyTorch; those of JAX are not written into
        return leaf.clone()
    return leaf.copy() if isinstance(leaf, ndarray) else leaf
