"""The engine of PyTorch."""

from torch.utils._pytree import tree_flatten, tree_flatten_with_path

from .capture import capture
from .derivatives import detached, leaves, linearise, per_sample, unflatten
from .inputs import add_up, in_turn, input_derivative, input_gradient, least_precision
from .passes import on_copies

__all__ = [
    "add_up",
    "capture",
    "detached",
    "in_turn",
    "input_derivative",
    "input_gradient",
    "least_precision",
    "leaves",
    "linearise",
    "on_copies",
    "per_sample",
    "tree_flatten",
    "tree_flatten_with_path",
    "unflatten",
]
