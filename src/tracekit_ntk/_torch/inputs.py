"""Derivatives by the inputs, for all samples at once: products with the transposed Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch.func import grad, vjp, vmap

from tracekit._arrays import Array

from .passes import Derivative, Known, Lowest, coarsest, normal, passes, usable


def input_derivative(
    v: Callable[[Array], Any], x: Array, *, graph: bool = True
) -> tuple[Array, Callable[[Array], Array]]:
    """The value v(x), and products of rows (k, *x.shape) with the transposed derivative."""
    if peek_interpreter_stack() is not None:  # a transform of torch.func, within which no other is
        y, back = vjp(v, x)
        return y, lambda U: vmap(lambda u: back(u)[0])(U.to(y.dtype))
    graph = graph and torch.is_grad_enabled()
    at = x.clone() if graph and x.requires_grad else normal(x.detach())
    found = Derivative(lambda at: v(at.clone()), [at], Known(coarsest(x), batched=True))
    found.differentiated = graph and (x.requires_grad or found.reads_more())

    def products(U: Array) -> Array:
        return found.pull(U.reshape(len(U), -1)).reshape(U.shape)

    return found.output.detach(), products


def input_gradient(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The gradient by x of the sum of f(x)."""

    def gradient(x: Array) -> Array:
        if peek_interpreter_stack() is not None:
            return grad(lambda x: f(x).sum())(x)
        y = f(x.clone())
        if not y.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(
            y.sum(), x, create_graph=True, allow_unused=True, materialize_grads=True
        )[0]

    return gradient


def least_precision(v: Callable[[Array], Any], x: Array) -> float:
    """The rounding unit of the least precise numbers that v(x) meets on the way."""
    at = x.detach().clone().requires_grad_()
    with passes(), Lowest() as lowest:
        y = usable(v)(at.clone())
    return max(float(lowest.eps), coarsest(y, x))


def add_up(term: Callable[[Any], Array], count: int) -> Array:
    """The sum of ``term(0)``, ``term(1)``, ..."""
    total = term(0)
    for number in range(1, count):
        total = total + term(number)
    return total


def in_turn(product: Callable[[Array], Array], T: Array, size: int) -> Array:
    """Products of rows, `size` of them at a time."""
    return torch.cat([product(part) for part in T.split(size)]) if len(T) > size else product(T)
