"""Diagonals and partial traces."""

from .diagonal import block_traces, diagonal
from .partial_trace import partial_trace, partial_trace_operator
from .xdiag import xdiag, xnysdiag

__all__ = [
    "block_traces",
    "diagonal",
    "partial_trace",
    "partial_trace_operator",
    "xdiag",
    "xnysdiag",
]
