"""Products spent on probes and kept, and what is read from them."""

from . import (
    chebyshev,
    cross_fitting,
    gauss,
    hessenberg,
    lanczos,
    leave_one_out,
    moments,
    preconditioned,
    rules,
)
from .arnoldi import Arnoldi
from .chebyshev import Moments, OutsideError, Space
from .cross_fitting import Fold
from .deflation import (
    ControlVariate,
    Pairs,
    control_variate,
    cross_fit,
    deflated,
    dimension,
    is_preconditioned,
    sketch_cost,
)
from .lanczos import Krylov
from .leave_one_out import leave_one_out_estimate
from .moments import zonal
from .nystrom import nystrom_factor
from .observable import Observed
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
from .rules import Quadrature, Rule, samples
from .spaces import FEWEST, LOOK_AHEAD, MEGABYTES, Spaces, is_independent, joined, most_columns

__all__ = [
    "FEWEST",
    "LOOK_AHEAD",
    "MEGABYTES",
    "AdjointSketch",
    "Arnoldi",
    "ControlVariate",
    "FactorSketch",
    "Fold",
    "Krylov",
    "Moments",
    "NystromSketch",
    "Observed",
    "OutsideError",
    "Pairs",
    "Quadrature",
    "RangeSketch",
    "Rule",
    "Space",
    "Spaces",
    "adjoint_sketch",
    "chebyshev",
    "control_variate",
    "cross_fit",
    "cross_fitting",
    "deflated",
    "dimension",
    "factor_sketch",
    "gauss",
    "hessenberg",
    "is_independent",
    "is_preconditioned",
    "joined",
    "lanczos",
    "leave_one_out",
    "leave_one_out_estimate",
    "moments",
    "most_columns",
    "nystrom_factor",
    "nystrom_sketch",
    "orthonormal_extension",
    "preconditioned",
    "range_sketch",
    "rules",
    "samples",
    "sketch_cost",
    "sketch_of_products",
    "zonal",
]
