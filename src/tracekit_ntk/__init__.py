"""Neural tangent kernels as linear operators, on PyTorch, JAX, and by hand on NumPy and CuPy."""

from . import losses
from ._curvature import (
    fisher,
    ggn,
    ggn_diagonal,
    ggn_trace,
    hessian,
    hessian_trace,
    minibatch_hessian_trace,
)
from ._inputs import batch_mean, divergence, laplacian
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
from ._projections import project, projected_kernel
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
    "batch_mean",
    "cross_ntk",
    "difference_basis",
    "divergence",
    "explain",
    "factored_ntk",
    "fisher",
    "functional",
    "ggn",
    "ggn_diagonal",
    "ggn_trace",
    "hessian",
    "hessian_trace",
    "jacobian",
    "jacobian_contraction",
    "jacobian_from_pair",
    "kernel",
    "kernel_matrix",
    "laplacian",
    "losses",
    "minibatch_hessian_trace",
    "ntk",
    "ntk_diagonal",
    "ntk_norm",
    "ntk_trace",
    "ntk_vector_products",
    "parameter_gram",
    "per_parameter",
    "project",
    "projected_kernel",
    "sample_ntk",
    "state_kernel",
    "structured_derivatives",
    "track",
    "track_module",
]
