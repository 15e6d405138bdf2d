"""Norms and matrices of kernels from factors, and what they cost in products with the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from math import ceil, prod
from typing import Any

from tracekit._arrays import Array, namespace

from .._factors import (
    Form,
    Lookup,
    Outer,
    Use,
    Uses,
    cheapest,
    orders,
    overlap,
    spans,
    tiles,
)
from ..factors import Capture, Factored
from .chunks import in_chunks
from .output_axes import BYTES_KEPT, OutputAxes, chunk_of
from .sums import parts_of, root_of, scaled_squares, tree_of

Pairs = Iterable[tuple[Factored, Factored]]
MATRIX = 2**30  # bytes of a kernel that is handed out as a matrix
OVERHEAD = 8  # multiply-adds that writing a number counts as


def norm_of(
    pairs: Pairs, params: Any, chunk_size: int | None, per_parameter: bool = False,
    form: Form = Form(),  # noqa: B008
) -> Array:  # fmt: skip
    """The Frobenius norm of the kernel that pairs of captures are the upper triangle of."""
    squares: dict[str, list[tuple[float, Array, Array]]] = {}
    names: list[str] = []
    uses = lru_cache(maxsize=1)(lambda found, span: found.uses(*span))  # of one that meets several
    for first, second in pairs:
        names = list(first.sizes)
        for left, right in _blocks(first, second, chunk_size, uses):
            for key, u, v in parts_of(left, right, names, per_parameter):
                for i, j, K in tiles(u, v, form):
                    twice = 2 if u is not v or i != j else 1
                    squares.setdefault(key, []).append((twice, *scaled_squares(K)))
    roots = {key: root_of(found) for key, found in squares.items()}
    return tree_of(params, roots, names, per_parameter)


def matrix_of(found: Factored, params: Any, chunk_size: int | None, dtype: Any) -> Array:
    """The kernel of all outputs as a matrix."""
    K = _kernel(found, params, chunk_size, paired=False)
    xp, n = namespace(K), found.samples * found.outputs
    return xp.astype(xp.reshape(xp.permute_dims(K, (0, 2, 1, 3)), (n, n)), dtype, copy=False)


def matrix_of_samples(found: Factored, params: Any, chunk_size: int | None, dtype: Any) -> Array:
    """The kernels of samples with themselves, as one matrix that is block-diagonal."""
    K = _kernel(found, params, chunk_size, paired=True)[:, 0, :, None, :]  # N O 1 O
    xp, N, n = namespace(K), found.samples, found.samples * found.outputs
    own = xp.eye(N, dtype=K.dtype)[:, None, :, None] != 0
    own = own if not hasattr(K, "device") else xp.asarray(own, device=K.device)
    M = xp.where(own, K, xp.zeros_like(K))
    return xp.astype(xp.reshape(M, (n, n)), dtype, copy=False)


def kernel_cost(found: Capture, chunk_size: int | None, form: Form = Form()) -> int:  # noqa: B008
    """The kernel in the unit of products: its reverse passes, and its multiply-adds by theirs.

    One product costs twice those of the parameters' operations, or more. All columns of the kernel
    by products, with their inner products, are never less work, and not more is counted.
    """
    uses = found.outline()
    sizes = [high - low for low, high in spans(found.outputs, _chunk(found, chunk_size))]
    columns = sum(sum(sizes[k:]) for k in range(len(sizes)))
    pairs = [(u, v) for some in uses.values() for u in some for v in some if overlap(u, v)]
    each = [cheapest(orders(u, v, form)) for u, v in pairs]
    work = sum(order.flops + OVERHEAD * order.numbers for order in each)
    product = 2 * sum(_forward_work(use) for some in uses.values() for use in some)
    counted = columns + ceil(work * columns / (found.outputs * max(1, product)))
    return min(counted, found.samples * found.outputs)


def fits(found: Capture, bytes_each: int) -> bool:
    """Whether all of the kernel may be held at once."""
    return (found.samples * found.outputs) ** 2 * bytes_each <= MATRIX


def _blocks(
    first: Factored, second: Factored, chunk_size: int | None, uses: Callable[..., Uses]
) -> Iterator[tuple[Uses, Uses]]:
    """Chunks of outputs of both that meet: of one with itself, each pair once."""
    cuts, others = (spans(c.outputs, _chunk(c, chunk_size)) for c in (first, second))
    for k, span in enumerate(cuts):
        left = uses(first, span)
        for other in cuts[k:] if second is first else others:
            own = second is first and other is span
            yield left, left if own else second.uses(*other)


def _kernel(found: Factored, params: Any, chunk_size: int | None, *, paired: bool) -> Array:
    shape = found.output_shape
    axes = OutputAxes(shape, (), (), tuple(range(len(shape))), paired)
    return in_chunks(found, found, axes, _chunk(found, chunk_size), params)[:, :, 0, :, :]


def _chunk(found: Factored, chunk_size: int | None) -> int:
    return chunk_of(found, chunk_size, BYTES_KEPT)


def _forward_work(use: Use) -> int:
    """Multiply-adds of the operation itself, for all samples."""
    if isinstance(use, Outer):
        N, _, g, S, w = use.G.shape
        return int(N * g * S * w * use.X.shape[3])
    shape = use.G.shape if isinstance(use, Lookup) else use.J.shape
    return int(prod((shape[0], *shape[2:])))
