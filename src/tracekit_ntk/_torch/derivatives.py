"""Jacobians by PyTorch: of a whole function by its graph, of samples by torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from math import isfinite, prod
from typing import Any

import torch
from array_api_compat import torch as xp
from torch.func import vjp, vmap
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_map

from tracekit._arrays import Array, Product

from .._derivatives import (
    PRODUCTS,
    Linearised,
    PerSample,
    Transforms,
    both_parts,
    checks,
    generic,
    is_complex_linear,
    of_samples,
)
from .passes import (
    Derivative,
    Known,
    Lowest,
    apart,
    coarsest,
    forward,
    is_array,
    is_inexact,
    normal,
    passes,
    usable,
    whole_modules,
)
from .reverse import goes_one_by_one


def on_copies(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The same function of samples, into which it may write."""
    return lambda params, x: f(params, tree_map(lambda t: t.clone() if is_array(t) else t, x))


def leaves(params: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names, checked."""
    named = [(keystr(path), leaf) for path, leaf in tree_flatten_with_path(params)[0]]
    checks.parameters(named, is_array, is_inexact)
    checks.one_field([leaf.is_complex() for _, leaf in named])
    return named


def unflatten(params: Any, values: Any) -> Any:
    """A tree like `params` of other values."""
    return tree_flatten(params)[1].unflatten(list(values))


def detached(leaf: Array) -> Array:
    """A copy of a parameter that no gradient reaches."""
    with torch.inference_mode(False):
        return leaf.detach().clone()


def linearise(f: Callable[[Any], Any], params: Any, known: Known | None = None) -> Linearised:
    """The derivative of f at params: one forward pass, whose graph the pullback keeps."""
    found, J = _linearised(f, params, point(params), known)
    checks.finite(bool(torch.isfinite(J.output.detach()).all()))
    checks.depends(found.depends)
    if found.complex_parameters:
        checks.holomorphic(
            J.output.is_complex()
            and is_complex_linear(J.pullback, J.shape[0], J.dtype, xp, J.device)
        )

    def check() -> None:
        checks.repeatable(found.look(), found.known.allowed)

    return replace(J, check=check)


def independent(f: Callable[[Any, Any], Any], params: Any, x: Any) -> None:
    """Refuse samples that mix in derivatives alone, as behind a gate of zeros."""
    f, x = usable(on_copies(f)), tree_map(normal, x)
    detached = [p.detach() for p in point(params)]
    _, known = _run_once(f, params, detached, x)
    with passes(), quiet():
        _check_gradients(f, params, detached, x, known)


def per_sample(f: Callable[[Any, Any], Any], params: Any, x: Any) -> PerSample:
    """The samples' own derivatives of f at params, after a check that samples do not mix."""
    f, at, x = usable(on_copies(f)), point(params), tree_map(normal, x)
    detached = [p.detach() for p in at]
    y, known = _run_once(f, params, detached, x)

    def one(values: Any, sample: Any) -> Array:
        batch = tree_map(lambda part: part[None], sample)
        return f(unflatten(params, values), batch)[0].reshape(-1)

    def value(sample: Any) -> Array:
        return vjp(lambda *values: one(values, sample), *detached)[0]  # as it will be for products

    def by_loop(sample: Any) -> Array:
        return f(unflatten(params, detached), sample).reshape(-1)

    def deviation(values: Array) -> float:
        return apart(values.detach().reshape(y.shape), y)

    mapped = True
    with passes(), quiet():
        try:
            mapped = deviation(vmap(value)(x)) <= known.allowed
        except Exception:  # it may be vmap alone that cannot do it
            mapped = False
        if not mapped:
            try:
                alone = torch.stack([by_loop(sample) for sample in _each(x)])
                off = deviation(alone)
            except Exception as error:
                raise checks.alone(error) from error
            checks.independent(off, known.allowed)
        _check_gradients(f, params, detached, x, known)
    linearise(lambda values: f(values, _part(x, slice(0, 1))), params)  # its checks
    dtype = common(at, y.dtype)
    quick = of_samples(one, at, dtype, Transforms(vjp, forward, vmap, vmap, xp))
    sure = _one_by_one(f, params, at, known)
    first = _part(x, slice(0, 2))
    differentiated = any(p.requires_grad for p in at)

    def run(product: Callable[..., Array], *blocks: Any) -> Array:
        create = differentiated and torch.is_grad_enabled()
        with passes(), quiet():
            made = product(*tree_map(normal, blocks))
        return made if create else made.detach()

    def is_right(which: str, rows: int) -> bool:
        """Whether all samples at once give what one by one does."""
        n = min(2, len(y))
        V = torch.reshape(generic(n * rows * 2, xp, y.device), (n, rows, 2)).to(dtype)
        there = sure[which](first, V)
        try:
            return apart(run(quick[which], first, V), there.detach()) <= known.allowed
        except Exception:
            return False

    outputs, P = prod(y.shape[1:]), sum(p.numel() for p in at)
    by_reverse = mapped and is_right("pullback", outputs)
    by_forward: list[bool] = []

    def product(which: str, *blocks: Any) -> Array:
        right = by_reverse
        if right and which in ("kernel", "pushforward", "kernel_columns"):  # by forward mode
            if not by_forward:
                by_forward.append(is_right("pushforward", P))
            right = by_forward[0]
        if right:
            try:
                return run(quick[which], *blocks)
            except Exception:  # as above
                pass
        return sure[which](*blocks)

    products = {name: partial(product, name) for name in PRODUCTS}
    return PerSample(
        output=y, parameters=P, dtype=dtype, device=y.device, part=partial(_part, x), **products
    )


def _one_by_one(
    f: Callable[[Any, Any], Any], params: Any, at: list[Array], known: Known
) -> dict[str, Callable[..., Array]]:
    """The products of `PerSample` by name, from one derivative for each sample."""

    def derivatives(samples: Any) -> Iterator[Linearised]:
        for one in _each(samples):
            yield _linearised(lambda values: f(values, one), params, at, known)[1]  # noqa: B023

    def squares(samples: Any, V: Array) -> Array:
        return (pullback(samples, V).abs() ** 2).sum(1)

    def kernel(samples: Any, V: Array) -> Array:
        each = zip(derivatives(samples), V, strict=True)
        return torch.stack([J.pushforward(J.pullback(v)) for J, v in each])

    def pullback(samples: Any, V: Array) -> Array:
        return torch.stack([J.pullback(v) for J, v in zip(derivatives(samples), V, strict=True)])

    def pushforward(samples: Any, X: Array) -> Array:
        each = zip(derivatives(samples), X, strict=True)
        return torch.stack([J.pushforward(part) for J, part in each])

    def contraction(x1: Any, x2: Any, V1: Array, V2: Array) -> Array:
        other = x1 if x2 is None else x2
        g, h = ([J.pullback(V) for J in derivatives(x)] for x, V in ((x1, V1), (other, V2)))
        return torch.einsum("npk,mpl->nkml", torch.stack(g).conj(), torch.stack(h))

    def kernel_columns(x1: Any, x2: Any, V: Array) -> Array:
        W = torch.cat([J.pullback(V) for J in derivatives(x2)], dim=1)
        return torch.stack([J.pushforward(W).unflatten(1, (-1, V.shape[1]))
                            for J in derivatives(x1)])  # fmt: skip

    products = (squares, kernel, pullback, pushforward, contraction, kernel_columns)
    return {p.__name__: p for p in products}


def _linearised(
    f: Callable[[Any], Any], params: Any, at: list[Array], known: Known | None
) -> tuple[Derivative, Linearised]:
    """The derivative of f, and its products with columns."""
    found = Derivative(lambda *values: f(unflatten(params, values)), at, known)
    y = found.output if found.differentiated else found.output.detach()
    dtype = common(at, y.dtype)
    if known is None and goes_one_by_one(found.output):
        found.known.batched = False

    def pushforward(X: Array) -> Array:
        return found.push(X.T).T

    def pullback(U: Array) -> Array:
        return found.pull(U.T.to(y.dtype).contiguous()).T

    products: tuple[Product, Product] = (pushforward, pullback)
    if y.is_complex() and not found.complex_parameters:
        products = both_parts(*products, xp)
    sizes = tuple(p.numel() for p in at)
    return found, Linearised(y, sizes, dtype, y.device, *_cast(products, dtype), known=found.known)


def point(params: Any) -> list[Array]:
    """Copies of the parameters, with the caller's graph if there is one."""
    graph = torch.is_grad_enabled()
    with torch.inference_mode(False):
        return [leaf.clone() if graph and leaf.requires_grad else detached(leaf)
                for _, leaf in leaves(params)]  # fmt: skip


def _part(x: Any, samples: Any) -> Any:
    return tree_map(lambda part: part[samples] if is_array(part) else part, x)


def _each(x: Any) -> Iterator[Any]:
    """Every sample as a batch of its own."""
    N = next(len(part) for part in tree_flatten(x)[0] if is_array(part))
    return (_part(x, slice(n, n + 1)) for n in range(N))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that vmap runs an operation in a loop: slower, but right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def common(arrays: list[Array], dtype: Any) -> Any:
    promoted = reduce(torch.promote_types, [a.dtype for a in arrays], dtype)
    return promoted if promoted.itemsize >= 4 else torch.float32


def _cast(products: tuple[Any, Any], dtype: Any) -> tuple[Any, Any]:
    push, pull = products
    return (lambda X: push(X).to(dtype)), (lambda U: pull(U).to(dtype))


def _run_once(
    f: Callable[[Any, Any], Any], params: Any, detached: list[Array], x: Any
) -> tuple[Array, Known]:
    """What f gives, of as many samples as x, and how precise that is."""
    with passes(), whole_modules(), Lowest() as lowest:
        y = f(unflatten(params, detached), x)
    _check_output(y)
    shapes = [tuple(part.shape) for part in tree_flatten(x)[0] if is_array(part)]
    checks.samples(shapes, tuple(y.shape))
    return y.detach(), Known(max(lowest.eps, coarsest(y, *detached)))


def _check_gradients(
    f: Callable[[Any, Any], Array], params: Any, at: list[Array], x: Any, known: Known
) -> None:
    """Refuse samples that mix in derivatives alone, as behind a gate of zeros.

    Gradients of every other sample's output, beside the others and beside copies of each other.
    """
    N = next(len(part) for part in tree_flatten(x)[0] if is_array(part))
    beside = torch.arange(N)
    beside[: N - 1 : 2] = beside[1::2]

    def gradients(x: Any) -> list[Array]:
        active = [p.clone().requires_grad_() for p in at]
        y = f(unflatten(params, active), x)[1::2]
        v = generic(y.numel(), xp, y.device).reshape(y.shape).to(y.dtype)
        if not y.requires_grad or not y.numel():
            return [torch.zeros_like(p) for p in active]
        found = torch.autograd.grad(y, active, v, allow_unused=True, materialize_grads=True)
        return [g.to_dense() if g.layout != torch.strided else g for g in found]

    here, there = gradients(x), gradients(_part(x, beside))
    largest = [float(g.abs().max()) if g.numel() else 0.0 for g in here]
    noise = 100 * known.eps * max(largest, default=0.0)
    names = [name for name, _ in leaves(params)]
    for name, g, h, most in zip(names, here, there, largest, strict=True):
        checks.finite_gradient(isfinite(most), name)
        off = float((g - h).abs().max()) if g.numel() else 0.0
        if not off <= known.allowed * most + noise:
            raise ValueError(checks.coupled())


def _check_output(y: Any) -> None:
    checks.output(y, is_array, is_inexact)
    checks.finite(bool(torch.isfinite(y.detach()).all()))
