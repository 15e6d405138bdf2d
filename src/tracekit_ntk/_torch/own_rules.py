"""Functions that differentiate by rules of their own, and what their second derivatives are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from array_api_compat import torch as xp
from torch.autograd.function import BackwardCFunction

from tracekit._arrays import Array

from .._derivatives import INEXACT, checks, generic, steps
from .passes import wide

COMPILED = "CompiledFunctionBackward"  # of torch.compile


def own_rules(y: Array) -> set[str]:
    """Names of the rules of torch.autograd.Functions in the graph of y."""
    return {type(n).__name__ for n in _nodes(y) if isinstance(n, BackwardCFunction)}


def why_none(y: Array, back: Callable[[Array], Array]) -> str | None:
    """Why a rule in the graph of y has no derivative itself, if it says so.

    Asked for products with a cotangent (1, n) that has a graph.
    """
    own = own_rules(y)
    if not own:
        return None
    if COMPILED in own:
        return "torch.compile made its rule"
    try:
        made = back(torch.ones_like(y.detach()).reshape(1, -1).requires_grad_())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # whatever a rule does that no graph can hold
        return checks.reason_of(error)
    if any(type(n).__name__ == "Error" for n in _nodes(made)):
        return "its rule is marked once_differentiable"
    if not made.requires_grad and bool(made.any()):
        return "its rule leaves the graph"
    return None


def refused_later(rows: Array, reason: str) -> Array:
    """The same numbers, whose gradients are refused."""
    zero = torch.zeros((), dtype=rows.dtype, device=rows.device, requires_grad=True)
    return _Refused.apply(rows + zero, reason)


class _Refused(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, rows: Array, reason: str) -> Array:
        ctx.reason = reason
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *_: Array) -> Any:
        raise NotImplementedError(checks.no_second_derivative("v", ctx.reason))


def _nodes(y: Array) -> set[Any]:
    nodes, seen = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [child for child, _ in node.next_functions]
    return seen


def check_derivative(gradient: Callable[[Array], Array], g: Array, x: Array, eps: float) -> None:
    """Refuse a gradient g at x whose own derivative is missing, or not as its differences are.

    Where several differences agree with one another and not with a product, sample by sample: they
    do not where steps go over a kink.
    """
    if not g.requires_grad:
        g = 0 * x + g
    u = generic(x.numel(), xp, x.device).to(x.dtype).reshape(x.shape)
    try:
        (made,) = torch.autograd.grad(
            g, x, u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = checks.reason_of(error)
        raise NotImplementedError(checks.no_second_derivative("f", reason)) from error
    at, norms = x.detach(), [float(torch.linalg.vector_norm(wide(a.detach()))) for a in (x, u)]
    one, two, short = (
        wide(gradient(at + h * u).detach() - gradient(at - h * u).detach()) / (2 * h)
        for h in steps(eps, *norms)
    )

    def apart(here: Array, there: Array) -> Array:
        off, size = (torch.linalg.vector_norm(a.flatten(1), dim=1) for a in (here - there, there))
        return off / size.clip(torch.finfo(size.dtype).tiny)

    sure = (apart(two, one) < INEXACT) & (apart(short, one) < INEXACT)
    wrong = (sure & (apart(wide(made.detach()), one) > 2 * INEXACT)).double().mean()
    if float(wrong) > INEXACT:
        reason = "differences of its gradients show another one than its own rule has"
        raise NotImplementedError(checks.no_second_derivative("f", reason))
