"""Jacobians by JAX: linearised once, transposed for reverse mode, mapped over columns by vmap."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from array_api_compat import device
from jax.tree_util import keystr, tree_flatten, tree_flatten_with_path, tree_map

from . import _checks
from ._products import (
    Linearised,
    PerSample,
    Product,
    Transforms,
    both_parts,
    cut,
    is_complex_linear,
    is_traced,
    of_samples,
)

Array = Any


def leaves(params: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names, checked."""
    named = [(keystr(path), leaf) for path, leaf in tree_flatten_with_path(params)[0]]
    _checks.parameters(named, lambda leaf: hasattr(leaf, "dtype"), _is_inexact)
    _checks.one_field([jnp.iscomplexobj(leaf) for _, leaf in named])
    return named


def unflatten(params: Any, values: Any) -> Any:
    """A tree like `params` of other values."""
    return tree_flatten(params)[1].unflatten(list(values))


def detached(leaf: Any) -> Array:
    """A parameter as an array of JAX; none of them can change."""
    return jnp.asarray(leaf)


def linearise(f: Callable[[Any], Any], params: Any) -> Linearised:
    """The derivative of f at params: one forward pass, whose residuals both products keep."""
    primals = [detached(leaf) for _, leaf in leaves(params)]
    tree = unflatten(params, primals)
    y, push = _linearise(f, tree)
    sizes = [p.size for p in primals]
    dtype = _common(primals, y.dtype)

    def pushforward(X: Array) -> Array:
        return jax.jit(_push)(push, tree, X)

    def pullback(U: Array) -> Array:
        return jax.jit(_pull)(push, tree, y, U)

    products: tuple[Product, Product] = (pushforward, pullback)
    if jnp.iscomplexobj(y) and not jnp.iscomplexobj(primals[0]):
        products = both_parts(*products, jnp)
    elif jnp.iscomplexobj(primals[0]):
        known = not is_traced(y)
        _checks.holomorphic(
            jnp.iscomplexobj(y)
            and (not known or is_complex_linear(pullback, y.size, dtype, jnp, _device(y)))
        )
    return Linearised(y, tuple(sizes), dtype, _device(y), *_cast(products, dtype))


def per_sample(f: Callable[[Any, Any], Any], params: Any, x: Any) -> PerSample:
    """The samples' own derivatives of f at params, after a check that samples do not mix."""
    primals = [detached(leaf) for _, leaf in leaves(params)]
    x = tree_map(jnp.asarray, x)
    given, f = f, jax.jit(f)
    y = f(unflatten(params, primals), x)
    _check_output(y)
    _checks.samples([part.shape for part in jax.tree.leaves(x)], y.shape)

    try:
        alone = jax.vmap(lambda sample: _one(f, params, primals, sample))(x)
    except Exception as error:
        raise _checks.alone(error) from error
    if not is_traced(y):
        deviation = jnp.max(jnp.abs(alone - y.reshape(alone.shape))) / jnp.max(jnp.abs(y)).clip(
            1e-30
        )
        _checks.independent(float(deviation), float(jnp.finfo(y.dtype).eps) ** 0.5)
    first = tree_map(lambda part: part[:1], x)
    check = linearise if jnp.iscomplexobj(primals[0]) else _abstractly
    check(lambda values: f(values, first), params)
    dtype = _common(primals, y.dtype)
    tree = unflatten(params, primals)
    between = (partial(_compiled(given, run), tree) for run in (_contraction, _kernel_columns))
    return PerSample(
        y, sum(p.size for p in primals), dtype, _device(y),
        lambda s: tree_map(lambda part: part[s], x), *_of_samples(f, tree, dtype)[:4], *between,
    )  # fmt: skip


def _one(f: Callable[[Any, Any], Any], params: Any, values: Any, sample: Any) -> Array:
    """The flat output of one sample, by a tree like `params` of these values."""
    batch = tree_map(lambda part: part[None], sample)
    return jnp.ravel(f(unflatten(params, values), batch)[0])


