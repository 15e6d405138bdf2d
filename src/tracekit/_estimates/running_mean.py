"""Means and least-squares fits over columns, block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .._arrays import (
    Array,
    abs2,
    beside,
    conj,
    eps_of,
    is_complex,
    magnitude,
    namespace,
    positive,
)
from .estimate import Estimate
from .samples import CHANCE


@dataclass(frozen=True)
class Running:
    """The least-squares fit ``y_k = value * w_k`` over columns k, block by block; a mean if w is 1.

    `rest` is the sum of squared residuals, `third` that of the cubes of real ones about a mean.
    All are in units of `scale`. Blocks are merged as by Chan, Golub, LeVeque (1983), Am. Stat. 37,
    doi:10.1080/00031305.1983.10483115.
    """

    count: int
    weight: Array
    value: Array
    rest: Array
    third: Array | None
    scale: Array


def add(before: Running | None, y: Array, w: Array | None = None) -> Running:
    """Samples along the last axis of `y`, and of `w`, added to those before."""
    xp, plain = namespace(y), w is None and not is_complex(y)
    scale = magnitude(y) if before is None else before.scale
    w = beside(y, np.ones(y.shape[-1]), y.dtype) if w is None else w
    y, weight = y / scale, xp.sum(abs2(w), axis=-1)
    w = xp.broadcast_to(w, y.shape)
    value = xp.sum(conj(w) * y, axis=-1) / positive(weight)
    apart = y - value[..., None] * w
    rest = xp.sum(abs2(apart), axis=-1)
    third = xp.sum(apart * apart * apart, axis=-1) if plain else None
    if before is None:
        return Running(y.shape[-1], weight, value, rest, third, scale)
    total, step = before.weight + weight, value - before.value
    share = weight / positive(total)
    both = before.weight * share
    if before.third is not None and third is not None:
        mixed = step * step * both * (before.weight - weight) / total
        mixed = mixed + 3 * (before.weight * rest - weight * before.rest) / total
        third = before.third + third + step * mixed
    value = before.value + step * share
    rest = before.rest + rest + abs2(step) * both
    return Running(before.count + y.shape[-1], total, value, rest, third, scale)


def fitted(
    running: Running,
    num_matvecs: int,
    method: str,
    *,
    known: Array | None = None,
    correction: float = 1.0,
    tie: float | None = None,
    weighted: bool = False,
) -> Estimate:
    """The estimate ``known + value``; the standard error is multiplied by `correction`.

    `tie` is the largest probability of a value of a sample that is not constant, where probes take
    few values: entries whose samples are equal have an infinite error until that is no chance (see
    `beyond_chance`) for any of as many entries as have samples that differ. With `weighted`, the
    first axis holds the samples and the weighted ones.
    """
    xp, value, m, skewness = namespace(running.value), running.value, running.count, None
    value = value * running.scale
    variance = running.rest / (positive(running.weight) * max(m - 1, 1))
    error = xp.sqrt(variance) * running.scale * correction
    if tie is not None and correction > 0:
        unit = abs2(running.value) * running.weight
        tied = running.rest <= (64 * eps_of(error)) ** 2 * unit
        # as many entries as differ might have been tied: where many do, some are by chance
        differ = xp.sum(xp.astype(~(tied[1, ...] if weighted else tied), error.dtype))
        entries = xp.where(differ < 1, xp.ones_like(differ), differ)

        def unsure(chance: float) -> Array:
            return xp.where(entries * chance > CHANCE, xp.full_like(entries, math.inf), 0 * entries)

        instead = error + unsure(tie ** (m - 1))
        if not weighted and value.ndim == 1:  # squares vanish only where the products do
            instead = xp.where(running.rest + xp.abs(value) == 0, error + unsure(0.5**m), instead)
        if weighted:
            less = error[0, ...] + unsure(0.5 ** (m - 1))
            instead = xp.where(tied[1, ...], less, error[1, ...])
            tied, error, value = tied[0, ...], error[0, ...], value[0, ...]
        error = xp.where(tied, instead, error)
    if running.third is not None:
        skewness = running.third / m / positive(running.rest / m) ** 1.5
        skewness = skewness[0, ...] if weighted else skewness
    return Estimate(
        value if known is None else known + value,
        error if m > 1 else error + math.inf,
        num_matvecs,
        method,
        dof=m - 1,
        skewness=skewness,
    )
