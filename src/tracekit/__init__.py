"""Traces, norms and spectra of matrices that are known only by their products."""

from . import probes, testing
from ._adapt import as_operator
from ._build import block_diagonal, counted, gram, vstack
from ._estimate import Estimate, NotFiniteError
from ._operator import LinearOperator
from .estimators import exact_trace, hutchinson, hutchpp
from .exchangeable import xnystrace, xtrace

__version__ = "0.1.0.dev0"

__all__ = [
    "Estimate",
    "LinearOperator",
    "NotFiniteError",
    "as_operator",
    "block_diagonal",
    "counted",
    "exact_trace",
    "gram",
    "hutchinson",
    "hutchpp",
    "probes",
    "testing",
    "vstack",
    "xnystrace",
    "xtrace",
]
