"""What is noted of an operation that reads a parameter, and how its uses are made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch

from tracekit._arrays import Array

from .._factors import Dense, Lookup, Outer, Use


@dataclass(frozen=True, eq=False)
class TrackedView:
    """A tensor that is a parameter, or a view of one, or a multiple of that."""

    name: str
    storage_view: Array  # the same view of the parameter's own memory, without a graph
    tensor: Array
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Entries of the whole parameter."""
        return int(self.storage_view.untyped_storage().nbytes() // self.storage_view.element_size())


@dataclass(frozen=True, eq=False)
class Read:
    """One operation that read a parameter.

    `arrange` brings an array (rows, *output shape) to (rows, *positions, *tail); `data`, what the
    parameter was multiplied by, is (*positions, ...), or a function that gives it, or None; `use`
    makes the use of data (N, S, ...) and of derivatives (N, O, S, *tail). Reads of one parameter
    with one `kind`, if any, are put together along S before that.
    """

    seen: TrackedView
    op: str
    out: Array
    positions: int  # axes that hold samples or positions
    arrange: Callable[[Array], Array]
    data: Any
    use: Callable[[Any, Array], Use]
    reads: tuple[Array, ...] = ()  # tensors whose values are needed later
    kind: Any = None


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a function and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Array

    def bind(self, names: str) -> dict[str, Any]:
        """Arguments by name."""
        return dict(zip(names.split(), self.args, strict=False)) | self.kwargs


Rule = Callable[[Call, TrackedView], Read | None]


class Letters(NamedTuple):
    """What ``einsum`` does with each axis of ``a,w->y``, for a parameter that lies in some way."""

    summed: tuple[int, ...]  # axes of a that are in neither w nor y
    to_data: tuple[int, ...]  # axes of a otherwise: positions, groups, inner
    to_positions: tuple[int, ...]  # axes of y with rows before: positions, groups, outer
    positions: int
    sizes: tuple[int, int, int]  # groups, inner, outer
    order: tuple[int, ...]  # axes of w: groups, inner, outer
    where: tuple[int, bool] | None


def contraction(op: str, spec: str, x: Array, seen: TrackedView, out: Array, factor: float = 1,
                 drop: str = "") -> Read | None:  # fmt: skip
    """``einsum("a,w->y", x, W)``: the letters say what is summed, shared and kept."""
    storage_view = seen.storage_view
    letters = _letters(
        spec, drop, storage_view.shape, storage_view.stride(), storage_view.storage_offset()
    )
    if letters is None or not isinstance(x, torch.Tensor):
        return None
    summed, to_data, to_positions, positions, (g, d, m), order, where = letters
    scale = factor * seen.scale

    def data() -> Array:
        X = (x.sum(summed) if summed else x).permute(to_data)
        X = X if scale == 1 else X * scale
        return X.reshape(*X.shape[:positions], g, d)

    def arrange(G: Array) -> Array:
        return G.permute(to_positions)

    def use(X: Array, G: Array) -> Use:
        X, G = real_parts(X, G, seen)
        N, M, S = G.shape[:3]
        X, G = X.transpose(1, 2), G.reshape(N, M, S, g, m).transpose(2, 3)
        if where is not None:
            return Outer(X, G, where[1], where[0])
        return scattered(Outer(X, G, True).dense(), storage_view.permute(order), seen.size)

    return Read(seen, op, out, positions, arrange, data, use, (x,), (op, where, g, d, m))


@lru_cache(maxsize=1024)
def _letters(
    spec: str, drop: str, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> Letters | None:
    """The same for every parameter of one layout; None where this is no sum of outer products."""
    inputs, y = spec.split("->")
    a, w = inputs.split(",")
    if any(len(set(s)) != len(s) for s in (a, w, y)):
        return None
    groups = [c for c in w if c in a and c in y and c not in drop]
    inner = [c for c in w if c in a and c not in y]
    outer = [c for c in w if c not in a and c in y]
    rest = [c for c in y if c not in groups + outer]
    if len(groups + inner + outer) + len(drop) != len(w) or not set(rest) <= set(a):
        return None
    size = dict(zip(w, shape, strict=True))
    g, d, m = (prod(size[c] for c in part) for part in (groups, inner, outer))
    order = tuple(tuple(w.index(c) for c in part) for part in (groups, inner, outer))
    summed = tuple(i for i, c in enumerate(a) if c not in w and c not in y)
    kept = [c for c in a if c in w or c in y]
    to_data = tuple(kept.index(c) for c in (*rest, *groups, *inner))
    to_positions = (0, *(1 + y.index(c) for c in (*rest, *groups, *outer)))
    where = _layout(shape, stride, offset, order)
    return Letters(summed, to_data, to_positions, len(rest), (g, d, m), sum(order, ()), where)


def real_parts(X: Array, G: Array, seen: TrackedView) -> tuple[Array, Array]:
    """The real part of products of complex numbers, by real ones at twice the positions.

    Of the data (N, S, ...) and derivatives (N, O, S, ...) of a real parameter.
    """
    if seen.storage_view.is_complex() or not G.is_complex():
        return X, G
    if not X.is_complex():
        return X, G.real
    return torch.cat([X.real, X.imag], 1), torch.cat([G.real, -G.imag], 2)


def layout(seen: TrackedView, groups: Sequence[int], inner: Sequence[int], outer: Sequence[int]
            ) -> tuple[int, bool] | None:  # fmt: skip
    """Start of a parameter's block, and whether it lies as (g, d, w) rather than (g, w, d)."""
    storage_view, order = seen.storage_view, (tuple(groups), tuple(inner), tuple(outer))
    return _layout(storage_view.shape, storage_view.stride(), storage_view.storage_offset(), order)


def _layout(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, order: tuple[tuple[int, ...], ...]
) -> tuple[int, bool] | None:
    groups, inner, outer = order
    for input_first, last in ((False, outer + inner), (True, inner + outer)):
        dropped = tuple(i for i in range(len(shape)) if i not in groups + last)
        if _is_contiguous([(shape[i], stride[i]) for i in dropped + groups + last]):
            return offset, input_first
    return None


def _is_contiguous(axes: Sequence[tuple[int, int]]) -> bool:
    step = 1
    for size, stride in reversed(axes):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def scattered(J: Array, entries: Array, size: int) -> Use:
    """A Jacobian by the entries of a view, as one by all entries of the parameter."""
    index = torch.arange(size, device=J.device)
    index = index.as_strided(entries.shape, entries.stride(), entries.storage_offset()).reshape(-1)
    return Dense(J.new_zeros((*J.shape[:2], size)).index_add_(2, index, J))


def direct(op: str, out: Array, seen: TrackedView, factor: Any, tail: Sequence[int] | None = None,
            cut: tuple[int, int, int] | None = None) -> Read | None:  # fmt: skip
    """Entries that are multiplied by `factor` and added, each to some axes of the output.

    `tail` are the axes of the output that those of the parameter are: the last ones by default.
    """
    storage_view, offset = seen.storage_view, seen.storage_view.storage_offset()
    last = tuple(range(out.ndim - storage_view.ndim, out.ndim) if tail is None else tail)
    to_positions, positions, sizes, steps, whole = _entries(
        storage_view.shape, storage_view.stride(), out.ndim, last
    )
    tensor = factor if isinstance(factor, torch.Tensor) else None

    def arrange(G: Array) -> Array:
        return (G if cut is None else G.narrow(cut[0] + 1, cut[1], cut[2])).permute(to_positions)

    def data() -> Array:
        return arrange(tensor.expand(out.shape)[None])[0]  # type: ignore[union-attr]

    def use(X: Any, G: Array) -> Use:
        N, M, S = G.shape[:3]
        if X is None:
            J = G.reshape(N, M, S, -1).sum(2) if S > 1 else G.reshape(N, M, -1)
            J = J if factor * seen.scale == 1 else J * (factor * seen.scale)
        else:
            X, G = X.reshape(N, S, -1), G.reshape(N, M, S, -1)
            J = torch.einsum("nosk,nsk->nok", G, X.to(G.dtype))
            J = J if seen.scale == 1 else J * seen.scale
        J = J if storage_view.is_complex() or not J.is_complex() else J.real
        if whole:
            return Dense(J, offset)
        return scattered(J, storage_view.as_strided(sizes, steps, offset), seen.size)

    kind = (op, factor, steps, offset) if tensor is None else None
    return Read(seen, op, out, positions, arrange, None if tensor is None else data, use,
                () if tensor is None else (tensor,), kind)  # fmt: skip


@lru_cache(maxsize=1024)
def _entries(
    shape: tuple[int, ...], stride: tuple[int, ...], ndim: int, tail: tuple[int, ...]
) -> tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...], bool]:
    """Axes of the output: positions, then those of entries; how these lie, and if side by side."""
    kept = [i for i, n in enumerate(shape) if n > 1 and stride[i] > 0]
    axes = [tail[i] for i in kept]
    rest = [i for i in range(ndim) if i not in axes]
    sizes, steps = tuple(shape[i] for i in kept), tuple(stride[i] for i in kept)
    whole = _is_contiguous([*zip(sizes, steps, strict=True)])
    return (0, *(i + 1 for i in rest + axes)), len(rest), sizes, steps, whole


