"""Random projections of gradients made of factors, and kernels estimated from them."""

from .project import project
from .projected_kernel import projected_kernel

__all__ = ["project", "projected_kernel"]
