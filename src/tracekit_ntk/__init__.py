"""Neural tangent kernels as linear operators, on PyTorch, JAX, and by hand on NumPy and CuPy."""

from ._jacobian import (
    cross_ntk,
    difference_basis,
    functional,
    jacobian,
    jacobian_from_pair,
    ntk,
    parameter_gram,
    per_parameter,
)
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
