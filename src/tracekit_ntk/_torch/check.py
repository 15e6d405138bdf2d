"""Whether factors give the gradients of plain autograd, and where samples are in a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from tracekit._arrays import Array

from .._factors import Dense, Lookup, Outer, Use


class Place(NamedTuple):
    """Which axis of the positions runs over the samples, and what else it runs over."""

    axis: int
    outer: int
    inner: int


class Cotangents:
    """A few cotangents of a whole output that tell its samples apart.

    Two lie on a half of the samples each. The third is their sum with every sample times a power
    of two of its own, as far as there are any: these come through a reverse pass unrounded. Where
    the batch is one sample there are two of all outputs. `plain` are those that gradients are
    compared for: the sum of the halves, or the two.
    """

    def __init__(self, y: Array, samples: int, dtypes: Iterable[Any]) -> None:
        self.precision = max(
            float(torch.finfo(d).eps) for d in dtypes if d.is_floating_point or d.is_complex
        )
        generator = torch.Generator().manual_seed(0)
        kind = torch.complex128 if y.is_complex() else torch.float64
        v = torch.randn((1 + (samples == 1), *y.shape), generator=generator, dtype=kind)
        if samples == 1:
            self.rows = self.plain = v.to(y)
            return
        self.plain = v.to(y)
        half = torch.randint(0, 2, (samples,), generator=generator)
        half[0], half[-1] = 1, 0
        rank = torch.where(half == 1, half.cumsum(0), (1 - half).cumsum(0))
        most = 2 if y.dtype == torch.float16 else 8
        factor = 2.0 ** (rank % (2 * most + 1) - most).double()
        masks = torch.stack([half.double(), 1 - half.double(), factor])
        self.rows = (masks.reshape(3, samples, *[1] * (y.ndim - 1)) * v[0]).to(y)
        # of the three rows at a sample: what must be none, what must cancel, and what is left
        none = torch.stack([1 - masks[0], 1 - masks[1], torch.zeros(samples)], 1)
        cancel = torch.stack([-factor, -factor, torch.ones(samples)], 1)
        size = torch.stack([factor, factor, torch.zeros(samples)], 1)
        self._parts = torch.stack([none, cancel, size], 1).to(y)

    def summed(self, G: Array) -> Array:
        """Derivatives for the plain rows, from those for all."""
        return G if len(self.plain) == len(self.rows) else (G[0] + G[1])[None]

    @property
    def tolerance(self) -> float:
        """Of a gradient, relative to the sizes of what is summed in it."""
        precision = self.precision
        if self.rows.device.type != "cpu" and precision < 1e-6 and self.rows.dtype.itemsize == 4:
            precision = 1e-3  # products of accelerators in float32 may be rounded so
        return float(precision**0.5)

    def far(self, truth: Sequence[Array], made: Sequence[Array], most: float) -> list[bool]:
        """Which may differ: not closer than is allowed for where nothing cancels in the sums."""
        if not truth:
            return []
        least = most * min(1e3 * self.precision / self.tolerance, 0.1)
        apart = torch._foreach_norm(torch._foreach_sub(truth, made), float("inf"))
        sizes = torch._foreach_norm(made, 1)
        gap, size = (torch.stack(list(x)).double().tolist() for x in (apart, sizes))
        return [
            not a <= self.tolerance * (s / m.numel() + least)
            for a, s, m in zip(gap, size, made, strict=True)
        ]

    def differ(self, truth: Sequence[Array], made: Sequence[Array], bounds: Sequence[Array],
               most: float) -> list[bool]:  # fmt: skip
        """Which gradients are not the same up to rounding, where the largest entry is `most`.

        `bounds` are sizes of what is summed in each entry.
        """
        if not truth:
            return []
        least = most * min(1e3 * self.precision / self.tolerance, 0.1)
        ratios = [
            ((g - m).abs() / (b + (b.mean() + least).clip(torch.finfo(b.dtype).tiny))).amax()
            for g, m, b in zip(truth, made, bounds, strict=True)
        ]
        worst = torch.stack([r.double() for r in ratios])
        return (~(worst <= self.tolerance)).tolist()  # type: ignore[no-any-return]

    def places(self, arranged: Sequence[tuple[Array, int]]) -> list[Place | None]:
        """For arrays G (3, *positions, ...): the first axis where every sample has its own part."""
        N = len(self._parts)
        alike: dict[Any, list[int]] = {}  # most operations have arrays of one shape
        for i, (G, n) in enumerate(arranged):
            if n and G.shape[1] % N == 0:
                alike.setdefault((tuple(G.shape), G.dtype, n), []).append(i)
        found: list[Place | None] = [None] * len(arranged)
        for (shape, _, n), which in alike.items():
            place = Place(0, 1, shape[1] // N)
            norms = self._norms(torch.stack([arranged[i][0] for i in which], 1), n, place)
            for i, right in zip(which, self._right(norms), strict=True):
                found[i] = place if right else None
        return [
            self._searched(G, n) if place is None else place
            for place, (G, n) in zip(found, arranged, strict=True)
        ]

    def _searched(self, G: Array, positions: int) -> Place | None:
        N = len(self._parts)
        for axis, size in enumerate(G.shape[1 : 1 + positions]):
            for outer in dict.fromkeys((1, size // N)) if size % N == 0 else ():
                place = Place(axis, outer, size // N // outer)
                if self._right(self._norms(G[:, None], positions, place))[0]:
                    return place
        return None

    def _norms(self, G: Array, positions: int, place: Place) -> Array:
        """Of arrays (3, count, *positions, ...): the sizes of their parts, (count, N, 3)."""
        N = len(self._parts)
        by = by_sample(G, positions, place, 2, N).flatten(3)  # N, 3, count, numbers
        by = torch.matmul(self._parts.to(by), by.flatten(2)).reshape(by.shape)
        return torch.linalg.vector_norm(by, dim=-1).permute(2, 0, 1).double()

    def _right(self, norms: Array) -> list[bool]:
        """Of each (N, 3): whether there is none of others, and all cancels but rounding."""
        none, cancel, own = norms.unbind(-1)
        floor = own.amax(-1, keepdim=True) * self.precision
        holds = (none == 0) & (cancel <= self.tolerance * own + floor)
        return holds.all(-1).tolist()  # type: ignore[no-any-return]


def by_sample(t: Array, positions: int, place: Place | None, lead: int, N: int) -> Array:
    """Samples first, then the leading axes, all other positions as one, and the rest."""
    tail = t.shape[lead + positions :]
    if N == 1 or place is None:
        return t.reshape(1, *t.shape[:lead], -1, *tail)
    axis = lead + place.axis
    t = t.reshape(*t.shape[:axis], place.outer, N, place.inner, *t.shape[axis + 1 :])
    t = t.movedim(axis + 1, 0)
    return t.reshape(N, *t.shape[1 : 1 + lead], -1, *tail)


def gradient(uses: Sequence[Use], size: int) -> Array:
    """What uses of one sample sum up to, (rows, size)."""
    return _joined([(use, _summed(use)) for use in uses], size)


def bound(uses: Sequence[Use], size: int) -> Array:
    """The sizes of what is summed in `gradient`, from uses of absolute values."""
    return _joined([(use, _bound(use)) for use in uses], size)


def _joined(parts: Sequence[tuple[Use, Array]], size: int) -> Array:
    first = parts[0][1]
    if len(parts) == 1 and parts[0][0].size == size:
        return first
    total = first.new_zeros((first.shape[0], size))
    for use, part in parts:
        total[:, use.start : use.start + use.size] += part
    return total


def _summed(use: Use) -> Array:
    if isinstance(use, Dense):
        return use.J[0]
    if isinstance(use, Lookup):
        table = use.G.new_zeros((use.rows, use.G.shape[1], use.G.shape[3]))
        return table.index_add_(0, use.ids[0], use.G[0].transpose(0, 1)).transpose(0, 1).flatten(1)
    X, G = use.X[0], use.G[0]  # g S d, rows g S w
    J = torch.matmul(X.mT, G) if use.input_first else torch.matmul(G.mT, X)
    return J.flatten(1)


def _bound(use: Use) -> Array:
    if not isinstance(use, Outer):
        return _summed(use).abs()
    X = torch.linalg.vector_norm(use.X[0], dim=1)  # g d
    G = torch.linalg.vector_norm(use.G[0], dim=2)  # rows g w
    J = X[:, :, None] * G[:, :, None, :] if use.input_first else G[..., None] * X[:, None, :]
    return J.flatten(1)