def lookup(op: str, call: Call, seen: TrackedView, ids: Array, padding: int | None) -> Read | None:
    where = layout(seen, [], [0], [1])
    if where is None or not where[1]:
        return None
    rows, scale = seen.storage_view.shape[0], seen.scale

    def use(ids: Array, G: Array) -> Use:
        G = G if seen.storage_view.is_complex() or not G.is_complex() else G.real
        G = G if scale == 1 else G * scale
        G = G if padding is None else G * (ids != padding)[:, None, :, None]
        return Lookup(ids, G, rows, where[0])

    return Read(seen, op, call.out, ids.ndim, lambda G: G, ids, use, (ids,))


def through(read: Read, out: Array, factor: Array) -> Read:
    """The same read, told by the derivatives of `out`, which `factor` takes to those of its own.

    The entries of `factor` (..., k H) are k blocks, each to be multiplied by all H of `out`.
    """
    k = factor.shape[-1]

    def data() -> Array:
        X = None if read.data is None else read.data()
        return factor if X is None else torch.cat([factor, X.flatten(factor.ndim - 1)], -1)

    def use(X: Array, G: Array) -> Use:
        C = X[..., :k].unflatten(-1, (-1, G.shape[-1]))
        if read.data is None:  # positions are summed over
            return read.use(None, torch.einsum("nosh,nskh->nokh", G, C).flatten(2).unsqueeze(2))
        G = G.transpose(1, 2).unsqueeze(-2) * C[:, :, None]  # N S O k H
        return read.use(X[..., None, k:], G.flatten(3).transpose(1, 2))

    kind = None if read.kind is None else ("through", k, *read.kind)
    return Read(read.seen, read.op, out, read.positions, read.arrange, data, use, read.reads, kind)
