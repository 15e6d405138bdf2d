"""Kernels of the states that a recurrent network runs through."""

from .state_kernel import StateKernel, state_kernel

__all__ = ["StateKernel", "state_kernel"]
