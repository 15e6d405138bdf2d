"""Curvature of losses: Hessians."""

from .hessian import hessian

__all__ = ["hessian"]
