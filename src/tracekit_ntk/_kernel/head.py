"""Kernels of networks with more outputs than features, from cotangents of the features alone."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

from tracekit._arrays import (
    Array,
    adjoint,
    conj,
    device_of,
    is_differentiated,
    namespace,
    orthonormalise,
    real,
)

from .._factors import (
    NUMBERS_AT_ONCE,
    Dense,
    Form,
    Head,
    Lookup,
    Mixed,
    Seen,
    Use,
    Uses,
    cheapest,
    gram,
    grams,
    hot,
    lengths,
    met,
    orders,
    row_ties,
    sized,
    spans,
    take_samples,
    tiles,
)
from .chunks import in_chunks
from .output_axes import BYTES_KEPT, OutputAxes, chunk_of, reduced, zeros
from .sums import parts_of, scaled_squares, sum_of


class Road(NamedTuple):
    """Two captures of the body whose kernel has the trace that is asked for, and a basis.

    Where the weight is differentiated one is of ``W^H W`` and one of the features as they are,
    else both are of R, with Q the basis: a factorisation has no derivative at every rank.
    """

    left: Mixed
    right: Mixed
    basis: Array


def road_of(first: Head, second: Head, order: Array | None = None) -> Road:
    """The captures to take the trace over outputs by."""
    W = first.weight
    if is_differentiated(W):
        C = namespace(W).matmul(adjoint(W), W)
        return Road(Mixed(first, C, order), Mixed(second, None, order), W)
    Q, R = orthonormalise(W)
    left = Mixed(first, R, order)
    return Road(left, left if second is first else Mixed(second, R, order), Q)


def traces_of_head(
    head: Head, chunk_size: int | None, per_parameter: bool, seen: Seen | None = None
) -> Iterator[tuple[str, Array]]:
    """Parts that the trace, or that of each parameter's part, is the sum of."""
    if seen is None:
        left, right, basis = road_of(head, head)
        weight: Any = head.outputs
    else:
        left, right, basis = Mixed(head, seen.gram), Mixed(head), seen.products
        weight = seen.squares
    names = list(left.sizes)
    for low, high in spans(left.outputs, chunk_of(left, chunk_size)):
        a = left.uses(low, high)
        b = a if right is left else right.uses(low, high)
        for key, u, v in parts_of(a, b, names, per_parameter):
            K = gram(u, v, Form(1, high - low, paired=True))
            if K is not None:
                yield key, sum_of(K)
        tied = row_ties(head, b, basis, low)
        if tied is not None:
            yield head.own.name if per_parameter else "", sum_of(tied)  # type: ignore[union-attr]
    for name, squares in lengths(head).items():
        yield name if per_parameter else "", sum_of(weight * squares)


