"""When a median error of ours is as good as another's, and when a time is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

QUANTILE = 2.33  # one chance in a hundred to call equals unequal
ROUNDING = 64 * float(np.finfo(np.float64).eps)
SLOWER = 1.1  # a time may be longer by this factor


class Cell(NamedTuple):
    """A median relative error, the noise of its logarithm, and how it was found."""

    median: float
    noise: float
    seeds: int
    products: int


def cell(errors: Sequence[float], products: int, draws: int = 1000) -> Cell:
    """Take the median of the errors, and the bootstrap noise of its logarithm."""
    found = np.nan_to_num(np.asarray(errors, float), nan=np.inf)
    drawn = np.random.default_rng(0).integers(found.size, size=(draws, found.size))
    medians = np.median(np.clip(found, 1e-18, 1e18)[drawn], axis=1)
    noise = float(np.std(np.log(medians)))
    return Cell(float(np.median(found)), noise, found.size, products)


def holds(ours: Cell, theirs: Cell) -> bool:
    """Whether our error is at most theirs, but for the noise of both; rounding always is."""
    if ours.median <= ROUNDING:
        return True
    noise = math.hypot(ours.noise, theirs.noise)
    return ours.median <= theirs.median * math.exp(QUANTILE * noise)


def best(cells: dict[str, Cell]) -> str:
    """Return the name of the smallest median; of what is at rounding, the first."""
    return min(cells, key=lambda name: max(cells[name].median, ROUNDING))


def pooled(pairs: Iterable[tuple[Cell, Cell]]) -> tuple[float, float]:
    """Return the geometric mean of ours / theirs above rounding, and what noise allows for it."""
    above = [(a, b) for a, b in pairs if max(a.median, b.median) > ROUNDING]
    if not above:
        return 1.0, 1.0
    ratios = [math.log(max(a.median, ROUNDING) / max(b.median, ROUNDING)) for a, b in above]
    noise = math.sqrt(sum(a.noise**2 + b.noise**2 for a, b in above)) / len(above)
    return math.exp(sum(ratios) / len(ratios)), math.exp(QUANTILE * noise)


def fast_enough(ours: float, theirs: float) -> bool:
    """Whether our time is not longer than theirs by more than a tenth."""
    return ours <= SLOWER * theirs
