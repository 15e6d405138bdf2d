"""Derivatives of the first order, where those of the second would be wrong."""

from __future__ import annotations

import sys
from typing import Any

import array_api_compat

from .libraries import Array

_FIRST = (
    "functions of matrices have first derivatives only, as to these Krylov spaces are constants{}; "
    "differentiate the function of a dense matrix, or take differences of first derivatives"
)


def once_differentiable(x: Array) -> Array:
    """The same array, whose second derivatives are refused: by JAX at once, by PyTorch when asked.

    PyTorch is asked where ``backward`` or ``grad`` is called with ``create_graph=True``.
    """
    jax = sys.modules.get("jax")
    if jax is not None and _levels(x, jax) > 1:
        raise NotImplementedError(_FIRST.format(""))
    if array_api_compat.is_torch_array(x) and x.requires_grad:
        x.register_hook(_refuse_graph)
    return x


def _levels(x: Any, jax: Any) -> int:
    """How many transformations of JAX differentiate x, as far as they are seen from here."""
    count = 0
    while isinstance(x, jax.core.Tracer):
        count += hasattr(x, "primal")
        x = getattr(x, "primal", getattr(x, "val", None))
    return count


def _refuse_graph(gradient: Any) -> None:
    if sys.modules["torch"].is_grad_enabled():
        raise NotImplementedError(_FIRST.format(", and create_graph=True asks for more"))
