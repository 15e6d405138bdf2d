"""Batched reverse passes through a graph of PyTorch, and the parts of an output they start at."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

Array = Any
Edge = tuple[Any, int]


def batched_grad(outputs: Sequence[Any], inputs: Sequence[Any], rows: Sequence[Array]
                 ) -> list[Array | None]:  # fmt: skip
    """Gradients of outputs for each row, in one reverse pass where all its operations allow it."""
    if not outputs or not inputs:
        return [None] * len(inputs)
    ends = [GradientEdge(*e) if isinstance(e, tuple) else e for e in outputs]
    starts = [GradientEdge(*e) if isinstance(e, tuple) else e for e in inputs]

    def grad(*v: Array) -> tuple[Array | None, ...]:
        return tuple(torch.autograd.grad(ends, starts, v, retain_graph=True, allow_unused=True))

    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # for checkpoints run again
            warnings.filterwarnings("ignore", "There is a performance drop")
            return _mapped(grad, rows)
    except RuntimeError:  # an operation without a batching rule; or one that fails, here too
        parts = zip(*(grad(*v) for v in zip(*rows, strict=True)), strict=True)
        return [None if p[0] is None else torch.stack(p) for p in parts]


def _mapped(grad: Callable[..., Any], rows: Sequence[Array]) -> list[Array | None]:
    """`grad` of all rows at once; None where it gives none."""
    reached: list[bool] = []

    def given(*v: Array) -> list[Array]:
        found = grad(*v)
        reached[:] = [g is not None for g in found]
        return [g for g in found if g is not None]

    found = iter(torch.func.vmap(given)(*rows))
    return [next(found) if is_reached else None for is_reached in reached]


def last_joint(node: Any) -> tuple[Any, set[Any]] | None:
    """Where an output was put together last, such as of time steps, if it was.

    With all nodes from there to the output, between which the graph does not branch.
    """
    above: set[Any] = set()
    while node is not None:
        above.add(node)
        edges = [edge for edge in node.next_functions if not _is_parameter(edge[0])]
        if node.name() in ("StackBackward0", "CatBackward0") and len(edges) > 1:
            constants = sum(child is None for child, _ in node.next_functions)
            return (node, above) if constants < 2 else None
        node = edges[0][0] if len(edges) == 1 else None
    return None


def cut(joint: Any, G: Array) -> list[tuple[Edge, Array]]:
    """The derivatives by what `torch.stack` or `torch.cat` gave, as those by its parts."""
    dim = joint._saved_dim - (2**64 if joint._saved_dim >= 2**63 else 0)
    dim = dim + 1 if dim >= 0 else dim
    edges = joint.next_functions
    if joint.name() == "StackBackward0":
        parts = G.unbind(dim)
    else:
        sizes = [n._input_metadata[i].shape if n is not None else None for n, i in edges]
        known = sum(s[dim - 1 if dim > 0 else dim] for s in sizes if s is not None)
        missing = G.shape[dim] - known
        each = [missing if s is None else s[dim - 1 if dim > 0 else dim] for s in sizes]
        parts = G.split(each, dim)
    return [(edge, part) for edge, part in zip(edges, parts, strict=True) if edge[0] is not None]


def _is_parameter(node: Any, depth: int = 4) -> bool:
    """Whether a node gives a parameter, a view of one, or a constant."""
    if node is None or node.name() == "torch::autograd::AccumulateGrad":
        return True
    return depth > 0 and all(_is_parameter(child, depth - 1) for child, _ in node.next_functions)
