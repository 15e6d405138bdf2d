"""Jacobians in factored form, on any array library."""

from .contraction_orders import Order, cheapest, orders
from .contractions import Form
from .tiles import Uses, gram, overlap, permuted, spans, tiles
from .uses import (
    Dense,
    Lookup,
    Outer,
    Shared,
    Use,
    cotangent,
    dense,
    pad,
    stack,
    take_samples,
    with_cotangent,
)

__all__ = [
    "Dense",
    "Form",
    "Lookup",
    "Order",
    "Outer",
    "Shared",
    "Use",
    "Uses",
    "cheapest",
    "cotangent",
    "dense",
    "gram",
    "orders",
    "overlap",
    "pad",
    "permuted",
    "spans",
    "stack",
    "take_samples",
    "tiles",
    "with_cotangent",
]
