"""Kernels from chunks of outputs, all of which meet each other."""

from __future__ import annotations

from typing import Any

from tracekit._arrays import Array, conj, namespace

from .._factors import Form, gram, spans
from ..factors import Factored
from .output_axes import OutputAxes, zeros


def in_chunks(
    first: Factored, second: Factored, axes: OutputAxes, chunk: int, params: Any
) -> Array:
    """The kernel from chunks of outputs, which lie in the order (diagonal, traced, crossed)."""
    D, T, R = axes.sizes
    crossed = spans(R, chunk)
    d_step, t_step = max(1, chunk // (T * R)), min(T, max(1, chunk // R))
    diagonal = []
    for d in range(0, D, d_step):
        count, total = min(d_step, D - d), None
        for t in range(0, T, t_step):
            low, kept = d * T * R + t * R, min(t_step, T - t)
            form = Form(count, kept, axes.paired)
            K = _crossed(first, second, form, low, count * kept * R, crossed, params)
            total = K if total is None else total + K
        diagonal.append(total)
    return namespace(diagonal[0]).concat(diagonal, axis=2)


def _crossed(first: Factored, second: Factored, form: Form, low: int, size: int,
             cuts: list[tuple[int, int]], params: Any) -> Array:  # fmt: skip
    """Blocks of crossed outputs; those below the diagonal are mirrored where both sides are one."""
    N1, N2 = first.samples, 1 if form.paired else second.samples
    if len(cuts) == 1:
        a = first.uses(low, low + size)
        K = gram(a, a if second is first else second.uses(low, low + size), form)
        R = size // (form.diagonal * form.traced)
        return zeros(params, (N1, N2, form.diagonal, R, R)) if K is None else K
    blocks: dict[tuple[int, int], Array] = {}
    for i, (i1, i2) in enumerate(cuts):
        a = first.uses(low + i1, low + i2)
        for j, (j1, j2) in enumerate(cuts):
            if second is first and j < i:
                K = blocks[j, i]
                xp = namespace(K)
                axes = (0, 1, 2, 4, 3) if form.paired else (1, 0, 2, 4, 3)
                K = conj(xp.permute_dims(K, axes))
            else:
                b = a if second is first and i == j else second.uses(low + j1, low + j2)
                K = gram(a, b, form)
                K = zeros(params, (N1, N2, 1, i2 - i1, j2 - j1)) if K is None else K
            blocks[i, j] = K
    xp = namespace(blocks[0, 0])
    count = range(len(cuts))
    return xp.concat([xp.concat([blocks[i, j] for j in count], axis=4) for i in count], axis=3)
