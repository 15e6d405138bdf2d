"""Axes of a sample's outputs that a kernel crosses, sums over or pairs, and how many go at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from tracekit._arrays import Array, device_of, namespace

from .._backend import adapter
from .._derivatives import checks
from ..factors import Factored

BYTES_KEPT = 2**28  # of a chunk's cotangents that meet others: both, a pass and copies make 1 GB
GRADIENTS_KEPT = 2**32  # bytes of explicit Jacobians that meet each other


class OutputAxes(NamedTuple):
    """Axes of the output of one sample: only equal ones meet, summed over, and crossed.

    `paired`: every sample meets itself alone.
    """

    shape: tuple[int, ...]
    diagonal: tuple[int, ...]
    traced: tuple[int, ...]
    crossed: tuple[int, ...]
    paired: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """All of them, in the order of `Form`."""
        return self.diagonal + self.traced + self.crossed

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Outputs along each kind of axes."""
        kinds = (self.diagonal, self.traced, self.crossed)
        D, T, R = (prod(self.shape[a] for a in kind) for kind in kinds)
        return D, T, R


def asked_axes(
    shape: tuple[int, ...],
    trace_axes: int | Sequence[int],
    diagonal_axes: int | Sequence[int],
    x2: Any,
) -> tuple[OutputAxes, bool]:
    """What becomes of each axis of a sample's output, and whether samples are summed over."""
    traced = _axes(trace_axes, len(shape), "trace_axes")
    diagonal = _axes(diagonal_axes, len(shape), "diagonal_axes")
    if twice := set(traced) & set(diagonal):
        raise ValueError(
            f"axis {min(twice) + 1} of the output is both in trace_axes and in diagonal_axes; "
            "name it in one of them"
        )
    paired = -1 in traced + diagonal
    if paired and x2 is not None:
        raise ValueError(
            "axis 0 of trace_axes or diagonal_axes asks for each sample with itself, but x2 is "
            "given; leave x2 out, or axis 0"
        )
    crossed = tuple(a for a in range(len(shape)) if a not in traced + diagonal)
    kept, over = (tuple(a for a in axes if a >= 0) for axes in (diagonal, traced))
    return OutputAxes(shape, kept, over, crossed, paired), -1 in traced


def unfolded(K: Array, axes: OutputAxes, summed: bool) -> Array:
    """A kernel (N1, N2, D, R, R) with all axes of the outputs, samples paired or summed over."""
    outputs = [axes.shape[a] for a in axes.crossed]
    batch = K.shape[:1] if axes.paired else K.shape[:2]
    shape = (*batch, *(axes.shape[a] for a in axes.diagonal), *outputs, *outputs)
    K = namespace(K).reshape(K, shape)
    return namespace(K).sum(K, axis=0) if summed else K


class Prepared(NamedTuple):
    """What an implementation makes of f and its samples: the kernel, for axes of their outputs."""

    output_shape: tuple[int, ...]  # of one sample
    kernel: Callable[[OutputAxes, int | None], Array]  # of chunk_size too; (N1, N2, D, R, R)


def reduced(K: Array, axes: OutputAxes) -> Array:
    """A whole kernel (N1, N2, O, O), summed over some axes, of others the diagonal alone."""
    xp = namespace(K)
    N1, N2, shape, k = K.shape[0], K.shape[1], axes.shape, len(axes.shape)
    D, T, R = axes.sizes
    if axes.paired:
        K, N2 = xp.stack([K[n, n, ...] for n in range(N1)])[:, None, ...], 1
    K = xp.reshape(K, (N1, N2, *shape, *shape))
    order = (0, 1, *(2 + a for a in axes.axes), *(2 + k + a for a in axes.axes))
    K = xp.reshape(xp.permute_dims(K, order), (N1, N2, D * T, R, D * T, R))
    K = xp.stack([K[:, :, i, :, i, :] for i in range(D * T)], axis=2)
    return xp.sum(xp.reshape(K, (N1, N2, D, T, R, R)), axis=3)


def chunk_of(
    found: Factored, chunk_size: int | None, most: int | None = None, samples: int | None = None
) -> int:
    """How many outputs of each sample go through one reverse pass, a whole number of rows."""
    if chunk_size is not None:
        return min(checks.positive("chunk_size", chunk_size), found.outputs)
    each = 8 * (samples or found.samples) * max(1, found.numbers)
    fits = max(1, (most or found.bytes_at_once) // each)
    last = found.output_shape[-1] if found.output_shape else 1
    return min(found.outputs, fits if fits < last else fits // last * last)


def zeros(params: Any, shape: tuple[int, ...]) -> Array:
    """Zeros of the parameters' dtype, of single precision at least, where they are."""
    leaf = adapter(params).tree_flatten(params)[0][0]
    xp = namespace(leaf)
    dtype = leaf.dtype if xp.finfo(leaf.dtype).bits >= 32 else xp.float32
    return xp.zeros(shape, dtype=dtype, device=device_of(leaf))


def _axes(axes: int | Sequence[int], ndim: int, name: str) -> tuple[int, ...]:
    """Axes of the output of one sample, from those of the whole output; -1 for the samples."""
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    found = []
    for axis in given:
        place = axis if axis >= 0 else axis + ndim + 1
        if not 0 <= place <= ndim:
            raise ValueError(
                f"{name}={axes} names axis {axis}, but the output has {ndim + 1} axes; name one of "
                f"0 (samples) to {ndim}"
            )
        found.append(place - 1)
    return tuple(sorted(set(found)))
