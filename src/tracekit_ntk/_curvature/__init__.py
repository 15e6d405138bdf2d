"""Curvature of losses by the parameters of a network."""

from .exact import ggn_diagonal, ggn_trace
from .ggn import fisher, ggn
from .hessian import hessian
from .hessian_trace import hessian_trace, minibatch_hessian_trace

__all__ = [
    "fisher",
    "ggn",
    "ggn_diagonal",
    "ggn_trace",
    "hessian",
    "hessian_trace",
    "minibatch_hessian_trace",
]
