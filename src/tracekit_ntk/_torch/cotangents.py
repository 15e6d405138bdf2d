"""The cotangents that a network is checked with, and when two gradients are the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from tracekit._arrays import Array


class Plain(NamedTuple):
    """What plain autograd makes of a run that nothing watches."""

    output: Array
    gradients: dict[str, Array]  # of every parameter with entries, (rows, size)
    most: float  # the largest absolute value in them
    differs: bool  # whether the output is not that of the watched run


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
        masks, parts = _halves(samples, 2 if y.dtype == torch.float16 else 8)
        self.rows = (masks.reshape(3, samples, *[1] * (y.ndim - 1)) * v[0]).to(y)
        self.parts = parts.to(y)

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


def largest_of_rows(t: Array) -> Array:
    """The largest absolute value of each row."""
    return t.abs().amax(1, keepdim=True)


def largest(tensors: Iterable[Array]) -> list[float]:
    """The largest absolute value of each."""
    found = torch._foreach_norm(list(tensors), float("inf"))
    return torch.stack([t.double() for t in found]).tolist() if found else []


@lru_cache(maxsize=16)
def _halves(samples: int, most: int) -> tuple[Array, Array]:
    """Each sample's factor in the three rows; and of the rows there: none, cancelling, left."""
    half = torch.randint(0, 2, (samples,), generator=torch.Generator().manual_seed(1))
    half[0], half[-1] = 1, 0
    rank = torch.where(half == 1, half.cumsum(0), (1 - half).cumsum(0))
    factor = 2.0 ** (rank % (2 * most + 1) - most).double()
    masks = torch.stack([half.double(), 1 - half.double(), factor])
    none = torch.stack([1 - masks[0], 1 - masks[1], torch.zeros(samples)], 1)
    cancel = torch.stack([-factor, -factor, torch.ones(samples)], 1)
    size = torch.stack([factor, factor, torch.zeros(samples)], 1)
    return masks, torch.stack([none, cancel, size], 1)
