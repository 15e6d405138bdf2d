"""Exact traces and kernels of networks of linear layers, without a gradient by the parameters.

The gradient by a layer's weights is a sum over its uses of outer products, of what went in and what
came back, so that inner products of gradients are inner products of these two. They take one
batched reverse pass over the outputs, in double precision. Nothing here uses `tracekit`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from examples.hazelden2025.networks import Problem

Use = tuple[Tensor, Tensor]


def uses(module: nn.Module, x: Tensor) -> list[Use]:
    """Of every linear layer the inputs (N, S, d) and the cotangents (N, K, S, w) of K outputs.

    N samples, S uses for each of them, such as time steps.
    """
    seen: dict[nn.Module, list[Use]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, y: seen.setdefault(layer, []).append((inputs[0].detach(), y))
        )
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    ]
    y = module(x)
    for hook in hooks:
        hook.remove()
    count = y[0].numel()
    E = torch.eye(count, dtype=y.dtype).reshape(count, 1, *y.shape[1:]).expand(count, *y.shape)
    outputs = [output for pairs in seen.values() for _, output in pairs]
    gradients = iter(torch.autograd.grad(y, outputs, E, is_grads_batched=True))
    samples = len(x)
    return [
        (
            torch.cat([X.reshape(samples, -1, X.shape[-1]) for X, _ in pairs], 1),
            torch.cat(
                [next(gradients).reshape(count, samples, -1, y.shape[-1]) for _, y in pairs], 2
            ).transpose(0, 1),
        )
        for pairs in seen.values()
    ]


def trace(problem: Problem) -> float:
    """The exact trace of the kernel: the squared gradients of all outputs, sample by sample."""
    total = 0.0
    module = copy.deepcopy(problem.module).double()
    for sample in problem.x.double():
        for X, G in uses(module, sample[None]):
            inputs, cotangents = X[0], G[0].transpose(0, 1).flatten(1)  # (S, d), (S, K w)
            total += float(torch.sum((inputs @ inputs.T + 1) * (cotangents @ cotangents.T)))
    return total


def kernel(problem: Problem) -> Tensor:
    """The whole kernel (N K, N K), of layers that each sample uses once."""
    total: Tensor | float = 0.0
    for X, G in uses(copy.deepcopy(problem.module).double(), problem.x.double()):
        (N, K, S, w) = G.shape
        if S != 1:
            raise ValueError(f"a layer is used {S} times by each sample; pass a network of one use")
        flat = G.reshape(N * K, w)
        part = (flat @ flat.T).reshape(N, K, N, K)
        part *= (X[:, 0] @ X[:, 0].T + 1)[:, None, :, None]
        total = part + total
    return total.reshape(N * K, N * K)
