"""Diagonals and partial traces."""

from .diagonal import block_traces, diagonal
from .gibbs import entanglement_entropy, gibbs_density_matrix, reduced_density_matrix
from .marginal_variances import marginal_variances
from .partial_trace import partial_trace, partial_trace_operator
from .xdiag import xdiag, xnysdiag

__all__ = [
    "block_traces",
    "diagonal",
    "entanglement_entropy",
    "gibbs_density_matrix",
    "marginal_variances",
    "partial_trace",
    "partial_trace_operator",
    "reduced_density_matrix",
    "xdiag",
    "xnysdiag",
]
