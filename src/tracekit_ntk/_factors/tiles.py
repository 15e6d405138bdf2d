"""Kernels of whole networks, summed over parameters, in tiles of samples that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tracekit._arrays import Array, conj, namespace

from .contraction_orders import Order, cheapest, contract, orders
from .contractions import NUMBERS_AT_ONCE, Form
from .uses import Use, cotangent, take_samples, with_cotangent

WORTH_HALVING = 2**31  # multiply-adds from which leaving out the lower triangle pays
Uses = Mapping[str, Sequence[Use]]
Span = tuple[int, int]


def gram(uses1: Uses, uses2: Uses, form: Form) -> Array | None:
    """The kernel between two networks' outputs, by all parameters together.

    Gives (N1, N2, D, R1, R2), of paired samples (N, 1, D, R1, R2); None where no parameter is
    read. Where `uses2` is `uses1`, only the upper triangle of tiles is computed.
    """
    found = {(i, j): K for i, j, K in tiles(uses1, uses2, form)}
    if not found:
        return None
    first = sorted({i for i, _ in found})
    second = sorted({j for _, j in found})
    some = next(iter(found.values()))
    xp = namespace(some)
    if form.paired:
        K = xp.concat([found[i, i] for i in first], axis=0)
        return xp.permute_dims(K[:, :, 0, :, :, :], (0, 2, 1, 3, 4))
    for i in first:
        for j in second:
            if (i, j) not in found:
                found[i, j] = mirrored(found[j, i])
    rows = [xp.concat([found[i, j] for j in second], axis=3) for i in first]
    return xp.permute_dims(xp.concat(rows, axis=2)[0, ...], (1, 2, 0, 3, 4))


def tiles(uses1: Uses, uses2: Uses, form: Form) -> Iterator[tuple[Span, Span, Array]]:
    """The same, tile by tile: spans of samples, and the kernel (B, D, N1, N2, R1, R2) between."""
    same = uses1 is uses2
    pairs = [
        (name, k, m, cheapest(orders(u, v, form)))
        for name, uses in uses1.items()
        for k, u in enumerate(uses)
        for m, v in enumerate(uses2[name])
        if overlap(u, v)
    ]
    if not pairs:
        return
    step = _step(uses1, pairs, form, same)
    first, second = (spans(_samples(uses, pairs[0][0]), step) for uses in (uses1, uses2))
    whole = len(first) == len(second) == 1
    for a, i in enumerate(first):
        cut1 = uses1 if whole else _cut(uses1, i)
        for j in [i] if form.paired else second[a:] if same else second:
            cut2 = cut1 if same and i == j else uses2 if whole else _cut(uses2, j)
            total = None
            for name, k, m, order in pairs:
                u, v = cut1[name][k], cut2[name][m]
                K = order.run(u, v, form) if whole else contract(u, v, form)
                total = K if total is None else total + K
            yield i, j, total


def mirrored(K: Array) -> Array:
    """The same kernel with both sides exchanged, (B, D, N2, N1, R2, R1)."""
    xp = namespace(K)
    return conj(xp.permute_dims(K, (0, 1, 3, 2, 5, 4)))


def overlap(a: Use, b: Use) -> bool:
    """Whether two uses have entries of the parameter in common."""
    return a.start < b.start + b.size and b.start < a.start + a.size


def _step(uses: Uses, pairs: list[tuple[str, int, int, Order]], form: Form, same: bool) -> int:
    """How many samples make a tile whose intermediate arrays fit."""
    N = _samples(uses, pairs[0][0])
    numbers = max(order.numbers for *_, order in pairs)
    step, power = N, 1 if form.paired else 2
    while step > 1 and numbers * (step / N) ** power > NUMBERS_AT_ONCE:
        step = (step + 1) // 2
    if same and not form.paired and sum(order.flops for *_, order in pairs) > WORTH_HALVING:
        step = min(step, -(-N // 4))
    return step


def spans(count: int, step: int) -> list[Span]:
    """So many things cut into spans of at most `step`: where each begins and ends."""
    return [(low, min(low + step, count)) for low in range(0, count, step)]


def _samples(uses: Uses, name: str) -> int:
    return int(cotangent(uses[name][0]).shape[0])


def _cut(uses: Uses, span: Span) -> Uses:
    return {name: [take_samples(use, *span) for use in found] for name, found in uses.items()}


def permuted(uses: Uses, shape: Sequence[int], axes: Sequence[int]) -> Uses:
    """The same uses, with the outputs of each sample, of a shape, in another order of axes."""
    if list(axes) == sorted(axes):
        return uses

    def turned(G: Array) -> Array:
        xp = namespace(G)
        rest = tuple(range(1 + len(shape), G.ndim - 1 + len(shape)))
        parted = xp.reshape(G, (G.shape[0], *shape, *G.shape[2:]))
        return xp.reshape(xp.permute_dims(parted, (0, *(1 + a for a in axes), *rest)), G.shape)

    return {
        name: [with_cotangent(u, turned(cotangent(u))) for u in found]
        for name, found in uses.items()
    }
