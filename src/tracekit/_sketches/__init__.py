"""Products spent on probes and kept, and what is read from them."""

from . import lanczos, leave_one_out, moments
from .folds import CrossFit, Fold
from .lanczos import Krylov
from .leave_one_out import leave_one_out_estimate
from .moments import zonal
from .nystrom import nystrom_factor
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

__all__ = [
    "CrossFit",
    "FactorSketch",
    "Fold",
    "Krylov",
    "NystromSketch",
    "RangeSketch",
    "adjoint_sketch",
    "factor_sketch",
    "lanczos",
    "leave_one_out",
    "leave_one_out_estimate",
    "moments",
    "nystrom_factor",
    "nystrom_sketch",
    "orthonormal_extension",
    "range_sketch",
    "sketch_of_products",
    "zonal",
]
