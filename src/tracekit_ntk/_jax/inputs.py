"""Derivatives by the inputs, for all samples at once: forward mode, linearised once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tracekit._arrays import Array, is_traced

from .programs import Traced, equations, keep, precision, trace


def input_derivative(
    v: Callable[[Array], Any], x: Array, *, graph: bool = True
) -> tuple[Array, Callable[[Array], Array]]:
    """The value v(x), and products of rows (k, *x.shape) with the derivative.

    With the transposed one where v has a reverse rule alone (jax.custom_vjp).
    """
    x = jnp.asarray(x)
    try:
        traced = trace(v, x)
    except jax.errors.JAXTypeError:  # the Python code of v looks at values
        y, push = jax.linearize(v, x)
        return y, lambda T: jax.vmap(push)(T.astype(x.dtype))
    program = keep(traced.key and ("inputs", traced.key), lambda: _Program(traced))
    y, derivative = program.run(traced.consts, x)
    return y, partial(program.products, derivative)


class _Program:
    """Functions of one structure, differentiated and compiled, in the mode that there is."""

    def __init__(self, traced: Traced) -> None:
        def along(consts: Any, x: Array) -> Array:
            return jax.jvp(partial(traced, consts), (x,), (x,))[1]

        consts, (x,) = traced.shapes
        jaxpr = jax.make_jaxpr(along)(consts, x).jaxpr
        forward = all(eqn.primitive.name != "custom_lin" for eqn in equations(jaxpr))
        dtype = x.dtype if forward else traced.output.dtype

        def run(consts: Any, x: Array) -> Any:
            return (jax.linearize if forward else jax.vjp)(partial(traced, consts), x)

        def products(derivative: Any, T: Array) -> Array:
            one = derivative if forward else lambda t: derivative(t)[0]
            return jax.vmap(one)(T.astype(dtype))

        self.run, self.products = jax.jit(run), jax.jit(products)


def input_gradient(
    f: Callable[[Array], Array], *, checked: bool = False
) -> Callable[[Array], Array]:
    """The gradient by x of the sum of f(x), whose derivative follows from JAX's rules alone."""
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


def in_turn(product: Callable[[Array], Array], T: Array, size: int) -> Array:
    """Products of rows, `size` of them at a time: one loop in a program that is compiled."""
    k = len(T)
    if k <= size:
        return product(T)
    if not is_traced(jnp.zeros(())):
        return jnp.concatenate([product(T[j : j + size]) for j in range(0, k, size)])
    whole = k - k % size
    made = jax.lax.map(product, T[:whole].reshape(-1, size, *T.shape[1:])).reshape(whole, -1)
    return made if whole == k else jnp.concatenate([made, product(T[whole:])])
