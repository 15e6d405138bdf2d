"""States and linear recursions over time, step by step, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tracekit._arrays import Array


def unroll(f: Callable[[Any, Any], Array], params: Any, inputs: Array, h0: Array) -> Array:
    """The states (B, T, U) that ``h = f(params, (h, x))`` runs through, of no gradient."""
    states = [h0]
    with torch.inference_mode(False), torch.no_grad():
        for x in inputs.unbind(1):
            states.append(f(params, (states[-1], x)))
        return torch.stack(states[1:], 1)


def propagate(A: Array, V: Array) -> Array:
    """``y_t = v_t + A_t y_{t-1}``, of A (T, B, U, U), V (B, T, U, k); none before the first."""
    Y = [V[:, 0]]
    for t in range(1, V.shape[1]):
        Y.append(torch.baddbmm(V[:, t], A[t], Y[-1]))
    return torch.stack(Y, 1)


def propagate_back(A: Array, V: Array) -> Array:
    """``c_t = v_t + A_{t+1}^H c_{t+1}`` with none after the last."""
    C = [V[:, -1]]
    for t in range(V.shape[1] - 1, 0, -1):
        C.append(torch.baddbmm(V[:, t - 1], A[t].mH, C[-1]))
    return torch.stack(C[::-1], 1)
