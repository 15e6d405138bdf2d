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
    sample_ntk,
    track,
    track_module,
)
from ._recurrent import StateKernel, state_kernel
from .kernel import (
    explain,
    factored_ntk,
    jacobian_contraction,
    kernel,
    kernel_matrix,
    ntk_diagonal,
    ntk_norm,
    ntk_trace,
    ntk_vector_products,
    structured_derivatives,
)

__all__ = [
    "StateKernel",
    "cross_ntk",
    "difference_basis",
    "explain",
    "factored_ntk",
    "functional",
    "jacobian",
    "jacobian_contraction",
    "jacobian_from_pair",
    "kernel",
    "kernel_matrix",
    "ntk",
    "ntk_diagonal",
    "ntk_norm",
    "ntk_trace",
    "ntk_vector_products",
    "parameter_gram",
    "per_parameter",
    "sample_ntk",
    "state_kernel",
    "structured_derivatives",
    "track",
    "track_module",
]
