"""Whether factors give the gradients of plain autograd, and where samples are in a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from ._uses import Dense, Lookup, Outer, Use, cotangent

Array = Any


class Place(NamedTuple):
    """Which axis of the positions runs over the samples, and what else it runs over."""

    axis: int
    outer: int
    inner: int


class Cotangents:
    """A few cotangents of a whole output that tell its samples apart.

    Two lie on a half of the samples each. The third is their sum with every sample times a power
    of two of its own, as far as there are any: these come through a reverse pass unrounded. Where
    the batch is one sample there are two of all outputs.
    """

    def __init__(self, y: Array, samples: int, dtypes: Iterable[Any]) -> None:
        self.precision = max(
            float(torch.finfo(d).eps) for d in dtypes if d.is_floating_point or d.is_complex
        )
        generator = torch.Generator().manual_seed(0)
        kind = torch.complex128 if y.is_complex() else torch.float64
        v = torch.randn((1 + (samples == 1), *y.shape), generator=generator, dtype=kind)
        if samples == 1:
            self.rows = v.to(y)
            return
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

    @property
    def tolerance(self) -> float:
        """Of a gradient, relative to the sizes of what is summed in it."""
        precision = self.precision
        if self.rows.device.type != "cpu" and precision < 1e-6 and self.rows.dtype.itemsize == 4:
            precision = 1e-3  # products of accelerators in float32 may be rounded so
        return float(precision**0.5)

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
        guess = [Place(0, 1, G.shape[1] // N) if n and G.shape[1] % N == 0 else None
                 for G, n in arranged]  # fmt: skip
        norms = [self._norms(G, n, place) for (G, n), place in zip(arranged, guess, strict=True)
                 if place]  # fmt: skip
        right = iter(self._right(torch.stack(norms)) if norms else [])
        return [
            place if place and next(right) else self._searched(G, n)
            for (G, n), place in zip(arranged, guess, strict=True)
        ]

    def _searched(self, G: Array, positions: int) -> Place | None:
        N = len(self._parts)
        for axis, size in enumerate(G.shape[1 : 1 + positions]):
            for outer in dict.fromkeys((1, size // N)) if size % N == 0 else ():
                place = Place(axis, outer, size // N // outer)
                if self._right(self._norms(G, positions, place)[None])[0]:
                    return place
        return None

    def _norms(self, G: Array, positions: int, place: Place) -> Array:
        N = len(self._parts)
        by = by_sample(G, positions, place, 1, N).reshape(N, 3, -1)
        return torch.linalg.vector_norm(torch.matmul(self._parts.to(by), by), dim=-1).double()

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


def gradient(uses: Sequence[tuple[Use, Callable[[], Use]]], size: int) -> tuple[Array, Array]:
    """What uses of one sample sum up to, (rows, size), and the sizes of what is summed.

    With each use comes a function that makes the same use of absolute values.
    """
    if len(uses) == 1 and uses[0][0].size == size:
        return _summed(uses[0][0]), _bound(*uses[0])
    first = cotangent(uses[0][0])
    total = first.new_zeros((first.shape[1], size))
    bound = total.abs()
    for use, absolute in uses:
        part = slice(use.start, use.start + use.size)
        total[:, part] += _summed(use)
        bound[:, part] += _bound(use, absolute)
    return total, bound


def _summed(use: Use) -> Array:
    if isinstance(use, Dense):
        return use.J[0]
    if isinstance(use, Lookup):
        table = use.G.new_zeros((use.rows, use.G.shape[1], use.G.shape[3]))
        return table.index_add_(0, use.ids[0], use.G[0].transpose(0, 1)).transpose(0, 1).flatten(1)
    X, G = use.X[0], use.G[0]  # g S d, rows g S w
    J = torch.matmul(X.mT, G) if use.input_first else torch.matmul(G.mT, X)
    return J.flatten(1)


def _bound(use: Use, absolute: Callable[[], Use]) -> Array:
    if not isinstance(use, Outer):
        return _summed(absolute()).abs()
    X = torch.linalg.vector_norm(use.X[0], dim=1)  # g d
    G = torch.linalg.vector_norm(use.G[0], dim=2)  # rows g w
    J = X[:, :, None] * G[:, :, None, :] if use.input_first else G[..., None] * X[:, None, :]
    return J.flatten(1)
