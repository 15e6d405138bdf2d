"""Kernels, and exact numbers and operators made of factors."""

from .chunks import in_chunks
from .exact import (
    captured,
    diagonal_of,
    from_factors,
    ntk_diagonal,
    ntk_norm,
    ntk_trace,
    trace_of,
    trace_of_seen,
)
from .explain import explain
from .factored_ntk import factored_ntk
from .head import kernel_of_head
from .implementations import (
    jacobian_contraction,
    ntk_vector_products,
    structured_derivatives,
)
from .output_axes import BYTES_KEPT, OutputAxes, Prepared, chunk_of, reduced, zeros

__all__ = [
    "BYTES_KEPT",
    "OutputAxes",
    "Prepared",
    "captured",
    "chunk_of",
    "diagonal_of",
    "explain",
    "factored_ntk",
    "from_factors",
    "in_chunks",
    "jacobian_contraction",
    "kernel_of_head",
    "ntk_diagonal",
    "ntk_norm",
    "ntk_trace",
    "ntk_vector_products",
    "reduced",
    "structured_derivatives",
    "trace_of",
    "trace_of_seen",
    "zeros",
]
