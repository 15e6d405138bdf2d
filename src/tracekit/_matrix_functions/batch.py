"""What a rule says of each probe: by so many steps, by fewer, and what is left open."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .._arrays import Array, colnorm2, conj, device_of, eps_of, namespace, positive
from .._sketches import (
    Arnoldi,
    ControlVariate,
    Krylov,
    Moments,
    Space,
    chebyshev,
    gauss,
    hessenberg,
)
from ..functions import Function, applied, inv, is_semidefinite, values

ROUNDING = 50  # in units of eps: below that changes of forms are rounding
APART = 4  # residuals between a Ritz value and the next that make it stand apart


class Batch(NamedTuple):
    """What the rule of so many steps says of each probe."""

    residuals: Array  # of the control variate
    shorter: tuple[Array, ...]  # the same by up to two shorter rules
    energy: Array | None  # of the probes in the range of the control variate
    forms: Array  # of f(A) itself
    size: Array  # the forms of |f|(A)
    unresolved: Array  # what clusters that one node stands for leave open
    ends: Array  # how much f may change where the outermost Ritz values still move
    solves: Solves | None  # where a gradient is made of them
    rounding: Array | None = None  # what nodes that move by rounding of the largest one change


class Solves(NamedTuple):
    """What Lanczos of so many steps says of ``A^-1 x`` for each probe."""

    forms: Array  # x^H A^-1 x
    changes: list[Array]  # since shorter rules, relative


def evaluate(
    f: Function,
    cv: ControlVariate,
    K: Space,
    X: Array | None,
    depth: int,
    *,
    solves: bool = False,
) -> Batch:
    """The rule of so many steps, and of up to two shorter ones, for probes X.

    Probes are read where the control variate is more than the operator.
    """
    if isinstance(K, Moments):
        return _by_moments(f, K, depth)
    if isinstance(K, Arnoldi):
        return _by_arnoldi(f, K, depth)
    depths = shorter_depths(depth)

    def at(x: Array) -> Array:
        return values(f, x, squared=K.operator.factor is not None)

    found = [gauss.samples(K, steps, at) for steps in depths]
    nodes, M = gauss.rule(K, depth)
    xp = namespace(nodes)
    unresolved, ends = _local_errors(f, K, depth)
    low, high = (_each_probe(end(nodes, axis=-1), K.block) for end in (xp.min, xp.max))
    beyond = cv.beyond(X, low, high)
    residuals, *shorter = (cv.residuals(x, X) for x in found)
    return Batch(
        residuals,
        tuple(shorter),
        cv.energy(X),
        found[0],
        gauss.forms(nodes, M, xp.abs(at(nodes))),
        unresolved if beyond is None else unresolved + beyond,
        ends,
        _solves(K, depths) if solves else None,
        _of_rounding(f, nodes, M, at(nodes)),
    )


def _of_rounding(f: Function, nodes: Array, M: Array, at: Array) -> Array:
    """Of each probe; where most nodes lie far below the largest one it is more than that of f."""
    xp = namespace(nodes)
    moved = nodes + ROUNDING * eps_of(nodes) * xp.max(xp.abs(nodes), axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        change = xp.abs(applied(f, moved) - at)
    return gauss.forms(nodes, M, xp.where(xp.isfinite(change), change, xp.zeros_like(change)))


def shorter_depths(depth: int) -> list[int]:
    """A depth, and up to two lesser ones whose rules it is compared with."""
    step = max(1, depth // 4)
    return [steps for steps in (depth, depth - step, depth - 2 * step) if steps >= 1]


def _solves(K: Krylov, depths: list[int]) -> Solves:
    xp = namespace(K.rest)
    found = [gauss.coordinates(K, steps, inv) for steps in depths]
    size = xp.sqrt(colnorm2(found[0]))
    forms = xp.sum(conj(K.below[0]) * found[0][:, : K.block, :], axis=-2)

    def change(C: Array, shorter: Array) -> Array:
        same = shorter.shape[1]
        square = colnorm2(C[:, :same, :] - shorter) + colnorm2(C[:, same:, :])
        return xp.reshape(xp.sqrt(square) / positive(size), (-1,))

    return Solves(xp.reshape(forms, (-1,)), [change(*pair) for pair in pairwise(found)])


def _local_errors(f: Function, K: Krylov, depth: int) -> tuple[Array, Array]:
    """For each probe: what clusters leave open, and what the outermost Ritz values do.

    From the rule of a step less, whose residuals are known. A Ritz value that stands apart from its
    neighbours by more than its residual allows may stand for a cluster: the residual is the spread
    of that, and the Gauss rule of two points with that spread says
    what it is worth. An outermost Ritz value moves by its residual at most; by the square of that
    over its distance from the next one, if this is larger.
    """
    xp, depth = namespace(K.rest), max(depth - 1, 1)
    if K.depth <= depth:
        zero = xp.reshape(xp.stack([xp.zeros_like(K.size[:, 0])] * K.block, axis=-1), (-1,))
        return zero + math.inf, zero + math.inf
    nodes, M, rho = gauss.residuals(K, depth)
    bounded = is_semidefinite(f)
    nodes = xp.where(nodes < 0, xp.zeros_like(nodes), nodes) if bounded else nodes
    steps = xp.abs(nodes[:, 1:] - nodes[:, :-1])
    far = xp.full_like(nodes[:, :1], math.inf)
    gap = xp.minimum(xp.concat([far, steps], axis=-1), xp.concat([steps, far], axis=-1))
    move = rho * xp.minimum(xp.ones_like(rho), rho / positive(gap - rho))
    move = xp.where(gap > rho, move, rho)
    least = nodes == xp.min(nodes, axis=-1, keepdims=True)
    most = nodes == xp.max(nodes, axis=-1, keepdims=True)
    # two points with the mean and the spread of the cluster, the lower one in the domain of f
    narrow = xp.ones_like(rho)
    if bounded:
        room = xp.maximum(nodes / (2 * positive(rho)), eps_of(rho) * narrow)
        narrow = xp.minimum(narrow, room)
    share = narrow * narrow / (1 + narrow * narrow)
    with np.errstate(all="ignore"):
        at = applied(f, nodes)
        less, more = (applied(f, x) for x in (nodes - rho * narrow, nodes + rho / narrow))
        pair = (1 - share) * less + share * more
        down, up = applied(f, nodes - move), applied(f, nodes + move)

    def change(moved: Array, where: Array) -> Array:
        size = xp.abs(moved - at)
        size = xp.where(xp.isfinite(size), size, xp.abs(at))
        return gauss.forms(nodes, M, xp.where(where, size, xp.zeros_like(size)))

    apart = (gap > APART * rho) & (rho > 0)
    ends = change(down, least) + change(up, most)
    blind = xp.all(at == 0, axis=-1) & xp.any(rho > 0, axis=-1)  # f may begin beyond what is seen
    unknown = xp.where(blind, math.inf + 0 * at[..., 0], 0 * at[..., 0])
    return change(pair, apart), ends + _each_probe(xp.abs(unknown), K.block)


def _each_probe(x: Array, block: int) -> Array:
    """A number of each group as one of each of its probes."""
    xp = namespace(x)
    return xp.reshape(xp.stack([x] * block, axis=-1), (*x.shape[:-1], -1))


def _by_moments(f: Function, C: Moments, depth: int) -> Batch:
    """What Chebyshev moments say; the last terms of the series tell how much is missing."""
    xp, squared = namespace(C.center), C.operator.factor is not None

    def form(steps: int) -> Array:
        nodes, weights = chebyshev.rule(C, steps)
        return xp.sum(values(f, nodes, squared=squared) * weights, axis=-1)

    forms, *shorter = (form(steps) for steps in shorter_depths(depth))
    nodes, weights = chebyshev.rule(C, depth)
    y = values(f, nodes, squared=squared)
    terms = xp.abs(chebyshev.terms(C, depth, y))
    count = terms.shape[-1]
    eighth = max(count // 8, 1)
    last = xp.sum(terms[..., count - eighth :], axis=-1)
    before = xp.sum(terms[..., count - 2 * eighth : count - eighth], axis=-1)
    missing = xp.where(last <= before / 2, last, last * (count / 8))
    size = xp.abs(xp.sum(xp.abs(y) * weights, axis=-1))
    rounding = ROUNDING * eps_of(size) * size
    missing = xp.where(last <= rounding, xp.zeros_like(missing), missing)
    zero = xp.zeros_like(missing)
    return Batch(forms, tuple(shorter), None, forms, size, missing, zero, None)


def _by_arnoldi(f: Function, K: Arnoldi, depth: int) -> Batch:
    """What Arnoldi says; nothing where degrees that the rule does not know matter most."""
    found, *shorter = (hessenberg.forms(f, K, steps) for steps in shorter_depths(depth))
    seen = hessenberg.degree_is_seen(f, K, depth)
    xp, size = namespace(found.sizes), found.sizes
    seen = xp.asarray(seen, device=device_of(size))
    ends = xp.where(seen, xp.zeros_like(size), xp.full_like(size, math.inf))
    return Batch(
        found.values,
        tuple(x.values for x in shorter),
        None,
        found.values,
        size,
        found.rounding,
        ends,
        None,
    )
