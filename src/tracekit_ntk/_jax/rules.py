"""How JAX operations that are linear in a parameter read it: their factors of the Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tracekit._arrays import Array

from .._factors import Dense, Lookup, Outer, Use
from .reads import Rule
from .views import Axis, Place, View, contiguous, place

Loops = Sequence[int]  # lengths of the scans around an operation, outermost first

for _use, _parts in ((Outer, ("X", "G")), (Lookup, ("ids", "G")), (Dense, ("J",))):
    _fixed = tuple(name for name in _use.__dataclass_fields__ if name not in _parts)
    jax.tree_util.register_dataclass(_use, _parts, _fixed)


def find(eqn: Any, number: int, view: View, shape: Sequence[int], loops: Loops) -> Rule | None:
    """The rule for an equation whose operand `number` shows a parameter of that shape."""
    rule = _RULES.get(eqn.primitive.name)
    return rule(eqn, number, view, shape, loops) if rule else None


def explicit(view: View, shape: Sequence[int], dtype: Any, loops: Loops) -> Rule:
    """The Jacobian by the operand itself, pulled back to the parameter."""
    layers = [depth for depth, _ in view.layers]
    repeated = tuple(1 + k for k in range(len(loops)) if k not in layers)
    axes = [*(axis for _, axis in view.layers), *view.axes]

    def factor(G: Array, _: Array) -> Use:
        G = jnp.sum(G, axis=repeated)
        if contiguous(axes):
            return Dense(G.reshape(len(G), -1).astype(dtype), view.offset)
        back = jax.linear_transpose(view.apply, jax.ShapeDtypeStruct(shape, dtype))
        (J,) = jax.vmap(back)(G)
        return Dense(J.reshape(len(G), -1))

    return Rule(factor)


def _dot(eqn: Any, number: int, view: View, shape: Sequence[int], loops: Loops) -> Rule | None:
    contract, batch = (dims[number] for dims in eqn.params["dimension_numbers"])
    contract_x, batch_x = (dims[1 - number] for dims in eqn.params["dimension_numbers"])
    axes, operand = view.axes, eqn.invars[1 - number].aval
    free = [a for a in range(len(axes)) if a not in (*contract, *batch)]
    free_x = [a for a in range(operand.ndim) if a not in (*contract_x, *batch_x)]
    own = [k for k, a in enumerate(batch) if axes[a].stride]  # else one matrix for the whole batch
    shared = [k for k in range(len(batch)) if k not in own]
    first, last = (free_x, free) if number == 1 else (free, free_x)
    result_first = [len(batch) + k for k in range(len(first))]
    result_last = [len(batch) + len(first) + k for k in range(len(last))]
    s, w = (result_first, result_last) if number == 1 else (result_last, result_first)

    layers, repeated = _split(view, loops)
    where = place(
        view, shape,
        [*_layer_axes(view), *(axes[batch[k]] for k in own)],
        [axes[a] for a in contract], [axes[a] for a in free],
    )  # fmt: skip
    if where is None:
        return None
    k = len(loops)

    def factor(G: Array, X: Array) -> Use:
        X = _pack(X, [
            [*layers, *(k + batch_x[b] for b in own)],
            [*repeated, *(k + batch_x[b] for b in shared), *(k + a for a in free_x)],
            [k + a for a in contract_x],
        ])  # fmt: skip
        G = _pack(G, [
            [0], [*(1 + a for a in layers), *(1 + k + b for b in own)],
            [*(1 + a for a in repeated), *(1 + k + b for b in shared), *(1 + k + a for a in s)],
            [1 + k + a for a in w],
        ])  # fmt: skip
        return _outer(X, G, where)

    return Rule(factor, 1 - number)


def _conv(eqn: Any, number: int, view: View, shape: Sequence[int], loops: Loops) -> Rule | None:
    p = eqn.params
    if number == 0 or p["batch_group_count"] != 1:
        return None
    lhs, rhs, out = p["dimension_numbers"]
    groups, axes = p["feature_group_count"], view.axes
    width = axes[rhs[0]].length // groups
    g, w = Axis(groups, width * axes[rhs[0]].stride), Axis(width, axes[rhs[0]].stride)
    channel, window = [axes[rhs[1]]], [axes[a] for a in rhs[2:]]
    within = bool(window) and window[-1].stride > channel[0].stride  # as in HWIO
    d = [*window, *channel] if within else [*channel, *window]
    where = place(view, shape, [*_layer_axes(view), g], d, [w])
    formed = where is None and not view.layers and contiguous([*d, g, w])
    if where is None and not formed:
        return None
    layers, repeated = _split(view, loops)
    kernel = [axes[a].length for a in rhs[2:]]
    image = [eqn.outvars[0].aval.shape[a] for a in out[2:]]
    k, n = len(loops), len(kernel)

    def patches(x: Array) -> Array:  # to (groups, channels of a group, *kernel, batch, *image)
        x = jnp.transpose(x, lhs)
        interior = [(lo, hi, d - 1) for (lo, hi), d in
                    zip(p["padding"], p["lhs_dilation"], strict=True)]  # fmt: skip
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *interior])
        parts = []
        for at in np.ndindex(*kernel):
            start = [i * d for i, d in zip(at, p["rhs_dilation"], strict=True)]
            stop = [a + (length - 1) * stride + 1 for a, length, stride in
                    zip(start, image, p["window_strides"], strict=True)]  # fmt: skip
            parts.append(lax.slice(
                x, [0, 0, *start], [*x.shape[:2], *stop], [1, 1, *p["window_strides"]]
            ))  # fmt: skip
        stacked = jnp.stack(parts, axis=2)  # (batch, channels, kernel, *image)
        stacked = stacked.reshape(x.shape[0], groups, x.shape[1] // groups, *stacked.shape[2:])
        return jnp.moveaxis(stacked, 0, 3)

    def factor(G: Array, X: Array) -> Use:
        cut = patches
        for _ in loops:
            cut = jax.vmap(cut)
        entries = [k + 2, k + 1] if within else [k + 1, k + 2]
        X = _pack(cut(X), [[*layers, k], [*repeated, *range(k + 3, k + 4 + n)], entries])
        G = jnp.moveaxis(G, [1 + k + a for a in out], range(1 + k, 3 + k + n))  # batch, w, image
        G = G.reshape(*G.shape[: 2 + k], groups, width, *image)
        G = _pack(G, [
            [0], [*(1 + a for a in layers), 2 + k],
            [*(1 + a for a in repeated), 1 + k, *range(4 + k, 4 + k + n)], [3 + k],
        ])  # fmt: skip
        if where is None:  # groups within, as in HWIO: no outer product
            return Dense(jnp.einsum("gsd,cgsw->cdgw", X, G).reshape(len(G), -1), view.offset)
        return _outer(X, G, where)

    return Rule(factor, 0)


def _gather(eqn: Any, number: int, view: View, shape: Sequence[int], loops: Loops) -> Rule | None:
    p, dims = eqn.params, eqn.params["dimension_numbers"]
    table, leading = view.placeholder.shape, len(dims.start_index_map)
    modes = lax.GatherScatterMode
    if (
        number != 0 or view.layers or not contiguous(view.axes) or dims.operand_batching_dims
        or not tuple(range(leading)) == tuple(dims.start_index_map) == dims.collapsed_slice_dims
        or tuple(p["slice_sizes"]) != (1,) * leading + table[leading:]
        or p["mode"] not in (modes.PROMISE_IN_BOUNDS, modes.CLIP, modes.FILL_OR_DROP)
    ):  # fmt: skip
        return None
    result = eqn.outvars[0].aval.ndim
    s = [a for a in range(result) if a not in dims.offset_dims]
    last, k = np.asarray(table[:leading]) - 1, len(loops)

    def factor(G: Array, indices: Array) -> Use:
        ids = jnp.clip(indices, 0, jnp.asarray(last, indices.dtype))
        outside = jnp.any(ids != indices, axis=-1).reshape(-1)
        ids = jnp.ravel_multi_index(list(jnp.moveaxis(ids, -1, 0)), table[:leading], mode="wrap")
        G = _pack(G, [
            [0], [*range(1, 1 + k), *(1 + k + a for a in s)], [1 + k + a for a in dims.offset_dims]
        ])  # fmt: skip
        if p["mode"] == modes.FILL_OR_DROP:
            G = jnp.where(outside[:, None], 0, G)
        return Lookup(ids.reshape(-1), G, int(np.prod(table[:leading])), view.offset)

    return Rule(factor, 1)


def _dynamic_slice(
    eqn: Any, number: int, view: View, shape: Sequence[int], loops: Loops
) -> Rule | None:
    sizes, table = eqn.params["slice_sizes"], view.placeholder.shape
    if number != 0 or view.layers or not contiguous(view.axes) or sizes[1:] != table[1:]:
        return None

    def factor(G: Array, start: Array) -> Use:
        start = jnp.clip(start, 0, table[0] - sizes[0])
        ids = start[..., None] + jnp.arange(sizes[0], dtype=start.dtype)
        G = G.reshape(len(G), ids.size, -1)
        return Lookup(ids.reshape(-1), G, table[0], view.offset)

    return Rule(factor, 1)


_RULES = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
}


def _split(view: View, loops: Loops) -> tuple[list[int], list[int]]:
    """Loops over slices of the parameter, whose steps are groups, and the others: positions."""
    layers = [depth for depth, axis in view.layers if axis.stride]
    return layers, [k for k in range(len(loops)) if k not in layers]


def _layer_axes(view: View) -> list[Axis]:
    return [axis for _, axis in view.layers if axis.stride]


def _pack(A: Array, groups: Sequence[Sequence[int]]) -> Array:
    """Axes reordered, and each group of them made one."""
    shape = [int(np.prod([A.shape[a] for a in group], dtype=int)) for group in groups]
    return jnp.transpose(A, [a for group in groups for a in group]).reshape(shape)


def _outer(X: Array, G: Array, where: Place) -> Use:
    if where.rows is not None:
        inputs, outputs = zip(where.shape, (where.rows, where.columns), strict=True)
        if not where.input_first:
            inputs, outputs = outputs, inputs
        X, G = _spread(X, *inputs), _spread(G, *outputs)
    if where.apart > 1:
        X = jnp.repeat(X, where.apart, axis=0)
        C, g, S, _ = G.shape
        G = jnp.moveaxis(G.reshape(C, g, S, where.apart, -1), 3, 2).reshape(C, len(X), S, -1)
    return Outer(X, G, where.input_first, where.start)


def _spread(A: Array, length: int, at: Any) -> Array:
    """Entries of the last axis put in their places on a longer one."""
    if len(at) == length and (at == np.arange(length)).all():
        return A
    return jnp.zeros((*A.shape[:-1], length), A.dtype).at[..., at].set(A)
