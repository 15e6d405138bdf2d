"""Jacobians by JAX: linearised once, transposed for reverse mode, mapped over columns by vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_api_compat import device
from jax.tree_util import keystr, tree_flatten, tree_flatten_with_path, tree_map

from tracekit._arrays import Array, Product, is_traced

from .._derivatives import (
    PRODUCTS,
    Linearised,
    PerSample,
    Transforms,
    both_parts,
    checks,
    cut,
    is_complex_linear,
    of_samples,
)
from .programs import Traced, equations, is_inexact, keep, reverses, trace, wide
from .trials import Trials, Values, one_by_one


def leaves(params: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names, checked; NumPy arrays as arrays of JAX."""
    named = [(keystr(path), leaf) for path, leaf in tree_flatten_with_path(params)[0]]
    known = np.ndarray | np.generic
    named = [(k, jnp.asarray(a) if isinstance(a, known) else a) for k, a in named]
    checks.parameters(named, lambda leaf: hasattr(leaf, "dtype"), is_inexact)
    checks.one_field([jnp.iscomplexobj(leaf) for _, leaf in named])
    return named


def unflatten(params: Any, values: Any) -> Any:
    """A tree like `params` of other values."""
    return tree_flatten(params)[1].unflatten(list(values))


def detached(leaf: Any) -> Array:
    """A parameter as an array of JAX; none of them can change."""
    return jnp.asarray(leaf)


def inputs(x: Any) -> Any:
    """Samples as arrays of JAX."""
    if isinstance(x, Iterator):
        raise checks.no_arrays(x)
    try:
        return tree_map(jnp.asarray, x)
    except (TypeError, ValueError) as error:
        raise checks.no_arrays(x) from error


def linearise(f: Callable[[Any], Any], params: Any) -> Linearised:
    """The derivative of f at params: one forward pass, whose residuals both products keep.

    Where f has a reverse rule alone (jax.custom_vjp), products ``J v`` transpose the pullback.
    """
    primals = [detached(leaf) for _, leaf in leaves(params)]
    program: _Linearisation | None = None

    def of_leaves(values: list[Array]) -> Any:
        return f(unflatten(params, values))

    try:
        traced = trace(of_leaves, primals)
    except jax.errors.JAXTypeError as error:  # the Python code of f looks at values
        refuse_numpy(error, params)
        y, derivative = jax.linearize(of_leaves, primals)
        _check_output(y)
    else:
        program = keep(traced.key and ("linearise", traced.key), lambda: _Linearisation(traced))
        y, derivative = program.run(traced.consts, primals)
        _check_output(y)
        checks.depends(program.depends)
    forward = program is None or program.forward
    push, pull = (_push, _pull) if forward else (_push_by_transpose, _pull_by_rule)
    dtype = wide(y, *primals)

    def pushforward(X: Array) -> Array:
        try:
            return jax.jit(push)(derivative, primals, y, X)
        except Exception as error:
            if forward:
                raise
            raise NotImplementedError(checks.no_forward_mode(error)) from error

    def pullback(U: Array) -> Array:
        if program is not None and not program.reverse:
            raise NotImplementedError(checks.no_reverse_mode())
        return jax.jit(pull)(derivative, primals, y, U)

    products: tuple[Product, Product] = (pushforward, pullback)
    if jnp.iscomplexobj(y) and not jnp.iscomplexobj(primals[0]):
        products = both_parts(*products, jnp)
    elif jnp.iscomplexobj(primals[0]):
        checks.holomorphic(jnp.iscomplexobj(y) and (
            program.holomorphic(traced, primals) if program is not None
            else is_complex_linear(pullback, y.size, dtype, jnp, device_or_none(y))
        ))  # fmt: skip
    sizes = tuple(p.size for p in primals)
    return Linearised(y, sizes, dtype, device_or_none(y), *_cast(products, dtype))


