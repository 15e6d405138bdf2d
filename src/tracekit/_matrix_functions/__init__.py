"""Traces of functions of matrices."""

from .density import SpectralDensity, spectral_density
from .logdet import logdet
from .named import effective_dimension, estrada_index, trace_inverse
from .schatten import entropy_rank, nuclear_norm, schatten_norm
from .trace_function import function_operator, trace_function

__all__ = [
    "SpectralDensity",
    "effective_dimension",
    "entropy_rank",
    "estrada_index",
    "function_operator",
    "logdet",
    "nuclear_norm",
    "schatten_norm",
    "spectral_density",
    "trace_function",
    "trace_inverse",
]
