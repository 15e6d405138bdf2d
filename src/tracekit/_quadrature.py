"""Stochastic Lanczos quadrature: samples of tr f(A), and both errors of their mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from . import _lanczos, _xp
from . import probes as _probes
from ._deflation import Deflated
from ._estimate import Estimate, mean
from ._lanczos import Krylov
from ._operator import LinearOperator
from ._typing import Array, Probes
from .functions import Function, values

SAFETY = 2.5  # convergence may slow down from what the last steps show


class ErrorSplit(NamedTuple):
    """The two parts of a standard error."""

    monte_carlo: Array
    quadrature: Array


class Sampling(NamedTuple):
    """What is asked for."""

    A: LinearOperator
    f: Function
    budget: int
    probes: Probes
    block: int
    depth: int | None
    deflate: int | None
    beside: Callable[[Krylov, Deflated, Array], Array] | None = None  # read from every batch
    price: int = 0  # products that costs for each probe
    needed: Callable[[], bool] = bool  # whether it is, known after the first product


class Batch(NamedTuple):
    """Samples by the whole rule, and by two shorter ones: without what is known of them."""

    samples: Array
    shorter: tuple[Array, ...]
    inside: Array | None


def read(ask: Sampling, rest: Deflated, K: Krylov, X: Array, depth: int) -> Batch:
    """The rule of so many steps, and of up to two shorter ones."""
    step = max(1, depth // 4)
    found = []
    for steps in (depth, depth - step, depth - 2 * step):
        if steps >= 1:
            nodes, M = _lanczos.rule(ask.A, K, steps)
            at = values(ask.f, nodes, squared=ask.A.factor is not None)
            found.append(rest.rest(_lanczos.forms(nodes, M, at), X))
    return Batch(found[0], tuple(found[1:]), rest.inside(X))


def quadrature_error(batches: list[Batch], complete: bool) -> Array:
    """How far shorter rules were off, carried on geometrically; infinite where there is none."""
    first = batches[0].samples
    xp = _xp.namespace(first)
    if complete:
        return xp.zeros_like(_xp.real(first[..., 0]))
    if not batches[0].shorter:
        return xp.zeros_like(_xp.real(first[..., 0])) + math.inf

    def change(i: int) -> Array:
        pairs = [(batch.samples, *batch.shorter) for batch in batches]
        return xp.mean(xp.concat([xp.abs(p[i] - p[i + 1]) for p in pairs], axis=-1), axis=-1)

    last = change(0)
    if len(batches[0].shorter) < 2:
        return last
    ratio = last / _xp.positive(change(1))
    ratio = xp.where(ratio > 0.9, xp.full_like(ratio, 0.9), ratio)
    return SAFETY * last * ratio / (1 - ratio)


def estimated(
    ask: Sampling, rest: Deflated, batches: list[Batch], depth: int, spent: int, method: str
) -> Estimate:
    xp, n = ask.A.xp, ask.A.shape[0]
    samples = xp.concat([batch.samples for batch in batches], axis=-1)
    if rest.known is not None:
        samples = rest.levelled(samples, xp.concat([batch.inside for batch in batches]))
        samples = samples + rest.known[..., None]
    found = mean(
        samples,
        spent,
        method,
        correction=_probes.finite_population(ask.probes, samples.shape[-1], n),
        independent=not getattr(ask.probes, "joint", False),
    )
    quadrature = quadrature_error(batches, complete=depth >= -(-n // ask.block))
    both = xp.hypot(found.standard_error, quadrature)
    return replace(found, standard_error=both, kept=ErrorSplit(found.standard_error, quadrature))