def diagonals_of_head(
    head: Head, chunk_size: int | None, per_parameter: bool
) -> Iterator[tuple[str, Array]]:
    """Parts of the diagonal (N, S, O), or of that of each parameter's part."""
    body, d, W = Mixed(head), head.width, head.weight
    xp, names = namespace(W), list(body.sizes)
    own = lengths(head)
    step = max(1, chunk_of(body, chunk_size) // d)
    for low, high in spans(body.outputs // d, step):
        uses = body.uses(low * d, high * d)
        found: dict[str, list[Array]] = {}
        for key, u, _ in parts_of(uses, uses, names, per_parameter):
            K = gram(u, u, Form(high - low, 1, paired=True))
            if K is not None:
                found.setdefault(key, []).append(real(_diagonal(W, K[:, 0, ...])))
        for name, squares in own.items():
            wide = xp.broadcast_to(
                squares[:, low:high, None], (squares.shape[0], high - low, head.outputs)
            )
            found.setdefault(name if per_parameter else "", []).append(wide)
        for tie in head.ties(uses):
            h = head.features[:, low:high, None, :]
            G = xp.reshape(conj(tie.G), (len(tie.G), high - low, d, *tie.G.shape[2:]))
            T = xp.matmul(G, xp.matrix_transpose(h)[:, :, None, :, :])[..., 0]
            B = conj(_rows_of(W, tie))[:, None, :, :]  # N 1 U d
            by_token = xp.sum(xp.matrix_transpose(T) * B, axis=3)  # N S U
            part = 2 * real(xp.matmul(by_token, hot(head, tie)))
            found.setdefault(head.own.name if per_parameter else "", []).append(part)  # type: ignore[union-attr]
        for key in names if per_parameter else [""]:
            none = xp.zeros((1, 1, 1), dtype=real(W).dtype, device=device_of(W))
            total = sum(found.get(key, []), start=none)
            shape = (body.samples, high - low, head.outputs)
            yield key, xp.broadcast_to(total, shape)


def squares_of_head(
    head: Head, chunk_size: int | None, per_parameter: bool
) -> Iterator[tuple[str, tuple[float, Array, Array]]]:
    """Parts that the squared norm is the sum of: weights, and squares with their scales."""
    left, _, Q = road_of(head, head)
    names, d = list(left.sizes), head.width
    own_keys = {k if per_parameter else "" for k in lengths(head)}
    tied_key = (head.own.name if per_parameter else "") if head.own else None
    cuts = spans(left.outputs, chunk_of(left, chunk_size, BYTES_KEPT))
    met_by: set[str] = set()
    for k, span in enumerate(cuts):
        a = left.uses(*span)
        for other in cuts[k:]:
            b = a if other is span else left.uses(*other)
            for key, u, v in parts_of(a, b, names, per_parameter):
                for i, j, K in tiles(u, v, Form()):
                    met_by.add(key)
                    K = K[0, 0, ...]
                    if key in own_keys:
                        K = K + _own_block(head, key, (i, j), (span, other))
                    if key == tied_key:
                        K = K + _tied_block(head, Q, u, v, (i, j), (span, other))
                    twice = 2 if u is not v or i != j else 1
                    yield key, (twice, *scaled_squares(K))
        for weight, X in _tied_apart(head, Q, a):
            yield str(tied_key), (weight, *scaled_squares(X))
    for key in own_keys:
        left_over = head.outputs - (d if key in met_by else 0)
        for A in _own_tiles(head, key):
            yield key, (left_over, *scaled_squares(A))


def kernel_of_head(
    first: Head, second: Head, axes: OutputAxes, chunk_size: int | None, params: Any
) -> Array:
    """The kernel between outputs of two batches, (N1, N2, D, R, R)."""
    xp, W, last = namespace(first.weight), first.weight, len(axes.shape) - 1
    shape, d = (*axes.shape[:-1], first.width), first.width
    diagonal, over, rest = (tuple(a for a in kind if a != last) for kind in axes[1:4])
    places = OutputAxes(axes.shape[:-1], diagonal, over, rest, axes.paired)
    crossed = OutputAxes(
        shape, places.diagonal, places.traced, (*places.crossed, last), axes.paired
    )
    traced = last in axes.traced
    features = crossed._replace(
        traced=(*places.traced, last), crossed=places.crossed
    ) if traced else crossed  # fmt: skip
    order = _order(features, W)
    if traced:
        left, right, _ = road_of(first, second, order)
    else:
        left = Mixed(first, None, order)
        right = left if second is first else Mixed(second, None, order)
    K = _of_bodies(left, right, features, chunk_size, params)
    (N1, N2, D), R = K.shape[:3], places.sizes[2]
    own = _own(first, second, paired=axes.paired)
    own = None if own is None else _of_positions(own, places)
    tied = _tied(first, second, places, axes)
    if traced:
        K = K if own is None else K + first.outputs * own
        return K if tied is None else K + tied
    K = xp.reshape(K, (N1, N2, D, R, d, R, d))
    if last in axes.diagonal:
        K = _diagonal(W, xp.permute_dims(K, (0, 1, 2, 3, 5, 4, 6)))  # N1 N2 D R R O
        K = K if own is None else K + own[..., None]
        K = xp.permute_dims(K if tied is None else K + tied, (0, 1, 2, 5, 3, 4))
        return xp.reshape(K, (N1, N2, -1, R, R))
    K = xp.matmul(K, adjoint(W))  # N1 N2 D R d R O
    K = xp.matmul(W, xp.reshape(K, (N1, N2, D, R, d, R * first.outputs)))
    K = xp.reshape(K, (N1, N2, D, R, first.outputs, R, first.outputs))
    if own is not None:
        unit = xp.eye(first.outputs, dtype=own.dtype, device=device_of(own))
        K = K + own[:, :, :, :, None, :, None] * unit[None, None, None, None, :, None, :]
    if tied is not None:
        K = K + tied
    size = R * first.outputs
    return xp.reshape(K, (N1, N2, D, size, size))


def is_shorter(head: Head) -> bool:
    """Whether a diagonal costs less by way of all pairs of features than by O outputs."""
    d, O, (N, S, _) = head.width, head.outputs, head.features.shape  # noqa: E741
    through, ordinary = N * S * O * d * d, 0
    for use in (use for some in head.one.values() for use in some):
        positions = 1 if isinstance(use, Dense) else int(use.G.shape[-2])
        a_pass = N * positions * use.size
        through += S * d * a_pass + _work(use, Form(S, 1, paired=True), S * d)
        ordinary += S * O * a_pass + _work(use, Form(S * O, 1, paired=True), S * O)
    return bool(through < ordinary)


def _work(use: Use, form: Form, outputs: int) -> int:
    wide = sized(use, outputs)
    return cheapest(orders(wide, wide, form)).flops


# --- helpers: between all pairs of positions ----------------------------------------------------


def _diagonal(W: Array, K: Array) -> Array:
    """Of ``W K W^H``, for K (..., d, d)."""
    xp = namespace(W, K)
    return xp.sum(xp.matmul(W, K) * conj(W), axis=-1)


def _rows_of(W: Array, tie: Lookup) -> Array:
    """The rows of W that tokens read, (N, U, d)."""
    xp = namespace(W)
    return xp.reshape(xp.take(W, xp.reshape(tie.ids, (-1,)), axis=0), (*tie.ids.shape, W.shape[1]))


def _own(first: Head, second: Head, key: str = "", *, paired: bool = False) -> Array | None:
    """What the head's parameters, or one of them, make of the kernel of one output."""
    parts = [A for name, A in grams(first, second, paired=paired).items() if key in ("", name)]
    return sum(parts[1:], start=parts[0]) if parts else None


def _order(axes: OutputAxes, like: Array) -> Array | None:
    """Numbers of the outputs in the order of some axes; None where that is their own."""
    if list(axes.axes) == sorted(axes.axes):
        return None
    xp = namespace(like)
    numbers = xp.reshape(xp.arange(prod(axes.shape), device=device_of(like)), axes.shape)
    return xp.reshape(xp.permute_dims(numbers, axes.axes), (-1,))


def _of_bodies(
    left: Mixed, right: Mixed, axes: OutputAxes, chunk_size: int | None, params: Any
) -> Array:
    chunk = chunk_of(left, chunk_size, BYTES_KEPT)
    if chunk < left.outputs:
        return in_chunks(left, right, axes, chunk, params)
    (D, T, R), every = axes.sizes, (0, left.outputs)
    a = left.uses(*every)
    K = gram(a, a if right is left else right.uses(*every), Form(D, T, axes.paired))
    shape = (left.samples, 1 if axes.paired else right.samples, D, R, R)
    return zeros(params, shape) if K is None else K


def _of_positions(A: Array, places: OutputAxes) -> Array:
    """All pairs of positions (N1, N2, S, S, ...), as their axes are asked for: D, R, R, ..."""
    xp, (N1, N2, S, _, *rest) = namespace(A), A.shape
    A = xp.permute_dims(xp.reshape(A, (N1, N2, S, S, -1)), (0, 1, 4, 2, 3))
    A = reduced(xp.reshape(A, (N1, -1, S, S)), places._replace(paired=False))
    A = xp.reshape(A, (N1, N2, -1, *A.shape[2:]))
    return xp.reshape(xp.permute_dims(A, (0, 1, 3, 4, 5, 2)), (N1, N2, *A.shape[3:], *rest))


def _tied(first: Head, second: Head, places: OutputAxes, axes: OutputAxes) -> Array | None:
    """What ties add to a kernel: the head of each side meets the body of the other."""
    one = _half_tied(first, second, places, axes)
    if one is None:
        return None
    other = one if second is first else _half_tied(second, first, places, axes)
    order = (0, 1) if axes.paired else (1, 0)
    rest = (2, 5, 6, 3, 4) if other.ndim == 7 else (2, 4, 3, 5)[: other.ndim - 2]  # type: ignore[union-attr]
    return one + conj(namespace(one).permute_dims(other, (*order, *rest)))


def _half_tied(first: Head, second: Head, places: OutputAxes, axes: OutputAxes) -> Array | None:
    """The head of the first meets the body of the second.

    Shapes are (N1, N2, D, R, R) where outputs are summed over, else with O last, or after each R.
    """
    if first.own is None or not any(second.one.get(first.own.name, ())):
        return None
    ties = second.ties(second.body.uses(0, second.body.outputs))
    last, parts = len(axes.shape) - 1, []
    W, (N1, S, d) = first.weight, first.features.shape
    for tie in ties:
        xp, (N2, _, U, _) = namespace(tie.G), tie.G.shape
        each = S * S * d * U * (1 if axes.paired else N2)
        blocks = []
        for low, high in spans(N1, max(1, NUMBERS_AT_ONCE // each)):
            some: Any = take_samples(tie, low, high) if axes.paired else tie
            T = met(first.features[low:high, ...], some, paired=axes.paired)
            T = _of_positions(xp.reshape(T, (*T.shape[:3], S, d, U)), places)  # ... d U
            around = (slice(None), None) if axes.paired else (None, slice(None))
            B = conj(_rows_of(W, some))[(*around, None, None, None)]
            if last not in axes.crossed:
                T = xp.sum(T * xp.matrix_transpose(B), axis=-2)  # ... U
            if last in axes.traced:
                blocks.append(xp.sum(T, axis=-1))
                continue
            chosen = hot(first, some)[(*around, None, None, None)]
            if last in axes.diagonal:
                blocks.append(xp.matmul(T[..., None, :], chosen)[..., 0, :])
            else:
                X = xp.matmul(xp.matrix_transpose(xp.matmul(T, chosen)), adjoint(W))
                blocks.append(xp.permute_dims(X, (0, 1, 2, 3, 5, 4, 6)))
        parts.append(xp.concat(blocks, axis=0))
    return sum(parts[1:], start=parts[0])


# --- helpers of norms: in the basis Q, for some rows of cotangents ------------------------------


def _own_block(head: Head, key: str, samples: Any, rows: Any) -> Array:
    A = _own(head.of_samples(*samples[0]), head.of_samples(*samples[1]), key)
    xp, d, where = namespace(A), head.width, device_of(A)
    first, second = (xp.arange(*span, device=where) for span in rows)
    A = xp.take(xp.take(A, first // d, axis=2), second // d, axis=3)
    same = first[:, None] % d == second[None, :] % d
    return A * xp.astype(same, A.dtype)[None, None, :, :]


def _tied_block(head: Head, Q: Array, u: Uses, v: Uses, samples: Any, rows: Any) -> Array:
    (i, j), (first, second) = samples, rows

    def half(here: Any, there: Any, uses: Uses, span: Any) -> Any:
        total: Any = 0
        for tie in head.ties(uses):
            some: Any = take_samples(tie, *there)
            X = _in_basis(met(head.of_samples(*here).features, some), Q, some)
            total = total + X[:, :, span[0] : span[1], :]
        return total

    one, other = half(i, j, v, first), half(j, i, u, second)
    return one if isinstance(one, int) else one + conj(
        namespace(one).permute_dims(other, (1, 0, 3, 2)))  # fmt: skip


def _in_basis(T: Array, Q: Array, tie: Lookup) -> Array:
    """What meets, (N1, N2, S, M, U), by rows (S d) of the head: (N1, N2, S d, M)."""
    xp = namespace(T)
    X = xp.matmul(T, conj(_rows_of(Q, tie))[None, :, None, :, :])
    X = xp.permute_dims(X, (0, 1, 2, 4, 3))
    return xp.reshape(X, (*X.shape[:2], -1, X.shape[4]))


def _tied_apart(head: Head, Q: Array, uses: Uses) -> Iterator[tuple[float, Array]]:
    """What ties put outside of the range of W: all of it, less what is within."""
    for tie in head.ties(uses):
        xp, (N, M, U, _), S = namespace(tie.G), tie.G.shape, head.features.shape[1]
        same = tie.ids[:, :, None] == tie.ids[:, None, :]
        E = xp.astype(same, tie.G.dtype)
        E = E / xp.sum(real(E), axis=1, keepdims=True) ** 0.5
        for low, high in spans(N, max(1, NUMBERS_AT_ONCE // (N * S * M * U))):
            T = met(head.features[low:high, ...], tie)
            yield 2.0, xp.matmul(T, E[None, :, None, :, :])
            yield -2.0, _in_basis(T, Q, tie)


def _own_tiles(head: Head, key: str) -> Iterator[Array]:
    N, S, _ = head.features.shape
    cuts = spans(N, max(1, int((NUMBERS_AT_ONCE / (S * S)) ** 0.5)))
    for i in cuts:
        for j in cuts:
            A = _own(head.of_samples(*i), head.of_samples(*j), key)
            if A is not None:
                yield A
