"""Products spent on probes and kept, and what is read from them."""

from . import cross_fitting, lanczos, leave_one_out, moments
from .cross_fitting import Fold
from .lanczos import Krylov
from .leave_one_out import leave_one_out_estimate
from .moments import zonal
from .nystrom import nystrom_factor
from .observable import Observed
from .range_sketch import (
    FactorSketch,
    NystromSketch,
    RangeSketch,
    adjoint_sketch,
    factor_sketch,
    nystrom_sketch,
    orthonormal_extension,
    range_sketch,
    sketch_of_products,
)
from .spaces import LOOK_AHEAD, MEGABYTES, Spaces, is_independent, itemsize, most_columns

__all__ = [
    "LOOK_AHEAD",
    "MEGABYTES",
    "FactorSketch",
    "Fold",
    "Krylov",
    "NystromSketch",
    "Observed",
    "RangeSketch",
    "Spaces",
    "adjoint_sketch",
    "cross_fitting",
    "factor_sketch",
    "is_independent",
    "itemsize",
    "lanczos",
    "leave_one_out",
    "leave_one_out_estimate",
    "moments",
    "most_columns",
    "nystrom_factor",
    "nystrom_sketch",
    "orthonormal_extension",
    "range_sketch",
    "sketch_of_products",
    "zonal",
]
