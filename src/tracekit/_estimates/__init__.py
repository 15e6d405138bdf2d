"""What every function returns: the record, means over samples and columns, checks of budgets."""

from .budget import checked_budget, checked_tolerance
from .estimate import (
    Estimate,
    NotFiniteError,
    done,
    exact,
    renamed,
    require_finite,
    scaled,
    t_quantile,
)
from .running_mean import add, fitted
from .samples import beyond_chance, few, mean, skewness_of, standard_error

__all__ = [
    "Estimate",
    "NotFiniteError",
    "add",
    "beyond_chance",
    "checked_budget",
    "checked_tolerance",
    "done",
    "exact",
    "few",
    "fitted",
    "mean",
    "renamed",
    "require_finite",
    "scaled",
    "skewness_of",
    "standard_error",
    "t_quantile",
]
