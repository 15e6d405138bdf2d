"""What every function returns: the record, means over samples and columns, checks of budgets."""

from . import files
from .budget import checked_budget, checked_tolerance, former_name
from .estimate import (
    ErrorParts,
    Estimate,
    NotFiniteError,
    ProbeGram,
    exact,
    finalize,
    require_finite,
    scaled,
    with_method,
)
from .jackknife import FEW, combined_error, jackknife, mixed_error
from .plots import plot_band, plot_density, plot_errors
from .quantiles import t_quantile
from .running_mean import add, fitted
from .samples import beyond_chance, few, mean, skewness_of, standard_error

__all__ = [
    "FEW",
    "ErrorParts",
    "Estimate",
    "NotFiniteError",
    "ProbeGram",
    "add",
    "beyond_chance",
    "checked_budget",
    "checked_tolerance",
    "combined_error",
    "exact",
    "few",
    "files",
    "finalize",
    "fitted",
    "former_name",
    "jackknife",
    "mean",
    "mixed_error",
    "plot_band",
    "plot_density",
    "plot_errors",
    "require_finite",
    "scaled",
    "skewness_of",
    "standard_error",
    "t_quantile",
    "with_method",
]
