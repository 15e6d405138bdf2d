"""What is noted of an operation that reads a parameter, and how its uses are made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from tracekit._arrays import Array

from .._factors import Dense, Lookup, Outer, Use


@dataclass(frozen=True, eq=False)
class Seen:
    """A tensor that is a parameter, or a view of one, or a multiple of that."""

    name: str
    ghost: Array  # the same view of the parameter's own memory, without a graph
    tensor: Array
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Entries of the whole parameter."""
        return int(self.ghost.untyped_storage().nbytes() // self.ghost.element_size())


@dataclass(frozen=True, eq=False)
class Read:
    """One operation that read a parameter.

    `arrange` brings an array (rows, *output shape) to (rows, *positions, *tail); `data`, what the
    parameter was multiplied by, is (*positions, ...), or a function that gives it, or None; `use`
    makes the use of data (N, S, ...) and of derivatives (N, O, S, *tail). Reads of one parameter
    with one `kind`, if any, are put together along S before that.
    """

    seen: Seen
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


Rule = Callable[[Call, Seen], Read | None]


def contraction(op: str, spec: str, x: Array, seen: Seen, out: Array, factor: float = 1,
                 drop: str = "") -> Read | None:  # fmt: skip
    """``einsum("a,w->y", x, W)``: the letters say what is summed, shared and kept."""
    inputs, y = spec.split("->")
    a, w = inputs.split(",")
    if any(len(set(s)) != len(s) for s in (a, w, y)) or not isinstance(x, torch.Tensor):
        return None
    groups = [c for c in w if c in a and c in y and c not in drop]
    inner = [c for c in w if c in a and c not in y]
    outer = [c for c in w if c not in a and c in y]
    rest = [c for c in y if c not in groups + outer]
    if len(groups + inner + outer) + len(drop) != len(w) or not set(rest) <= set(a):
        return None
    size = dict(zip(w, seen.ghost.shape, strict=True))
    g, d, m = (prod(size[c] for c in part) for part in (groups, inner, outer))
    order = [[w.index(c) for c in part] for part in (groups, inner, outer)]
    where = layout(seen, *order)
    gone = [i for i, c in enumerate(a) if c not in w and c not in y]
    scale = factor * seen.scale

    def data() -> Array:
        X = x.sum(gone) if gone else x
        letters = [c for i, c in enumerate(a) if i not in gone]
        X = X.permute([letters.index(c) for c in (*rest, *groups, *inner)])
        X = X if scale == 1 else X * scale
        return X.reshape(*X.shape[: len(rest)], g, d)

    def arrange(G: Array) -> Array:
        return G.permute(0, *(1 + y.index(c) for c in (*rest, *groups, *outer)))

    def use(X: Array, G: Array) -> Use:
        X, G = real_parts(X, G, seen)
        N, M, S = G.shape[:3]
        made = Outer(X.transpose(1, 2), G.reshape(N, M, S, g, m).transpose(2, 3), True)
        if where is not None:
            return Outer(made.X, made.G, where[1], where[0])
        return scattered(made.dense(), seen.ghost.permute([i for part in order for i in part]),
                          seen.size)  # fmt: skip

    return Read(seen, op, out, len(rest), arrange, data, use, (x,), (op, where, g, d, m))


def real_parts(X: Array, G: Array, seen: Seen) -> tuple[Array, Array]:
    """The real part of products of complex numbers, by real ones at twice the positions.

    Of the data (N, S, ...) and derivatives (N, O, S, ...) of a real parameter.
    """
    if seen.ghost.is_complex() or not G.is_complex():
        return X, G
    if not X.is_complex():
        return X, G.real
    return torch.cat([X.real, X.imag], 1), torch.cat([G.real, -G.imag], 2)


def layout(seen: Seen, groups: list[int], inner: list[int], outer: list[int]
            ) -> tuple[int, bool] | None:  # fmt: skip
    """Start of a parameter's block, and whether it lies as (g, d, w) rather than (g, w, d)."""
    for input_first, order in ((False, outer + inner), (True, inner + outer)):
        dropped = [i for i in range(seen.ghost.ndim) if i not in groups + order]
        ghost = seen.ghost.permute(dropped + groups + order)
        if ghost.is_contiguous():
            return int(ghost.storage_offset()), input_first
    return None


def scattered(J: Array, entries: Array, size: int) -> Use:
    """A Jacobian by the entries of a view, as one by all entries of the parameter."""
    index = torch.arange(size, device=J.device)
    index = index.as_strided(entries.shape, entries.stride(), entries.storage_offset()).reshape(-1)
    return Dense(J.new_zeros((*J.shape[:2], size)).index_add_(2, index, J))


def direct(op: str, out: Array, seen: Seen, factor: Any, tail: Sequence[int] | None = None,
            cut: tuple[int, int, int] | None = None) -> Read | None:  # fmt: skip
    """Entries that are multiplied by `factor` and added, each to some axes of the output.

    `tail` are the axes of the output that those of the parameter are: the last ones by default.
    """
    ghost = seen.ghost
    kept = [i for i, n in enumerate(ghost.shape) if n > 1 and ghost.stride(i) > 0]
    if tail is None:
        tail = [out.ndim - ghost.ndim + i for i in range(ghost.ndim)]
    tail = [tail[i] for i in kept]
    rest = [i for i in range(out.ndim) if i not in tail]
    entries = ghost.as_strided(
        [ghost.shape[i] for i in kept], [ghost.stride(i) for i in kept], ghost.storage_offset()
    )
    tensor = factor if isinstance(factor, torch.Tensor) else None

    def arrange(G: Array) -> Array:
        G = G if cut is None else G.narrow(cut[0] + 1, cut[1], cut[2])
        return G.permute(0, *(i + 1 for i in rest), *(i + 1 for i in tail))

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
        J = J if ghost.is_complex() or not J.is_complex() else J.real
        if entries.is_contiguous():
            return Dense(J, int(entries.storage_offset()))
        return scattered(J, entries, seen.size)

    kind = (
        (op, factor, tuple(entries.stride()), entries.storage_offset()) if tensor is None else None
    )
    return Read(seen, op, out, len(rest), arrange, None if tensor is None else data, use,
                () if tensor is None else (tensor,), kind)  # fmt: skip


def lookup(op: str, call: Call, seen: Seen, ids: Array, padding: int | None) -> Read | None:
    where = layout(seen, [], [0], [1])
    if where is None or not where[1]:
        return None
    rows, scale = seen.ghost.shape[0], seen.scale

    def use(ids: Array, G: Array) -> Use:
        G = G if seen.ghost.is_complex() or not G.is_complex() else G.real
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