class _Linearisation:
    """Functions of one structure, differentiated and compiled.

    `run` gives the output and a linear function that programs can hand on: the pushforward, or
    without `forward` mode the pullback. `reverse` tells whether there is a pullback, `depends`
    whether parameters matter to the output.
    """

    def __init__(self, traced: Traced) -> None:
        self.forward, self.trials = True, Trials(traced, one_by_one(traced), whole=True)
        self.first, self.reverse = True, reverses(traced, len(traced.jaxpr.invars))
        try:
            self.depends = self._moves(traced)
        except TypeError as error:
            self.forward = False
            try:
                self.depends = self._moves(traced)
            except Exception:
                raise error from None
        self.run = jax.jit(partial(self._run, traced))

    def holomorphic(self, traced: Traced, primals: list[Array]) -> bool:
        """Whether the derivative is complex-linear, at these values and at drawn ones."""
        own = Values(primals, traced.consts, traced.consts, [])
        holds = self.trials.holomorphic(own, first=self.first)
        self.first = self.first and not holds
        return holds

    def _run(self, traced: Traced, consts: Any, primals: Any) -> Any:
        differentiate = jax.linearize if self.forward else jax.vjp
        return differentiate(partial(traced, consts), primals)

    def _moves(self, traced: Traced) -> bool:
        def moved(consts: Any, primals: Any, by: Any) -> Any:
            return self._run(traced, consts, primals)[1](by)

        consts, primals = traced.shapes
        return _reads(moved, consts, primals, primals if self.forward else traced.output)


def traced_batch(f: Callable[[Any, Any], Any], params: Any, x: Any) -> tuple[Traced, Traced]:
    """What f is now of flat parameters and flat inputs: for a batch, and for a sample."""
    leaves, tree = tree_flatten(params)
    parts, form = tree_flatten(x)

    def batch(leaves: list[Array], parts: list[Array]) -> Any:
        return f(tree.unflatten(leaves), form.unflatten(parts))

    def one(leaves: list[Array], parts: list[Array]) -> Any:
        return batch(leaves, [part[None] for part in parts])[0]

    whole = traced_whole(f, params, x)
    checks.samples([part.shape for part in parts], whole.output.shape)
    sample = [jax.ShapeDtypeStruct(part.shape[1:], part.dtype) for part in parts]
    try:
        return whole, trace(one, leaves, sample)
    except Exception as error:
        raise checks.alone(error) from error


def traced_whole(f: Callable[[Any, Any], Any], params: Any, x: Any) -> Traced:
    """What f is now of flat parameters and flat inputs."""
    leaves, tree = tree_flatten(params)
    parts, form = tree_flatten(x)
    try:
        return trace(
            lambda leaves, parts: f(tree.unflatten(leaves), form.unflatten(parts)), leaves, parts
        )
    except jax.errors.JAXTypeError as error:
        refuse_numpy(error, params)
        raise


