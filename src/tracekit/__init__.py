"""Traces, norms and spectra of matrices that are known only by their products."""

from . import functions, probes, testing
from ._adapt import as_operator
from ._axes import with_dims
from ._build import block_diagonal, centered, counted, gram, vstack
from ._estimate import Estimate, NotFiniteError
from ._operator import LinearOperator
from .alignment import alignment, inner, target_alignment
from .auto import resume, trace
from .comparison import Comparison, compare
from .density import SpectralDensity, spectral_density
from .determinant import logdet
from .diagonal import block_traces, diagonal
from .estimators import exact_trace, hutchinson, hutchpp, nahutchpp
from .exchangeable import xnystrace, xtrace
from .exchangeable_diagonal import xdiag, xnysdiag
from .matrix_functions import function_operator, trace_function
from .named_traces import effective_dimension, estrada_index, trace_inverse
from .onesided import difference_basis, one_sided, range_basis
from .partial import partial_trace, partial_trace_operator
from .schatten import entropy_rank, nuclear_norm, schatten_norm
from .sequence import Tracked, Tracker
from .spectrum import effective_rank, frobenius_norm, spectral_summary
from .zonal import SpectralSummary, one_sided_alignment, one_sided_summary

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Estimate",
    "LinearOperator",
    "NotFiniteError",
    "SpectralDensity",
    "SpectralSummary",
    "Tracked",
    "Tracker",
    "alignment",
    "as_operator",
    "block_diagonal",
    "block_traces",
    "centered",
    "compare",
    "counted",
    "diagonal",
    "difference_basis",
    "effective_dimension",
    "effective_rank",
    "entropy_rank",
    "estrada_index",
    "exact_trace",
    "frobenius_norm",
    "function_operator",
    "functions",
    "gram",
    "hutchinson",
    "hutchpp",
    "inner",
    "logdet",
    "nahutchpp",
    "nuclear_norm",
    "one_sided",
    "one_sided_alignment",
    "one_sided_summary",
    "partial_trace",
    "partial_trace_operator",
    "probes",
    "range_basis",
    "resume",
    "schatten_norm",
    "spectral_density",
    "spectral_summary",
    "target_alignment",
    "testing",
    "trace",
    "trace_function",
    "trace_inverse",
    "vstack",
    "with_dims",
    "xdiag",
    "xnysdiag",
    "xnystrace",
    "xtrace",
]
