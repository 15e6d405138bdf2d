"""Traces of functions of matrices."""

from .argmin import argmin
from .density import spectral_density
from .logdet import logdet
from .merge import merge
from .named import effective_dimension, estrada_index, trace_inverse
from .schatten import entropy_rank, nuclear_norm, schatten_norm
from .spectral_run import SpectralRun, spectral_run
from .statistics import gcv, reml
from .thermal import Thermodynamics, expectation, thermodynamics
from .trace_function import function_operator, trace_function

__all__ = [
    "SpectralRun",
    "Thermodynamics",
    "argmin",
    "effective_dimension",
    "entropy_rank",
    "estrada_index",
    "expectation",
    "function_operator",
    "gcv",
    "logdet",
    "merge",
    "nuclear_norm",
    "reml",
    "schatten_norm",
    "spectral_density",
    "spectral_run",
    "thermodynamics",
    "trace_function",
    "trace_inverse",
]
