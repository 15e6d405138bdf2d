"""Derivatives by the inputs, for all samples at once: products with the transposed Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch.func import grad, vjp, vmap

from tracekit._arrays import Array

from .._derivatives import checks
from .own_rules import check_derivative, own_rules, refused_later, why_none
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

    reason = why_none(found.output, found.pull) if found.differentiated else None

    def products(U: Array) -> Array:
        rows = found.pull(U.reshape(len(U), -1)).reshape(U.shape)
        refused = reason is not None and torch.is_grad_enabled()
        return refused_later(rows, str(reason)) if refused else rows

    return found.output.detach(), products


def input_gradient(
    f: Callable[[Array], Array], *, checked: bool = False
) -> Callable[[Array], Array]:
    """The gradient by x of the sum of f(x), held to differences where f has rules of its own."""

    def gradient(x: Array, *, checked: bool = checked) -> Array:
        if peek_interpreter_stack() is not None:
            return grad(lambda x: f(x).sum())(x)
        x = x if x.requires_grad else x.clone().requires_grad_()
        y = f(x.clone())
        if not y.requires_grad:
            return torch.zeros_like(x)

        def back(cotangent: Array) -> Array:
            return torch.autograd.grad(
                y, x, cotangent.reshape(y.shape), create_graph=True, allow_unused=True,
                materialize_grads=True,
            )[0]  # fmt: skip

        if checked or not own_rules(y):
            return back(torch.ones_like(y))
        reason = why_none(y, back)
        if reason is not None:
            raise NotImplementedError(checks.no_second_derivative("f", reason))
        found, plain = back(torch.ones_like(y)), partial(gradient, checked=True)
        check_derivative(plain, found, x, least_precision(plain, x))
        return found

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
