"""Jacobians in factored form, on any array library."""

from .contraction_orders import Order, cheapest, orders
from .contractions import Form
from .tiles import Uses, gram, overlap, permuted, tiles
from .uses import Dense, Lookup, Outer, Shared, Use, cotangent, dense, stack, with_cotangent

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
    "permuted",
    "stack",
    "tiles",
    "with_cotangent",
]
