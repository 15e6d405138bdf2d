"""Jacobians and kernels as operators."""

from .by_hand import difference_basis, jacobian_from_pair
from .functional import functional
from .jacobian import cross_ntk, jacobian, ntk, parameter_gram
from .per_parameter import per_parameter
from .samples import sample_ntk
from .tracking import track, track_module

__all__ = [
    "cross_ntk",
    "difference_basis",
    "functional",
    "jacobian",
    "jacobian_from_pair",
    "ntk",
    "parameter_gram",
    "per_parameter",
    "sample_ntk",
    "track",
    "track_module",
]
