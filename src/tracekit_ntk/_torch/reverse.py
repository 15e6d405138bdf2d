"""Batched reverse passes through a graph of PyTorch, and the parts of an output they start at."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from tracekit._arrays import Array

Edge = tuple[Any, int]
CONVOLVED = 2**18  # entries of what convolutions give, from which their gradients go row by row
JOINTS = {"StackBackward0", "CatBackward0"}


class Way(NamedTuple):
    """How reverse passes go: whether rows are batched, and whether a graph is made of them."""

    mapped: bool = True
    graph: bool = False


def batched_grad(outputs: Sequence[Any], inputs: Sequence[Any], rows: Sequence[Array],
                 way: Way = Way()) -> list[Array | None]:  # fmt: skip  # noqa: B008
    """Gradients of outputs for each row, in one reverse pass where all its operations allow it."""
    if not outputs or not inputs:
        return [None] * len(inputs)
    ends = [GradientEdge(*e) if isinstance(e, tuple) else e for e in outputs]
    starts = [GradientEdge(*e) if isinstance(e, tuple) else e for e in inputs]

    def grad(*v: Array) -> tuple[Array | None, ...]:
        found = torch.autograd.grad(
            ends, starts, v, retain_graph=True, create_graph=way.graph, allow_unused=True
        )
        return tuple(g.to_dense() if g is not None and g.is_sparse else g for g in found)

    if way.mapped:
        try:
            with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # for checkpoints
                warnings.filterwarnings("ignore", "There is a performance drop")
                return _mapped(grad, rows)
        except RuntimeError:  # an operation without a batching rule; or one that fails below too
            pass
    with sdpa_kernel(SDPBackend.MATH):
        parts = zip(*(grad(*v) for v in zip(*rows, strict=True)), strict=True)
        return [None if p[0] is None else torch.stack(p) if p[1:] else p[0][None] for p in parts]


def _mapped(grad: Callable[..., Any], rows: Sequence[Array]) -> list[Array | None]:
    """`grad` of all rows at once; None where it gives none, one array for each that it gives."""
    places: list[int | None] = []

    def given(*v: Array) -> list[Array]:
        found = grad(*v)
        once = {id(g): g for g in found if g is not None}
        number = dict(zip(once, range(len(once)), strict=True))
        places[:] = [None if g is None else number[id(g)] for g in found]
        return list(once.values())

    made = torch.func.vmap(given)(*rows)
    return [None if place is None else made[place] for place in places]


def goes_one_by_one(y: Array) -> bool:
    """Whether gradients of several rows cost more at once than one after the other.

    As those by the weights of convolutions do on the CPU, but where calls cost more than numbers.
    """
    if not y.requires_grad or y.device.type != "cpu":
        return False
    nodes = below(edge_of(y)[0], set())[1]
    given = [n._input_metadata[0].shape for n in nodes if n.name() == "ConvolutionBackward0"]
    return sum(map(prod, given)) >= CONVOLVED


def each(change: Callable[[Array], Array], grads: Sequence[Array | None]) -> list[Array | None]:
    """Gradients changed alike: one that several edges share is changed once."""
    made = {id(g): change(g) for g in {id(g): g for g in grads if g is not None}.values()}
    return [None if g is None else made[id(g)] for g in grads]


def edge_of(x: Array) -> Edge:
    """Where in the graph a tensor is."""
    if x.grad_fn is not None:
        return x.grad_fn, x.output_nr
    if torch.is_grad_enabled():  # a view of a leaf shows its node
        return get_gradient_edge(x).node, 0
    with torch.enable_grad():
        return edge_of(x)


def last_joint(root: Any, ends: set[Any]) -> tuple[Any, set[Any]] | None:
    """Where an output was put together last, such as of time steps, if it was.

    With all nodes that are reached from the output otherwise than through there. `ends` are the
    nodes of parameters.
    """
    node = root
    while node is not None:
        edges = [edge for edge in node.next_functions if not _is_parameter(edge[0], ends)]
        if node.name() in JOINTS and len(edges) > 1:
            constants = sum(child is None for child, _ in node.next_functions)
            return (node, below(root, ends | {node})[1]) if constants < 2 else None
        node = edges[0][0] if len(edges) == 1 else None
    return None


def below(root: Any, ends: set[Any]) -> tuple[Counter[Edge], set[Any]]:
    """How often each node's outputs are used in the graph below a node; and all its nodes.

    What lies below `ends` is left out.
    """
    edges: Counter[Edge] = Counter()
    nodes, todo = {root}, [] if root in ends else [root]
    while todo:
        for child, number in todo.pop().next_functions:
            if child is not None:
                edges[child, number] += 1
                if child not in nodes:
                    nodes.add(child)
                    if child not in ends:
                        todo.append(child)
    return edges, nodes


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


def _is_parameter(node: Any, ends: set[Any], depth: int = 4) -> bool:
    """Whether a node gives a parameter, a view or product of some, or a constant."""
    if node is None or node in ends or node.name() == "torch::autograd::AccumulateGrad":
        return True
    children = node.next_functions
    return depth > 0 and all(_is_parameter(child, ends, depth - 1) for child, _ in children)