def on_copies(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The function itself: arrays of JAX are never written into."""
    return f


def independent(f: Callable[[Any, Any], Any], params: Any, x: Any) -> None:
    """Nothing: a capture finds samples that mix behind closed gates."""


def per_sample(f: Callable[[Any, Any], Any], params: Any, x: Any) -> PerSample:
    """The samples' own derivatives of f at params, after a check that samples do not mix."""
    named = leaves(params)
    primals = [detached(leaf) for _, leaf in named]
    batch, one = traced_batch(f, unflatten(params, primals), x := inputs(x))
    x = jax.tree.leaves(x)
    key = batch.key and one.key and ("samples", batch.key, one.key)
    program = keep(key, lambda: _Samples(batch, one, primals))
    y = program.outputs(batch.consts, primals, x)
    _check_output(y)
    program.check(Values(primals, batch.consts, one.consts, x), [name for name, _ in named])
    checks.depends(program.depends)
    bound = {name: partial(p, one.consts, primals) for name, p in program.products.items()}
    return PerSample(
        output=y, parameters=sum(p.size for p in primals), dtype=program.dtype,
        device=device_or_none(y), part=lambda s: [part[s] for part in x], **bound,
    )  # fmt: skip


class _Samples:
    """Functions of one structure, and the products with the Jacobians of their samples."""

    def __init__(self, batch: Traced, one: Traced, primals: list[Array]) -> None:
        self.dtype = wide(one.output, *primals)
        self.outputs = jax.jit(batch)
        if not reverses(one, len(primals)):
            raise NotImplementedError(checks.no_reverse_mode())
        self.trials = Trials(batch, one_by_one(one))
        self.first, self.cplx = True, jnp.iscomplexobj(primals[0])
        self.products = {k: jax.jit(partial(self._product, one, k)) for k in PRODUCTS}

        def moved(consts: Any, args: Any, u: Any) -> Any:
            given, x = args[: len(primals)], args[len(primals) :]
            return jax.vjp(lambda given: one(consts, given, x), given)[1](u)

        self.depends = _reads(moved, *one.shapes, one.output)

    def check(self, own: Values, names: list[str]) -> None:
        """Refuse functions that mix samples, or are not holomorphic in complex parameters."""
        if self.trials.disagreeing(own, names, first=self.first):
            raise ValueError(checks.MIXED_GRADIENTS)
        if self.cplx:
            cplx = jnp.issubdtype(self.trials.output.dtype, jnp.complexfloating)
            checks.holomorphic(cplx and self.trials.holomorphic(own, first=self.first))
        self.first = False

    def _product(self, one: Traced, k: str, consts: Any, primals: Any, *args: Any) -> Array:
        by_jax = Transforms(_vjp, _jvp, jax.vmap, jax.vmap, jnp)

        def flat(leaves: Any, sample: Any) -> Array:
            return jnp.ravel(one(consts, list(leaves), sample))

        return of_samples(flat, primals, self.dtype, by_jax)[k](*args)


def _reads(f: Callable[..., Any], consts: Any, args: Any, last: Any) -> bool:
    """Whether anything is computed of the last argument; refuses what can but be transposed."""
    jaxpr = jax.make_jaxpr(f)(consts, args, last).jaxpr
    if any(eqn.primitive.name == "custom_lin" for eqn in equations(jaxpr)):
        raise TypeError("a custom_vjp function has no forward mode")
    read = {id(v) for e in jaxpr.eqns for v in e.invars} | {id(v) for v in jaxpr.outvars}
    return any(id(v) in read for v in jaxpr.invars[-len(jax.tree.leaves(last)) :])


def _push(push: Any, primals: list[Array], _: Array, X: Array) -> Array:
    return jax.vmap(lambda ts: jnp.ravel(push(ts)))(tangents(primals, X)).T


def _pull(push: Any, primals: list[Array], y: Array, U: Array) -> Array:
    """``J^H u = conj(J^T conj(u))``, of which real parameters keep the real part."""
    transpose = jax.linear_transpose(push, primals)
    return _pull_by_rule(transpose, primals, y, U)


def _push_by_transpose(back: Any, primals: list[Array], y: Array, X: Array) -> Array:
    """``J v`` as the transpose of ``u -> J^T u``."""
    push = jax.linear_transpose(back, y)
    return jax.vmap(lambda ts: jnp.ravel(push((ts,))[0]))(tangents(primals, X)).T


def _pull_by_rule(back: Any, _: list[Array], y: Array, U: Array) -> Array:
    def reverse(u: Array) -> Array:
        return jnp.concatenate([jnp.ravel(g) for g in back(u)[0]])

    V = jnp.reshape(jnp.conj(U.T).astype(y.dtype), (U.shape[1], *y.shape))
    return jnp.conj(jax.vmap(reverse)(V)).T


def tangents(primals: list[Array], X: Array) -> list[Array]:
    parts = cut(X.T, [p.size for p in primals], primals, jnp)
    return [t.astype(p.dtype) for t, p in zip(parts, primals, strict=True)]


def _vjp(f: Callable[..., Array], *primals: Array) -> tuple[Array, Callable[[Array], Any]]:
    y, transpose = jax.vjp(f, *primals)
    return y, lambda u: tuple(map(jnp.conj, transpose(jnp.conj(u).astype(y.dtype))))


def _jvp(f: Callable[..., Array], primals: Any, tangents: Any) -> tuple[Array, Array]:
    """As jax.jvp; where there is a reverse rule alone, by the transpose of the pullback."""
    try:
        return jax.jvp(f, primals, tangents)  # type: ignore[no-any-return]
    except TypeError:
        y, back = jax.vjp(f, *primals)
    try:
        return y, jax.linear_transpose(back, y)(tangents)[0]
    except Exception as error:
        raise NotImplementedError(checks.no_forward_mode(error)) from error


def refuse_numpy(error: Exception, params: Any) -> None:
    """Refuse functions of NumPy arrays that are no functions of JAX."""
    mine = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    if isinstance(error, jax.errors.TracerArrayConversionError) and not mine:
        raise TypeError(checks.no_library(params)) from error


def _cast(products: tuple[Any, Any], dtype: Any) -> tuple[Any, Any]:
    push, pull = products
    return (lambda X: push(X).astype(dtype)), (lambda U: pull(U).astype(dtype))


def _check_output(y: Any) -> None:
    checks.output(y, lambda y: isinstance(y, jax.Array), is_inexact)
    if not is_traced(y):
        checks.finite(bool(jnp.all(jnp.isfinite(y))))


def device_or_none(y: Any) -> Any:
    return None if is_traced(y) else device(y)
