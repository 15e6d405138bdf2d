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

    return _over_time(step, h0, inputs)


@jax.jit  # type: ignore[untyped-decorator]
def propagate(A: Array, V: Array) -> Array:
    """``y_t = v_t + A_t y_{t-1}`` with none before the first: A (B, T, U, U), V (B, T, U, k)."""

    def step(before: Array, now: Any) -> tuple[Array, Array]:
        A, v = now
        y = v + A @ before
        return y, y

    return _over_time(step, jnp.zeros_like(V[:, 0]), (A, V))


@jax.jit  # type: ignore[untyped-decorator]
def propagate_back(A: Array, V: Array) -> Array:
    """``c_t = v_t + A_{t+1}^H c_{t+1}`` with none after the last."""

    def step(after: Array, now: Any) -> tuple[Array, Array]:
        A, v = now
        c = v + after
        return jnp.conj(A).mT @ c, c

    return _over_time(step, jnp.zeros_like(V[:, 0]), (A, V), reverse=True)


def _over_time(step: Any, start: Array, xs: Any, *, reverse: bool = False) -> Array:
    """What a scan along axis 1 gives, with that axis where it was."""
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), xs)
    return jnp.moveaxis(jax.lax.scan(step, start, xs, reverse=reverse)[1], 0, 1)
