"""States and linear recursions over time, as scans of JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten

from tracekit._arrays import Array

from .programs import Traced, keep, trace


def unroll(f: Callable[[Any, Any], Array], params: Any, inputs: Array, h0: Array) -> Array:
    """The states (B, T, U) that ``h = f(params, (h, x))`` runs through."""
    leaves, tree = tree_flatten(params)
    traced = trace(lambda p, h, x: f(tree.unflatten(p), (h, x)), leaves, h0, inputs[:, 0])
    key = traced.key and ("unroll", traced.key)
    run = keep(key, lambda: jax.jit(partial(_unrolled, traced)))
    states: Array = run(traced.consts, leaves, inputs, h0)
    return states


def _unrolled(traced: Traced, consts: Any, leaves: Any, inputs: Array, h0: Array) -> Array:
    def step(h: Array, x: Array) -> tuple[Array, Array]:
        h = traced(consts, leaves, h, x)
        return h, h

    return _turned(jax.lax.scan(step, h0, _turned(inputs))[1])


@jax.jit  # type: ignore[untyped-decorator]
def propagate(A: Array, V: Array) -> Array:
    """``y_t = v_t + A_t y_{t-1}``, of A (T, B, U, U), V (B, T, U, k); none before the first."""

    def step(before: Array, now: Any) -> tuple[Array, Array]:
        A, v = now
        y = v + A @ before
        return y, y

    V = _turned(V)
    return _turned(jax.lax.scan(step, jnp.zeros_like(V[0]), (A, V))[1])


@jax.jit  # type: ignore[untyped-decorator]
def propagate_back(A: Array, V: Array) -> Array:
    """``c_t = v_t + A_{t+1}^H c_{t+1}`` with none after the last."""

    def step(after: Array, now: Any) -> tuple[Array, Array]:
        A, v = now
        c = v + after
        A = jnp.conj(A)
        if V.shape[-1] == 1:  # as a product of vectors it does not go along the rows of A
            return jnp.sum(A * c, axis=1)[..., None], c
        return A.mT @ c, c

    V = _turned(V)
    return _turned(jax.lax.scan(step, jnp.zeros_like(V[0]), (A, V), reverse=True)[1])


def _turned(X: Array) -> Array:
    """Samples and steps in the other order."""
    return jnp.swapaxes(X, 0, 1)
