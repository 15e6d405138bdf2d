"""Estimators of the trace."""

from .auto import trace
from .comparison import BUDGETS, METHODS, Comparison, applicable_methods, checked_budgets, compare
from .exact import exact_trace
from .hutchinson import hutchinson
from .hutchpp import hutchpp, nahutchpp
from .one_sided import difference_basis, one_sided, range_basis
from .xtrace import xnystrace, xtrace

__all__ = [
    "BUDGETS",
    "METHODS",
    "Comparison",
    "applicable_methods",
    "checked_budgets",
    "compare",
    "difference_basis",
    "exact_trace",
    "hutchinson",
    "hutchpp",
    "nahutchpp",
    "one_sided",
    "range_basis",
    "trace",
    "xnystrace",
    "xtrace",
]
