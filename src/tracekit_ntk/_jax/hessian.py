"""Products with a Hessian by JAX: forward over reverse, and what there is where that is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tracekit._arrays import Array, Product, is_traced

from .._derivatives import INEXACT, Quadratic, checks, generic, steps
from .derivatives import detached, device_or_none, leaves, refuse_numpy, tangents, unflatten
from .programs import Traced, equations, is_inexact, keep, precision, reverses, trace, wide


def quadratic(loss: Callable[[Any], Any], params: Any, known: Any = None) -> Quadratic:
    """The value and the Hessian of a loss at params."""
    primals = [detached(leaf) for _, leaf in leaves(params)]
    checks.real_parameters(jnp.iscomplexobj(primals[0]))

    def of_leaves(values: list[Array]) -> Any:
        y = loss(unflatten(params, values))
        array = hasattr(y, "shape") and hasattr(y, "dtype")
        checks.scalar(y, array, array and jnp.iscomplexobj(y))
        return y

    try:
        traced = trace(of_leaves, primals)
    except jax.errors.JAXTypeError as error:  # the Python code of the loss looks at values
        refuse_numpy(error, params)
        y = jnp.asarray(of_leaves(primals))
        checks.output(y, lambda y: isinstance(y, jax.Array), is_inexact)
        product: Product = partial(_mapped, of_leaves, primals)
        numbers = sum(p.size for p in primals)
    else:
        program = keep(traced.key and ("hessian", traced.key), lambda: _Twice(traced))
        numbers = program.numbers
        if known is None:
            checks.flat(program.depends)
            program.look(traced.consts, primals)
        y, product = program.model(traced.consts, primals)
    if not is_traced(y):
        checks.finite_loss(bool(jnp.isfinite(y)))
    sizes, dtype = tuple(p.size for p in primals), wide(y, *primals)

    def cast(X: Array) -> Array:
        return product(X).astype(dtype)

    return Quadratic(y, sizes, dtype, device_or_none(y), cast, 2 * (sum(sizes) + numbers), True)


def second_order(f: Callable[[Any], Any], params: Any) -> Callable[[Array], tuple[Array, Array]]:
    """First and second derivatives of f along directions, by forward mode of forward mode."""
    primals = [detached(leaf) for _, leaf in leaves(params)]
    traced = trace(lambda values: f(unflatten(params, values)), primals)

    def derivatives(consts: Any, primals: Any, X: Array) -> tuple[Array, Array]:
        run = partial(traced, consts)

        def along(ts: list[Array]) -> tuple[Array, Array]:
            def first(values: Any) -> Array:
                made: Array = jax.jvp(run, (values,), (ts,))[1]
                return made

            y, y2 = jax.jvp(first, (primals,), (ts,))
            return jnp.ravel(y), jnp.ravel(y2)

        made: tuple[Array, Array] = jax.vmap(along, out_axes=-1)(tangents(primals, X))
        return made

    key = traced.key and ("second order", traced.key)
    run: Callable[[Array], tuple[Array, Array]] = partial(
        keep(key, lambda: jax.jit(derivatives)), traced.consts, primals
    )
    return run


class _Twice:
    """Scalar functions of one structure, differentiated twice and compiled.

    By the first of these that runs and is right: forward mode of gradients ("forward"), reverse
    mode of gradients ("reversed"), and differences of gradients ("differences").
    """

    def __init__(self, traced: Traced) -> None:
        if not reverses(traced, len(traced.jaxpr.invars)):
            raise NotImplementedError(checks.no_gradient())
        self.numbers = sum(v.aval.size for eqn in equations(traced.jaxpr) for v in eqn.outvars)
        self.depends = self._depends(traced)
        self._own = any(e.primitive.name == "custom_vjp_call" for e in equations(traced.jaxpr))
        self._eps = max(precision(traced.jaxpr), float(jnp.finfo(traced.output.dtype).eps))
        self._value, self._linearised = jax.jit(traced), jax.jit(partial(_linearised, traced))
        ways = {"forward": _mapped, "reversed": _reversed}
        ways |= {f"differences {k}": partial(self._differences, k) for k in range(3)}
        self._ways = {name: jax.jit(partial(_of, traced, way)) for name, way in ways.items()}
        self._failed: Exception | None = None
        self._runs = [name for name in ("forward", "reversed") if self._can(name, traced)]
        self._way = self._runs[0] if self._runs else "differences 0"

    def model(self, consts: Any, primals: list[Array]) -> tuple[Array, Product]:
        """The value, and products of (P, k) with the Hessian."""
        if self._way == "forward":
            y, derivative = self._linearised(consts, primals)
            return y, partial(jax.jit(_push), derivative, primals)
        return self._value(consts, primals), partial(self._ways[self._way], consts, primals)

    def look(self, consts: Any, primals: list[Array]) -> None:
        """Hold second derivatives of rules of the caller's own to differences of gradients."""
        if not self._own and self._runs:
            return
        if any(map(is_traced, jax.tree.leaves((consts, primals)))):
            return
        with jax.core.eval_context():
            t = generic(sum(p.size for p in primals), jnp, None)
            T = jnp.stack([t, t + 1], axis=1).astype(wide(*primals))
            made = {k: np.asarray(way(consts, primals, T), float) for k, way in self._ways.items()
                    if k in self._runs or k.startswith("differences")}  # fmt: skip
            found = [made[f"differences {k}"] for k in range(3)]
            for name in self._runs:
                if min(_apart(d, made[name]) for d in found) <= INEXACT:
                    self._way = name
                    return
            self._way, G = "differences 0", np.asarray(T, float).T @ found[0]
            deviation = max(_apart(found[0], found[1]), _apart(G, G.T))
        checks.differenced(checks.reason_of(self._failed), deviation, INEXACT)

    def _can(self, name: str, traced: Traced) -> bool:
        consts, primals = traced.shapes
        X = jax.ShapeDtypeStruct((sum(p.size for p in primals), 1), wide(*primals))
        try:
            jax.eval_shape(self._ways[name], consts, primals, X)
        except Exception as error:
            self._failed = self._failed or error
            return False
        return True

    def _depends(self, traced: Traced) -> bool:
        read = {id(v) for e in traced.jaxpr.eqns for v in e.invars}
        read |= {id(v) for v in traced.jaxpr.outvars}
        return any(id(v) in read for v in traced.jaxpr.invars)

    def _differences(self, k: int, f: Any, primals: list[Array], X: Array) -> Array:
        """``H X`` by differences of gradients, one column after the other."""
        gradient = jax.grad(f)
        point = _norm(primals)

        def column(ts: list[Array]) -> Array:
            size = _norm(ts)
            unit = jnp.where(size > 0, (1 + point) / jnp.where(size > 0, size, 1), 1.0)
            h = steps(self._eps, 0.0, 1.0)[k] * unit

            def at(sign: float) -> Array:
                moved = [p + (sign * h * t).astype(p.dtype)
                         for p, t in zip(primals, ts, strict=True)]  # fmt: skip
                return _flat(gradient(moved)).astype(wide(*primals))

            return (at(1.0) - at(-1.0)) / (2 * h)

        return jax.lax.map(column, tangents(primals, X)).T


