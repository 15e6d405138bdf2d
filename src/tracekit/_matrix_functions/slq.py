"""Spends a budget on tr f(A): on a sketch, on the depth of the quadrature, on probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from .._arrays import Array, Rng, abs2, is_complex, is_traced, to_host
from .._estimates import Estimate
from .._operators import block_size, blocks
from .._sketches import Krylov, lanczos
from ..functions import is_semidefinite, values
from ..probes import Source, distributions
from .deflation import Deflated, deflated, dimension, is_preconditioned
from .deflation import cost as sketch_cost
from .quadrature import SAFETY, Run, Sampling, estimated, judged, read

PILOT, PILOT_DEPTH = 4, 6  # probes that are looked at first, and how deep they are then
DEFLATE_FROM = 100  # products: with fewer, a sketch leaves too little for probes
SECOND_LOOK = 0.5  # of what is left, that twice the depth may cost
NOT_SETTLED = "the quadrature has not settled at this depth, so the error is not known; pass more"
DEEPEST = 30  # where values are not known
MEGABYTES = 128


def sampled(ask: Sampling, rng: Rng, method: str) -> tuple[Estimate, Array | None]:
    """The estimate, and what was read beside each of its samples."""
    source, n, b, columns = Source(rng, ask.A), ask.A.shape[0], ask.block, ask.deflate or 0
    rest, spent = Deflated(ask.A), 0
    if columns:
        rest, spent = deflated(ask.A, ask.f, columns, source)
    take = distributions.stream(ask.probes, source, n, min(ask.budget, n))
    groups = _first_groups(ask, ask.budget - spent)
    X = take(groups * b)
    K = lanczos.advance(rest.A, lanczos.begin(rest.start(X), b))
    if not ask.needed():
        ask = ask._replace(beside=None, price=0)
    _require_budget(ask, ask.budget - spent)
    known = not is_traced(K.diagonal[0])
    if ask.deflate is None and known and ask.budget >= DEFLATE_FROM:
        K = _advanced(ask, K, min(PILOT_DEPTH, ask.depth or _deepest(ask, groups, ask.budget)))
        columns = _worthwhile(ask, K)
        if columns:
            rest, spent = deflated(ask.A, ask.f, columns, source)
        if rest.A is not ask.A:  # another operator: the first probes begin again
            spent += groups * b * lanczos.cost(ask.A, K.depth)
            K = lanczos.advance(rest.A, lanczos.begin(rest.start(X), b))
    ask, budget = ask._replace(A=rest.A), ask.budget - spent
    if ask.depth is not None or not known:
        run = Run(ask.depth or _blind_depth(ask, groups, budget))
        K = _advanced(ask, K, run.depth)
    else:
        K, run = _deepened(ask, rest, K, X, budget)
    first, each = (_price(ask, d) for d in (K.depth, run.depth))
    budget -= groups * first + run.further
    more = budget // each
    batches, beside = [], list[Array]()
    for spaces, Omega in _all(ask, rest, K, X, take, more, run.depth):
        batches.append(read(ask, rest, spaces, Omega, run.depth))
        if ask.beside is not None:
            beside.append(ask.beside(spaces, rest, Omega))
    spent += groups * first + run.further + more * each
    estimate = estimated(ask, rest, batches, run, spent, method)
    reason = f"{(groups + more) * b} probes, depth {run.depth}"
    reason += f", {columns} deflated" if columns else ""
    reason += "" if run.settled else f"; {NOT_SETTLED}"
    return replace(estimate, reason=reason), ask.A.xp.concat(beside) if beside else None


def _first_groups(ask: Sampling, budget: int) -> int:
    """Groups that are looked at first: as few as tell a spread, if that many are affordable."""
    b = ask.block
    few = min(max(PILOT // b, 1), budget // (40 * b))
    each = b * (lanczos.cost(ask.A, ask.depth or 1) + ask.price)
    return max(1, min(max(few, -(-2 // b)), budget // each))


def _deepest(ask: Sampling, groups: int, budget: int) -> int:
    """Steps that a budget allows so many groups, up to the dimension."""
    products = max(budget // (groups * ask.block) - ask.price, 1)
    steps = products if ask.A.factor is None else (products + 1) // 2
    return min(steps, -(-ask.A.shape[0] // ask.block))


def _blind_depth(ask: Sampling, groups: int, budget: int) -> int:
    """Steps where values are not known: for about eight probes."""
    few = max(-(-8 // ask.block), groups)
    return min(max(_deepest(ask, few, budget), 3), _deepest(ask, groups, budget), DEEPEST)


def _require_budget(ask: Sampling, budget: int) -> None:
    each = ask.block * (lanczos.cost(ask.A, ask.depth or 1) + ask.price)
    if budget < each:
        raise ValueError(
            f"num_matvecs={ask.budget} leaves {budget} products for probes of {each} each, that of "
            "the gradient included; pass more"
        )


def _advanced(ask: Sampling, K: Krylov, depth: int) -> Krylov:
    while K.depth < depth:
        K = lanczos.advance(ask.A, K)
    return K


def _deepened(
    ask: Sampling, rest: Deflated, K: Krylov, X: Array, budget: int
) -> tuple[Krylov, Run]:
    """Steps until the rule of f(A) has settled, or as many as the budget allows.

    It has if it adds little to the error that the budget leaves at two depths in a row, and if
    some of the probes that go on to twice that depth change little.
    """
    xp, groups, n = ask.A.xp, K.rest.shape[0], ask.A.shape[0]
    complete, deepest = -(-n // ask.block), _deepest(ask, groups, budget)
    few = min(groups, -(-2 // ask.block))
    depth, in_a_row, small_before = min(PILOT_DEPTH - 1, deepest), 0, False
    while True:
        K = _advanced(ask, K, depth)
        if depth >= complete:
            return K, Run(depth)
        batch = read(ask, rest, K, X, depth)
        total = max(budget * ask.block // _price(ask, depth), 1)
        verdict = judged(ask, batch, total)
        in_a_row = in_a_row + 1 if verdict.fine and verdict.solved else 0
        if in_a_row == 2:
            twice, left = min(2 * depth, complete), budget - groups * _price(ask, depth)
            further = few * (_price(ask, twice) - _price(ask, depth))
            if further > SECOND_LOOK * left:
                return K, Run(depth)
            deep = _advanced(ask, lanczos.select(K, slice(few)), twice)
            after = read(ask, rest, deep, X[:, : few * ask.block], twice)
            change = after.whole - batch.whole[..., : few * ask.block]
            seen = SAFETY * xp.abs(xp.mean(change, axis=-1))
            fine = bool(xp.all(seen <= verdict.allowed))
            if fine or twice > deepest:
                return K, Run(depth, fine, seen, further)
            others = _advanced(ask, lanczos.select(K, slice(few, None)), twice)
            K = lanczos.joined([deep, others]) if few < groups else deep
            depth, in_a_row = twice, 0
            continue
        if depth == deepest:
            return K, Run(depth, verdict.fine or (verdict.small and small_before))
        small_before = verdict.small
        depth = min(depth + max(1, depth // 6), deepest)


def _price(ask: Sampling, depth: int) -> int:
    """Products that a group of probes costs."""
    return ask.block * (lanczos.cost(ask.A, depth) + ask.price)


def _worthwhile(ask: Sampling, K: Krylov) -> int:
    """Columns to sketch, by the spectral density that the pilot saw; 0 where that does not pay.

    A sketch for half of the budget is taken to know half as many of the outermost eigenvalues as
    it has columns. The variance of what is left, over what may be spent on it, is to be less than
    half of that without a sketch.
    """
    nodes, M = lanczos.rule(ask.A, K)
    at = values(ask.f, nodes, squared=ask.A.factor is not None)
    n, m, count = ask.A.shape[0], ask.budget, K.rest.shape[0] * ask.block
    if is_preconditioned(ask.f):  # the first probes begin again
        m -= count * lanczos.cost(ask.A, K.depth)
    most = m - count * (lanczos.cost(ask.A, ask.depth or K.depth) + ask.price)
    shares = to_host(ask.A.xp.sum(abs2(M), axis=-2)).ravel()
    x, weight = to_host(nodes).ravel(), shares * (n / shares.sum())
    y = to_host(at).reshape(-1, x.size)
    y = y / np.maximum(np.abs(y).max(axis=-1, keepdims=True), np.finfo(float).tiny)
    order = np.argsort(-x if is_semidefinite(ask.f) else -np.abs(x - np.average(x, weights=weight)))
    y, weight = y[:, order], weight[order]
    seen = np.cumsum(weight)
    most_columns = min(n // 2, MEGABYTES * 2**20 // (n * _itemsize(ask))) // dimension(ask.f, 1)

    def variance(captured: float, products: int) -> float:
        left = np.clip(seen - captured, 0, weight) + 1e-4 * weight
        center = (y * left).sum(axis=-1, keepdims=True) / left.sum()
        return float(np.max((np.abs(y - center) ** 2 * left).sum(axis=-1) / whole) / (m - products))

    center = (y * weight).sum(axis=-1, keepdims=True) / n
    whole = (np.abs(y - center) ** 2 * weight).sum(axis=-1)
    if not whole.min() > 0:
        return 0
    products = min(m // 2, most)
    b = min(products // sketch_cost(ask.A, ask.f), most_columns)
    pays = b > 1 and variance(b / 2, products) < 0.5 / ask.budget
    return b if pays else 0


def _all(
    ask: Sampling,
    rest: Deflated,
    K: Krylov,
    X: Array,
    take: Callable[[int], Array],
    more: int,
    depth: int,
) -> Iterator[tuple[Krylov, Array]]:
    """The Krylov spaces of the first groups, and of `more`, as many at a time as fit."""
    yield K, X
    b, n = ask.block, ask.A.shape[0]
    room = block_size(n, _itemsize(ask) * depth * b, None, megabytes=MEGABYTES)
    for groups in blocks(more, room):
        X = take(groups * b)
        yield _advanced(ask, lanczos.begin(rest.start(X), b), depth), X


def _itemsize(ask: Sampling) -> int:
    bits = int(ask.A.xp.finfo(ask.A.dtype).bits)
    return bits // 8 * (2 if is_complex(ask.A) else 1)
