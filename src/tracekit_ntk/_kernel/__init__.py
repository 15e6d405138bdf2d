"""Kernels, and exact numbers and operators made of factors."""

from .chunks import in_chunks
from .cotangents import cotangent_columns, of_each
from .exact import (
    captured,
    diagonal_of,
    from_factors,
    norm_of_one,
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
    combined,
    jacobian_contraction,
    ntk_vector_products,
    structured_derivatives,
)
from .norms import fits, kernel_cost, matrix_of, matrix_of_samples, norm_of
from .output_axes import (
    BYTES_KEPT,
    OutputAxes,
    Prepared,
    asked_axes,
    chunk_of,
    reduced,
    unfolded,
    zeros,
)

__all__ = [
    "BYTES_KEPT",
    "OutputAxes",
    "Prepared",
    "asked_axes",
    "captured",
    "chunk_of",
    "combined",
    "cotangent_columns",
    "diagonal_of",
    "explain",
    "factored_ntk",
    "fits",
    "from_factors",
    "in_chunks",
    "jacobian_contraction",
    "kernel_cost",
    "kernel_of_head",
    "matrix_of",
    "matrix_of_samples",
    "norm_of",
    "norm_of_one",
    "ntk_diagonal",
    "ntk_norm",
    "ntk_trace",
    "ntk_vector_products",
    "of_each",
    "reduced",
    "structured_derivatives",
    "trace_of",
    "trace_of_seen",
    "unfolded",
    "zeros",
]
