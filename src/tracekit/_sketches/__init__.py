"""Products spent on probes and kept, and what is read from them."""

from . import lanczos, leave_one_out, moments
from .lanczos import Krylov
from .leave_one_out import check_adjoint, check_hermitian, leave_one_out_estimate
from .moments import zonal
from .range_sketch import (
    AdjointSketch,
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
    "AdjointSketch",
    "FactorSketch",
    "Krylov",
    "NystromSketch",
    "RangeSketch",
    "adjoint_sketch",
    "check_adjoint",
    "check_hermitian",
    "factor_sketch",
    "lanczos",
    "leave_one_out",
    "leave_one_out_estimate",
    "moments",
    "nystrom_sketch",
    "orthonormal_extension",
    "range_sketch",
    "sketch_of_products",
    "zonal",
]
