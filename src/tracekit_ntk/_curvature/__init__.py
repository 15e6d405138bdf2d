"""Curvature of losses by the parameters of a network."""

from .exact import ggn_diagonal, ggn_trace
from .ggn import fisher, ggn

__all__ = ["fisher", "ggn", "ggn_diagonal", "ggn_trace"]
