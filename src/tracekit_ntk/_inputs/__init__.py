"""Traces of derivatives by the inputs: divergences and Laplacians of all samples of a batch."""

from .batch_mean import batch_mean
from .divergence import divergence
from .laplacian import laplacian

__all__ = ["batch_mean", "divergence", "laplacian"]
