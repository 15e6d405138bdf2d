"""Traces, norms and spectra of matrices that are known only by their products."""

from . import probes, testing
from ._adapt import as_operator
from ._build import block_diagonal, counted, gram, vstack
from ._estimate import Estimate, NotFiniteError
from ._operator import LinearOperator
from .auto import resume, trace
from .comparison import Comparison, compare
from .estimators import exact_trace, hutchinson, hutchpp, nahutchpp
from .exchangeable import xnystrace, xtrace
from .onesided import difference_basis, one_sided, range_basis

__version__ = "0.1.0.dev0"

__all__ = [
    "Comparison",
    "Estimate",
    "LinearOperator",
    "NotFiniteError",
    "as_operator",
    "block_diagonal",
    "compare",
    "counted",
    "difference_basis",
    "exact_trace",
    "gram",
    "hutchinson",
    "hutchpp",
    "nahutchpp",
    "one_sided",
    "probes",
    "range_basis",
    "resume",
    "testing",
    "trace",
    "vstack",
    "xnystrace",
    "xtrace",
]
