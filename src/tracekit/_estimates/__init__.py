"""What every function returns: the record, means over samples and columns, checks of budgets."""

from . import files
from .budget import checked_budget, checked_tolerance, former_name
from .certified import Certified
from .density import SpectralDensity, jackson
from .estimate import (
    ErrorParts,
    Estimate,
    ProbeGram,
    exact,
    finalize,
    scaled,
    with_method,
)
from .jackknife import FEW, combined_error, jackknife, mixed_error
from .merged import merged
from .not_finite import NotFiniteError, require_finite
from .origin import with_origin
from .plots import plot_band, plot_errors
from .quantiles import t_quantile
from .running_mean import Running, add, fitted
from .samples import beyond_chance, few, mean, skewness_of, standard_error

__all__ = [
    "FEW",
    "Certified",
    "ErrorParts",
    "Estimate",
    "NotFiniteError",
    "ProbeGram",
    "Running",
    "SpectralDensity",
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
    "jackson",
    "mean",
    "merged",
    "mixed_error",
    "plot_band",
    "plot_errors",
    "require_finite",
    "scaled",
    "skewness_of",
    "standard_error",
    "t_quantile",
    "with_method",
    "with_origin",
]
