"""Sums of squared entries of Jacobians, over samples and outputs, from factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from tracekit._arrays import Array, abs2, device_of, namespace

from .._factors import (
    Dense,
    Lookup,
    Outer,
    Use,
    cotangent,
    dense,
    overlap,
    pad,
    spans,
    take_samples,
    with_cotangent,
)

NUMBERS_AT_ONCE = 2**22  # of gradients of single samples, and of tables of who reads which row


def squared_entries(uses: Sequence[Use], size: int) -> Array:
    """``sum_no |J[n, o, p]|^2`` of one parameter with so many entries p, (size,).

    Gradients of samples are formed, in pieces, only where several positions or several uses meet.
    """
    if any(overlap(u, v) for u, v in combinations(uses, 2)):
        return _formed(uses, size)
    total: Array = 0
    for use in uses:
        total = total + pad(_of_use(use), use.start, size, axis=0)
    return total


def _of_use(use: Use) -> Array:
    if isinstance(use, Dense):
        return _over_outputs(use.J)
    if isinstance(use, Lookup):
        return _looked_up(use)
    if use.X.shape[2] == 1:
        return _of_one_position(use)
    return _formed([replace(use, start=0)], use.size)


def _of_one_position(use: Outer) -> Array:
    """Squares of outer products are outer products of squares."""
    xp = namespace(use.X, use.G)
    X = xp.permute_dims(abs2(use.X[:, :, 0, :]), (1, 2, 0))  # g d N
    G = xp.permute_dims(xp.sum(abs2(use.G[:, :, :, 0, :]), axis=1), (1, 0, 2))  # g N w
    squares = xp.matmul(X, G)
    return xp.reshape(squares if use.input_first else xp.matrix_transpose(squares), (-1,))


def _looked_up(use: Lookup) -> Array:
    """Positions that read one row are added up first; each of them then counts for its share."""
    xp, total = namespace(use.G), 0
    S, numbers = use.ids.shape[1], xp.arange(use.rows, device=device_of(use.ids))
    for part in _pieces([use], S * (S + use.rows), outputs=False):
        ids, G = part[0].ids, part[0].G  # type: ignore[union-attr]
        same = xp.astype(ids[:, :, None] == ids[:, None, :], G.dtype)
        squares = xp.sum(abs2(xp.matmul(same[:, None, :, :], G)), axis=1)
        squares = squares / xp.sum(same, axis=2)[:, :, None]
        hot = xp.astype(numbers[:, None] == xp.reshape(ids, (1, -1)), G.dtype)
        total = total + xp.matmul(hot, xp.reshape(squares, (-1, G.shape[3])))
    return xp.reshape(total, (-1,))


def _formed(uses: Sequence[Use], size: int) -> Array:
    """By gradients of single samples, some at a time."""
    total: Array = 0
    for part in _pieces(uses, size):
        total = total + _over_outputs(dense(part, size))
    return total


def _pieces(uses: Sequence[Use], numbers: int, *, outputs: bool = True) -> Iterator[list[Use]]:
    """The same uses by some samples and outputs at a time, each of so many numbers."""
    N, M = cotangent(uses[0]).shape[:2]
    at_once = max(1, NUMBERS_AT_ONCE // max(numbers, 1))
    columns = min(M, at_once) if outputs else M
    samples = max(1, at_once // columns) if outputs else at_once
    for n in spans(N, samples):
        some = [take_samples(use, *n) for use in uses]
        for low, high in spans(M, columns):
            yield [with_cotangent(use, cotangent(use)[:, low:high, ...]) for use in some]


def _over_outputs(J: Array) -> Array:
    return namespace(J).sum(abs2(J), axis=(0, 1))
