"""Derivatives by the inputs, for all samples at once: forward mode, linearised once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tracekit._arrays import Array, is_traced

from .programs import precision


def input_derivative(
    v: Callable[[Array], Any], x: Array, *, graph: bool = True
) -> tuple[Array, Callable[[Array], Array]]:
    """The value v(x), and products of rows (k, *x.shape) with the derivative.

    With the transposed one where v has a reverse rule alone (jax.custom_vjp).
    """
    x = jnp.asarray(x)
    try:
        y, push = jax.linearize(v, x)
        return y, lambda T: jax.vmap(push)(T.astype(x.dtype))
    except TypeError:
        y, back = jax.vjp(v, x)
    return y, lambda T: jax.vmap(lambda t: back(t)[0])(T.astype(y.dtype))


def input_gradient(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The gradient by x of the sum of f(x)."""
    return jax.grad(lambda x: jnp.sum(f(x)))  # type: ignore[no-any-return]


def least_precision(v: Callable[[Array], Any], x: Array) -> float:
    """The rounding unit of the least precise numbers that v(x) meets on the way."""
    return precision(jax.make_jaxpr(v)(x).jaxpr)


def add_up(term: Callable[[Any], Array], count: int) -> Array:
    """The sum of ``term(0)``, ``term(1)``, ...: one loop in a program that is compiled."""
    if count == 1 or not is_traced(jnp.zeros(())):
        return sum(map(term, range(1, count)), term(0))
    like = jax.eval_shape(term, 0)
    start = jnp.zeros(like.shape, like.dtype)
    step = lambda total, number: (total + term(number), None)  # noqa: E731
    return jax.lax.scan(step, start, jnp.arange(count))[0]
