"""Jacobians in factored form, on any array library."""

from .contraction_orders import Order, cheapest, orders
from .contractions import Form
from .tiles import Uses, gram, meet, permuted, tiles
from .uses import Dense, Lookup, Outer, Use, cotangent, dense, stack

__all__ = [
    "Dense",
    "Form",
    "Lookup",
    "Order",
    "Outer",
    "Use",
    "Uses",
    "cheapest",
    "cotangent",
    "dense",
    "gram",
    "meet",
    "orders",
    "permuted",
    "stack",
    "tiles",
]
