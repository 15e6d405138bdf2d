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
from .joint import difference, linear_combination, logarithm, ratio
from .merged import merged
from .not_finite import NotFiniteError, require_finite
from .origin import of_probes, with_origin
from .plots import plot_band, plot_errors
from .quantiles import t_quantile
from .running_mean import Running, add, fitted
from .samples import beyond_chance, doubt, few, mean, skewness_of, standard_error
from .strata import stratified

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
    "difference",
    "doubt",
    "exact",
    "few",
    "files",
    "finalize",
    "fitted",
    "former_name",
    "jackknife",
    "jackson",
    "linear_combination",
    "logarithm",
    "mean",
    "merged",
    "mixed_error",
    "of_probes",
    "plot_band",
    "plot_errors",
    "ratio",
    "require_finite",
    "scaled",
    "skewness_of",
    "standard_error",
    "stratified",
    "t_quantile",
    "with_method",
    "with_origin",
]
