"""The engine of PyTorch."""

from torch.utils._pytree import tree_flatten, tree_flatten_with_path

from .capture import capture
from .derivatives import detached, independent, leaves, linearise, on_copies, per_sample, unflatten
from .hessian import quadratic, second_order
from .inputs import add_up, in_turn, input_derivative, input_gradient, least_precision
from .recursions import propagate, propagate_back, unroll
from .reduced import reduced, samples_at_once

__all__ = [
    "add_up",
    "capture",
    "detached",
    "in_turn",
    "independent",
    "input_derivative",
    "input_gradient",
    "least_precision",
    "leaves",
    "linearise",
    "on_copies",
    "per_sample",
    "propagate",
    "propagate_back",
    "quadratic",
    "reduced",
    "samples_at_once",
    "second_order",
    "tree_flatten",
    "tree_flatten_with_path",
    "unflatten",
    "unroll",
]
