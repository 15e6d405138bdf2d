"""Jacobians by PyTorch: reverse mode by autograd, all else by torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from array_api_compat import torch as xp
from torch.func import functional_call, jvp, vjp, vmap
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_map

from . import _checks
from ._products import (
    Linearised,
    PerSample,
    Product,
    Transforms,
    both_parts,
    cut,
    is_complex_linear,
    of_samples,
)

Array = Any


def functional(module: torch.nn.Module) -> tuple[Callable[..., Any], dict[str, Array]]:
    """Split a module in a function of parameters and the parameters."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"functional got a {type(module).__name__}; pass a torch.nn.Module, or write f(params, "
            "x) yourself"
        )
    state = {name: p.detach().clone() for name, p in module.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in module.named_buffers()}

    def f(params: dict[str, Array], *inputs: Any, **options: Any) -> Any:
        for name in params:
            if name not in state:
                raise KeyError(f"the module has no parameter {name!r}; it has {', '.join(state)}")
        fresh = {name: b.clone() for name, b in buffers.items()}  # training mode writes into them
        return functional_call(module, {**state, **fresh, **params}, inputs, options)

    return f, dict(state)


def leaves(params: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names, checked."""
    named = [(keystr(path), leaf) for path, leaf in tree_flatten_with_path(params)[0]]
    _checks.parameters(named, _is_array, _is_inexact)
    _checks.one_field([leaf.is_complex() for _, leaf in named])
    return named


def unflatten(params: Any, values: Any) -> Any:
    """A tree like `params` of other values."""
    return tree_flatten(params)[1].unflatten(list(values))


def detached(leaf: Array) -> Array:
    """A copy of a parameter that no gradient reaches."""
    return leaf.detach().clone()


def linearise(f: Callable[[Any], Any], params: Any) -> Linearised:
    """The derivative of f at params: one forward pass, whose graph the pullback keeps."""
    primals = [detached(leaf) for _, leaf in leaves(params)]
    active = [p.clone().requires_grad_() for p in primals]
    with torch.enable_grad():
        y = f(unflatten(params, active))
    _check_output(y)
    flat, sizes = y.reshape(-1), [p.numel() for p in primals]
    reads = _reads(flat, active)
    _checks.depends(reads)
    dtype = _common(primals, y.dtype)

    def pullback(U: Array) -> Array:
        if not reads:
            return U.new_zeros((sum(sizes), U.shape[1]), dtype=primals[0].dtype)
        grads = _batched_grad(flat, active, U.T.to(y.dtype).contiguous())
        return torch.cat([g.flatten(1) for g in grads], dim=1).T

    def along(*tangents: Array) -> Array:
        def values(*ps: Array) -> Array:
            return f(unflatten(params, ps)).reshape(-1)

        return jvp(values, tuple(primals), tangents)[1]

    def pushforward(X: Array) -> Array:
        parts = cut(X.T, sizes, primals, xp)
        with _forward_mode():
            return vmap(along)(*(t.to(p.dtype) for t, p in zip(parts, primals, strict=True))).T

    products: tuple[Product, Product] = (pushforward, pullback)
    if y.is_complex() and not primals[0].is_complex():
        products = both_parts(*products, xp)
    elif primals[0].is_complex():
        _checks.holomorphic(
            y.is_complex() and is_complex_linear(pullback, flat.numel(), dtype, xp, y.device)
        )
    return Linearised(y.detach(), tuple(sizes), dtype, y.device, *_cast(products, dtype))


def per_sample(f: Callable[[Any, Any], Any], params: Any, x: Any) -> PerSample:
    """The samples' own derivatives of f at params, after a check that samples do not mix."""
    primals = [detached(leaf) for _, leaf in leaves(params)]
    inputs = tree_flatten(x)[0]
    with torch.no_grad():
        y = f(unflatten(params, primals), x)
    _check_output(y)
    _checks.samples([tuple(getattr(part, "shape", ())) for part in inputs], tuple(y.shape))

    def one(values: Any, sample: Any) -> Array:
        batch = tree_map(lambda part: part[None], sample)
        return f(unflatten(params, values), batch)[0].reshape(-1)

    def value(sample: Any) -> Array:
        return vjp(lambda *values: one(values, sample), *primals)[0]  # as it will be for products

    over: Any = vmap
    try:
        with _quiet():
            alone = vmap(value)(x)
    except Exception:
        over = _looped  # it may be vmap alone that cannot do it
        try:
            alone = _looped(value)(x)
        except Exception as error:
            raise _checks.alone(error) from error
    deviation = (alone - y.reshape(alone.shape)).abs().max() / y.abs().max().clip(1e-30)
    _checks.independent(float(deviation), torch.finfo(y.dtype).eps ** 0.5)

    def quietly(product: Callable[..., Array]) -> Callable[..., Array]:
        def run(*blocks: Any) -> Array:
            with _quiet(), _forward_mode():
                return product(*blocks)

        return run

    linearise(lambda values: f(values, tree_map(lambda part: part[:1], x)), params)  # its checks
    dtype = _common(primals, y.dtype)
    products = of_samples(one, primals, dtype, Transforms(vjp, jvp, vmap, over, xp))
    return PerSample(
        y, sum(p.numel() for p in primals), dtype, y.device,
        lambda s: tree_map(lambda part: part[s], x), *map(quietly, products),
    )  # fmt: skip


def _looped(product: Callable[..., Any]) -> Callable[..., Any]:
    """What vmap does, for operations that it has no rule for, such as fused recurrent cells."""

    def run(*trees: Any) -> Any:
        n = len(tree_flatten(trees)[0][0])
        each = [tree_map(lambda part: part[i], trees) for i in range(n)]  # noqa: B023
        return tree_map(lambda *made: torch.stack(made), *(product(*parts) for parts in each))

    return run


@contextmanager
def _forward_mode() -> Iterator[None]:
    """With our own error where an operation has no forward mode."""
    try:
        yield
    except NotImplementedError as error:
        raise NotImplementedError(_checks.no_forward_mode(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that vmap runs an operation in a loop: slower, but right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def _reads(y: Array, leaves: list[Array]) -> bool:
    """Whether the graph of y ends at one of these leaves."""
    wanted, seen = {id(leaf) for leaf in leaves}, set()
    nodes = [torch.autograd.graph.get_gradient_edge(y).node] if y.requires_grad else []
    while nodes:
        node = nodes.pop()
        if id(getattr(node, "variable", None)) in wanted:
            return True
        seen.add(node)
        nodes += [n for n, _ in node.next_functions if n is not None and n not in seen]
    return False


def _batched_grad(y: Array, inputs: list[Array], V: Array) -> list[Array]:
    """Gradients of y by each row of V, in one reverse pass where all its operations allow it."""

    def grad(v: Array, batched: bool) -> Any:
        return torch.autograd.grad(
            y, inputs, v, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    try:
        grads = grad(V, True)
    except RuntimeError:  # an operation without a batching rule; or one that fails, here too
        each = zip(*(grad(v, False) for v in V), strict=True)
        grads = [None if parts[0] is None else torch.stack(parts) for parts in each]
    return [
        V.new_zeros((len(V), *x.shape), dtype=x.dtype) if g is None else g
        for g, x in zip(grads, inputs, strict=True)
    ]


def _common(arrays: list[Array], dtype: Any) -> Any:
    common = reduce(torch.promote_types, [a.dtype for a in arrays], dtype)
    return common if common.itemsize >= 4 else torch.float32


def _cast(products: tuple[Any, Any], dtype: Any) -> tuple[Any, Any]:
    push, pull = products
    return (lambda X: push(X).to(dtype)), (lambda U: pull(U).to(dtype))


def _check_output(y: Any) -> None:
    _checks.output(y, _is_array, _is_inexact)
    _checks.finite(bool(torch.isfinite(y.detach()).all()))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _is_inexact(leaf: Array) -> bool:
    return bool(leaf.is_floating_point() or leaf.is_complex())