def _of_samples(f: Callable[[Any, Any], Any], params: Any, dtype: Any) -> tuple[Any, ...]:
    by_jax = Transforms(_vjp, jax.jvp, jax.vmap, jax.vmap, jnp)
    return of_samples(partial(_one, f, params), jax.tree.leaves(params), dtype, by_jax)


def _contraction(f: Any, params: Any, x1: Any, x2: Any, V1: Array, V2: Array) -> Array:
    return _of_samples(f, params, V1.dtype)[4](x1, x2, V1, V2)


def _kernel_columns(f: Any, params: Any, x1: Any, x2: Any, V: Array) -> Array:
    return _of_samples(f, params, V.dtype)[5](x1, x2, V)


def _abstractly(f: Callable[[Any], Any], params: Any) -> None:
    """Linearise without compiling or computing anything, for what is checked on the way."""
    jax.eval_shape(lambda values: linearise(f, values).output, params)


def _linearise(f: Callable[[Any], Any], params: Any) -> tuple[Array, Any]:
    """Value and pushforward; compiled, unless the Python code of f looks at values."""
    try:
        y, push = _compiled(f, jax.linearize)(params)
    except jax.errors.JAXTypeError:
        y, push = jax.linearize(f, params)
    _check_output(y)
    linear = jax.make_jaxpr(push)(params).jaxpr
    read = {id(v) for e in linear.eqns for v in e.invars} | {id(v) for v in linear.outvars}
    _checks.depends(any(id(v) in read for v in linear.invars))
    return y, push


def _compiled(f: Callable[..., Any], run: Callable[..., Any]) -> Any:
    """``run(f, ...)``, compiled once for as long as f lives."""
    try:
        known = _COMPILED.setdefault(f, {})
    except TypeError:  # no key: an object that compares by its arrays, such as a module
        return jax.jit(lambda *args: run(lambda *given: f(*given), *args))
    if run not in known:
        alive: Any = weakref.ref(f)
        known[run] = jax.jit(lambda *args: run(alive(), *args))
    return known[run]


_COMPILED: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _push(push: Any, params: Any, X: Array) -> Array:
    primals = jax.tree.leaves(params)
    parts = cut(X.T, [p.size for p in primals], primals, jnp)
    tangents = [t.astype(p.dtype) for t, p in zip(parts, primals, strict=True)]
    return jax.vmap(lambda ts: jnp.ravel(push(unflatten(params, ts))))(tangents).T


def _pull(push: Any, params: Any, y: Array, U: Array) -> Array:
    """``J^H u = conj(J^T conj(u))``, of which real parameters keep the real part."""
    transpose = jax.linear_transpose(push, params)

    def reverse(u: Array) -> Array:
        return jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(transpose(u))])

    V = jnp.reshape(jnp.conj(U.T).astype(y.dtype), (U.shape[1], *y.shape))
    return jnp.conj(jax.vmap(reverse)(V)).T


def _vjp(f: Callable[..., Array], *primals: Array) -> tuple[Array, Callable[[Array], Any]]:
    y, transpose = jax.vjp(f, *primals)
    return y, lambda u: tuple(map(jnp.conj, transpose(jnp.conj(u).astype(y.dtype))))


def _common(arrays: list[Array], dtype: Any) -> Any:
    common = jnp.result_type(dtype, *(a.dtype for a in arrays))
    return common if common.itemsize >= 4 else jnp.dtype(jnp.float32)


def _cast(products: tuple[Any, Any], dtype: Any) -> tuple[Any, Any]:
    push, pull = products
    return (lambda X: push(X).astype(dtype)), (lambda U: pull(U).astype(dtype))


def _check_output(y: Any) -> None:
    _checks.output(y, lambda y: isinstance(y, jax.Array), _is_inexact)
    if not is_traced(y):
        _checks.finite(bool(jnp.all(jnp.isfinite(y))))


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _device(y: Any) -> Any:
    return None if is_traced(y) else device(y)
