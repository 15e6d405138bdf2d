"""How PyTorch operations read a parameter: what they multiply it by, and how its entries lie.

A rule takes a call and the parameter that was found in it, and gives a `Read`, or None where the
call is none of its cases: the parameter is then differentiated on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from tracekit._arrays import Array

from .._factors import Outer, Use
from .reads import (
    Call,
    Read,
    Rule,
    TrackedView,
    contraction,
    direct,
    layout,
    lookup,
    real_parts,
    scattered,
)

# --- products -----------------------------------------------------------------------------------


def linear(call: Call, seen: TrackedView) -> Read | None:
    """``x @ W.T + b``."""
    got = call.bind("input weight bias")
    if got.get("bias") is seen.tensor:
        return direct("linear", call.out, seen, 1)
    if got["weight"] is not seen.tensor or seen.storage_view.ndim != 2:
        return None
    rest = "abcdefghijkl"[: got["input"].ndim - 1]
    return contraction("linear", f"{rest}y,zy->{rest}z", got["input"], seen, call.out)


def matmul(call: Call, seen: TrackedView) -> Read | None:
    """``x @ W`` or ``W @ x``, of vectors, matrices or batches of them."""
    first, second = list(call.bind("input other").values())[:2]
    x, left = (second, True) if first is seen.tensor else (first, False)
    theirs, ours, y = _matmul_letters(first.ndim, second.ndim, left)
    lone = "".join(
        c for c, n in zip(ours, seen.storage_view.shape, strict=True) if n == 1 and c < "x"
    )
    if len(theirs) > 2:
        sizes = dict(zip(y, call.out.shape, strict=True))
        x = x.expand([sizes.get(c, n) for c, n in zip(theirs, x.shape, strict=True)])
    return contraction("matmul", f"{theirs},{ours}->{y}", x, seen, call.out, drop=lone)


def addmm(call: Call, seen: TrackedView) -> Read | None:
    """``beta * b + alpha * x @ W``."""
    got = call.bind("input mat1 mat2")
    alpha, beta = got.get("alpha", 1), got.get("beta", 1)
    if got["input"] is seen.tensor:
        return direct("add", call.out, seen, beta)
    if got["mat2"] is seen.tensor:
        return contraction("addmm", "ay,yz->az", got["mat1"], seen, call.out, factor=alpha)
    return contraction("addmm", "yz,ay->az", got["mat2"], seen, call.out, factor=alpha)


def einsum(call: Call, seen: TrackedView) -> Read | None:
    """``einsum(equation, x, W)`` of two operands."""
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    equation = equation.replace(" ", "")
    left, _, out = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation:
        every = left.replace(",", "").replace(".", "")
        out = "".join(sorted(c for c in set(every) if every.count(c) == 1))
        out = ("..." if "..." in left else "") + out
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    most = max(x.ndim - len(t.replace("...", "")) for x, t in zip(operands, terms, strict=True))
    for i, (x, t) in enumerate(zip(operands, terms, strict=True)):
        here = x.ndim - len(t.replace("...", ""))
        terms[i] = t.replace("...", "".join(spare[most - here : most]))
    out = out.replace("...", "".join(spare[:most]))
    mine = 0 if operands[0] is seen.tensor else 1
    x = operands[1 - mine]
    return contraction("einsum", f"{terms[1 - mine]},{terms[mine]}->{out}", x, seen, call.out)


def convolution(dims: int, op: str) -> Rule:
    """A convolution over `dims` axes, as a product with patches."""

    def rule(call: Call, seen: TrackedView) -> Read | None:
        got = call.bind("input weight bias stride padding dilation groups")
        x, out, groups = got["input"], call.out, got.get("groups", 1)
        if x.ndim != dims + 2 or x is seen.tensor:
            return None
        perm = (0, *range(2, dims + 2), 1)

        def arrange(G: Array) -> Array:
            return G.permute(0, *(i + 1 for i in perm))

        if got.get("bias") is seen.tensor:
            return direct(op, out, seen, 1, (1,))
        if got["weight"] is not seen.tensor:
            return None
        weight = seen.storage_view
        where = layout(seen, [], list(range(1, dims + 2)), [0])
        kernel = tuple(weight.shape[2:])
        step, hole = _each(got.get("stride", 1), dims), _each(got.get("dilation", 1), dims)
        pad = _padding(got.get("padding", 0), kernel, hole, dims)

        def patches() -> Array:
            return _patches(x * seen.scale, kernel, step, hole, pad, groups)

        def use(X: Array, G: Array) -> Use:
            X, G = real_parts(X, G, seen)
            N, M, S = G.shape[:3]
            G = G.reshape(N, M, S, groups, -1).transpose(2, 3)
            made = Outer(X.transpose(1, 2), G, False)
            return made if where == (0, False) else scattered(made.dense(), weight, seen.size)

        # a group's part of the weight is a block of its own: (g, w, d) is (out channels, d)
        if where is not None and where[0] != 0:
            return None
        return Read(seen, op, out, dims + 1, arrange, patches, use, (x,))

    return rule


def transposed_convolution(dims: int, op: str) -> Rule:
    """A transposed convolution over `dims` axes: each input entry times a patch of the output."""

    def rule(call: Call, seen: TrackedView) -> Read | None:
        got = call.bind("input weight bias stride padding output_padding groups dilation")
        x, out, groups = got["input"], call.out, got.get("groups", 1)
        if x.ndim != dims + 2 or x is seen.tensor:
            return None
        if got.get("bias") is seen.tensor:
            return direct(op, out, seen, 1, (1,))
        weight, kernel = seen.storage_view, tuple(seen.storage_view.shape[2:])
        step, hole, low, more = (
            _each(got.get(name, default), dims) for name, default in
            (("stride", 1), ("dilation", 1), ("padding", 0), ("output_padding", 0))
        )  # fmt: skip
        pad = [(p, p - extra) for p, extra in zip(low, more, strict=True)]

        def patches(G: Array) -> Array:  # the cotangent is unfolded, as the input elsewhere
            rows = _patches(G.flatten(0, 1), kernel, step, hole, pad, groups)
            return rows.unflatten(0, G.shape[:2])

        def entries() -> Array:
            X = (x * seen.scale).permute(0, *range(2, dims + 2), 1)
            return X.unflatten(-1, (groups, -1))

        def use(X: Array, G: Array) -> Use:
            X, G = real_parts(X, G, seen)
            made = Outer(X.transpose(1, 2), G.transpose(2, 3), True)
            if weight.is_contiguous():  # (g, d, w): inputs, then outputs and kernel
                return Outer(made.X, made.G, True, int(weight.storage_offset()))
            return scattered(made.dense(), weight, seen.size)

        return Read(seen, op, out, dims + 1, patches, entries, use, (x,))

    return rule


def embedding(call: Call, seen: TrackedView) -> Read | None:
    """``W[ids]``; the row of `padding_idx` has no derivative."""
    got = call.bind("input weight padding_idx max_norm norm_type scale_grad_by_freq")
    if got["weight"] is not seen.tensor or got.get("max_norm") or got.get("scale_grad_by_freq"):
        return None
    padding, rows = got.get("padding_idx"), seen.storage_view.shape[0]
    return lookup(
        "embedding", call, seen, got["input"], None if padding is None else padding % rows
    )


def getitem(call: Call, seen: TrackedView) -> Read | None:
    """``W[ids]`` by an array of integers."""
    table, index = call.args[:2]
    index = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if table is not seen.tensor or not isinstance(index, torch.Tensor):
        return None
    if index.dtype in (torch.bool, torch.uint8) or seen.storage_view.ndim != 2:
        return None
    return lookup("lookup", call, seen, index % seen.storage_view.shape[0], None)


def index_select(call: Call, seen: TrackedView) -> Read | None:
    """Rows of a table by number."""
    got = call.bind("input dim index")
    if got["dim"] != 0 or seen.storage_view.ndim != 2 or got["input"] is not seen.tensor:
        return None
    return lookup("lookup", call, seen, got["index"], None)


# --- sums and scales ----------------------------------------------------------------------------


def added(call: Call, seen: TrackedView) -> Read | None:
    """A bias: ``x + b`` or ``b + x``."""
    return direct("add", call.out, seen, call.kwargs.get("alpha", 1) if _second(call, seen) else 1)


def subtracted(call: Call, seen: TrackedView) -> Read | None:
    """``x - b`` or ``b - x``."""
    return direct("sub", call.out, seen, -call.kwargs.get("alpha", 1) if _second(call, seen) else 1)


def multiplied(call: Call, seen: TrackedView) -> Read | None:
    """A scale: ``W * x``."""
    x = next((a for a in call.args if a is not seen.tensor), None)
    return direct("mul", call.out, seen, x) if isinstance(x, torch.Tensor) else None


def divided(call: Call, seen: TrackedView) -> Read | None:
    """``W / x``, or ``x / W``."""
    first, second = call.args[:2]
    if first is seen.tensor:
        return direct("div", call.out, seen, 1 / second)
    return direct("div", call.out, seen, -call.out / seen.tensor)


def concatenated(call: Call, seen: TrackedView) -> Read | None:
    """One of the parts that `cat` puts together."""
    got = call.bind("tensors dim")
    parts, dim = list(got["tensors"]), got.get("dim", 0) % call.out.ndim
    at = next(i for i, part in enumerate(parts) if part is seen.tensor)
    low, size = sum(p.shape[dim] for p in parts[:at]), parts[at].shape[dim]
    return direct("cat", call.out, seen, 1, cut=(dim, low, size))


def layer_norm(call: Call, seen: TrackedView) -> Read | None:
    """Scale and shift of a LayerNorm."""
    got = call.bind("input normalized_shape weight bias eps")
    x, shape, eps = got["input"], tuple(got["normalized_shape"]), got.get("eps", 1e-5)
    tail = tuple(range(x.ndim - len(shape), x.ndim))
    return _affine("layer_norm", call, got, seen, tail, lambda: F.layer_norm(x, shape, eps=eps))


def rms_norm(call: Call, seen: TrackedView) -> Read | None:
    """Scale of an RMSNorm."""
    got = call.bind("input normalized_shape weight eps")
    x, shape, eps = got["input"], tuple(got["normalized_shape"]), got.get("eps")
    tail = tuple(range(x.ndim - len(shape), x.ndim))
    return _affine("rms_norm", call, got, seen, tail, lambda: F.rms_norm(x, shape, eps=eps))


def group_norm(call: Call, seen: TrackedView) -> Read | None:
    """Scale and shift of a GroupNorm."""
    got = call.bind("input num_groups weight bias eps")
    x, groups, eps = got["input"], got["num_groups"], got.get("eps", 1e-5)
    return _affine("group_norm", call, got, seen, (1,), lambda: F.group_norm(x, groups, eps=eps))


def batch_norm(call: Call, seen: TrackedView) -> Read | None:
    """Scale and shift of a BatchNorm."""
    got = call.bind("input running_mean running_var weight bias training momentum eps")
    x, eps, training = got["input"], got.get("eps", 1e-5), got.get("training", False)
    mean, var = (None if training else got[name] for name in ("running_mean", "running_var"))

    def normalised() -> Array:
        return F.batch_norm(x, mean, var, training=training, eps=eps)

    return _affine("batch_norm", call, got, seen, (1,), normalised)


def _affine(op: str, call: Call, got: dict[str, Any], seen: TrackedView, tail: Sequence[int],
            normalised: Callable[[], Array]) -> Read | None:  # fmt: skip
    if got.get("bias") is seen.tensor:
        return direct(op, call.out, seen, 1, tail)
    if got.get("weight") is not seen.tensor:
        return None
    return direct(op, call.out, seen, normalised(), tail)


def _second(call: Call, seen: TrackedView) -> bool:
    return len(call.args) > 1 and call.args[1] is seen.tensor


# --- helpers ----------------------------------------------------------------------------------


@cache
def _matmul_letters(m: int, n: int, left: bool) -> tuple[str, str, str]:
    """Letters of what is not and of what is the parameter, and of their product; y is summed."""
    batch = "abcdefghijkl"[: max(m, n, 2) - 2]
    a = "y" if m == 1 else batch[len(batch) - (m - 2) :] + "xy"
    b = "y" if n == 1 else batch[len(batch) - (n - 2) :] + "yz"
    y = batch + "".join(c for c in "xz" if c in a + b)
    return (b, a, y) if left else (a, b, y)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _padding(padding: Any, kernel: tuple[int, ...], hole: tuple[int, ...], dims: int
             ) -> list[tuple[int, int]]:  # fmt: skip
    if padding == "valid":
        return [(0, 0)] * dims
    if padding == "same":
        total = [h * (k - 1) for k, h in zip(kernel, hole, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in _each(padding, dims)]


def _patches(x: Array, kernel: Sequence[int], step: Sequence[int], hole: Sequence[int],
             pad: Sequence[tuple[int, int]], groups: int) -> Array:  # fmt: skip
    """What a convolution multiplies its kernel by: (batch, *spatial, groups, d)."""
    dims = len(kernel)
    x = F.pad(x, [p for low_high in reversed(pad) for p in low_high]).contiguous()
    sizes = [(n - h * (k - 1) - 1) // s + 1
             for n, k, s, h in zip(x.shape[2:], kernel, step, hole, strict=True)]  # fmt: skip
    if dims == 2:  # written by a kernel of its own
        rows = F.unfold(x, tuple(kernel), dilation=tuple(hole), stride=tuple(step))
        rows = rows.unflatten(1, (groups, -1)).unflatten(-1, sizes)
        return rows.permute(0, 3, 4, 1, 2)
    strides = x.stride()[2:]
    views = x.as_strided(
        (*x.shape[:2], *kernel, *sizes),
        (*x.stride()[:2], *(t * h for t, h in zip(strides, hole, strict=True)),
         *(t * s for t, s in zip(strides, step, strict=True))),
    )  # fmt: skip
    views = views.permute(0, *range(2 + dims, 2 + 2 * dims), 1, *range(2, 2 + dims))
    return views.reshape(x.shape[0], *sizes, groups, -1)


# --- which function follows which rule ----------------------------------------------------------

_T = torch.Tensor


def _both(*names: str) -> list[Any]:
    """Functions and methods of these names."""
    spaces = (torch, _T, F)
    return [getattr(s, name) for name in names for s in spaces if hasattr(s, name)]


_TABLE: list[tuple[Rule, list[Any]]] = [
    (linear, _both("linear")),
    (matmul, _both("matmul", "mm", "mv", "bmm", "__matmul__", "__rmatmul__")),
    (addmm, _both("addmm")),
    (einsum, _both("einsum")),
    (embedding, _both("embedding")),
    (getitem, _both("__getitem__")),
    (index_select, _both("index_select")),
    (added, _both("add", "__add__", "__radd__", "add_", "__iadd__")),
    (subtracted, _both("sub", "subtract", "__sub__", "sub_", "__isub__")),
    (multiplied, _both("mul", "multiply", "__mul__", "__rmul__")),
    (divided, _both("div", "divide", "true_divide", "__div__", "__truediv__")),
    (concatenated, _both("cat", "concat", "concatenate")),
    (layer_norm, [F.layer_norm]),
    (rms_norm, [F.rms_norm]),
    (group_norm, [F.group_norm]),
    (batch_norm, [F.batch_norm]),
    *((convolution(n, f"conv{n}d"), _both(f"conv{n}d")) for n in (1, 2, 3)),
    *(
        (transposed_convolution(n, f"conv_transpose{n}d"), _both(f"conv_transpose{n}d"))
        for n in (1, 2, 3)
    ),
]
RULES: dict[Any, Rule] = {func: rule for rule, functions in _TABLE for func in functions}

# Functions of one tensor that only show, copy or cast its entries.
VIEWS = {
    *_both(
        "t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "view",
        "reshape", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "expand", "expand_as",
        "view_as", "narrow", "select", "chunk", "split", "unbind", "tensor_split", "diagonal",
        "contiguous", "clone", "to", "type", "float", "double", "half", "bfloat16", "type_as",
        "__getitem__", "broadcast_to", "as_strided", "adjoint", "alias", "cpu", "requires_grad_",
    ),
    _T.T.__get__, _T.mT.__get__, _T.H.__get__, _T.mH.__get__,
}  # fmt: skip
COPIES = set(_both("contiguous", "clone", "to", "type", "float", "double", "half", "bfloat16",
                   "type_as", "cpu", "requires_grad_"))  # fmt: skip
SCALES = dict.fromkeys(_both("mul", "multiply", "__mul__", "__rmul__"), 1) | dict.fromkeys(
    _both("div", "divide", "true_divide", "__div__", "__truediv__"), -1
)
NEGATIONS = set(_both("neg", "negative", "__neg__"))