def _linearised(traced: Traced, consts: Any, primals: list[Array]) -> Any:
    """The value, and the derivative of value and gradient: a linear function that programs take."""
    (y, _), derivative = jax.linearize(jax.value_and_grad(partial(traced, consts)), primals)
    return y, derivative


def _push(derivative: Any, primals: list[Array], X: Array) -> Array:
    return jax.vmap(lambda ts: _flat(derivative(ts)[1]), out_axes=1)(tangents(primals, X))


def _of(traced: Traced, way: Any, consts: Any, primals: list[Array], X: Array) -> Array:
    made: Array = way(partial(traced, consts), primals, X)
    return made


def _mapped(f: Any, primals: list[Array], X: Array) -> Array:
    def along(ts: list[Array]) -> Array:
        return _flat(jax.jvp(jax.grad(f), (primals,), (ts,))[1])

    return jax.vmap(along, out_axes=1)(tangents(primals, X))


def _reversed(f: Any, primals: list[Array], X: Array) -> Array:
    back = jax.vjp(jax.grad(f), primals)[1]
    return jax.vmap(lambda ts: _flat(back(ts)[0]), out_axes=1)(tangents(primals, X))


def _flat(parts: list[Array]) -> Array:
    return jnp.concatenate([jnp.ravel(g) for g in parts])


def _norm(parts: list[Array]) -> Array:
    return jnp.sqrt(sum(jnp.sum(p.astype(wide(p)) ** 2) for p in parts))


def _apart(here: Any, there: Any) -> float:
    """How far apart, relative to the length of the second; infinite where one is not finite."""
    size, off = np.linalg.norm(there), np.linalg.norm(here - there)
    if not np.isfinite(off):
        return float("inf")
    return float(off / size if size else off)
