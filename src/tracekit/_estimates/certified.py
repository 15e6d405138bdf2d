"""Intervals that hold by a theorem."""

from __future__ import annotations

import math
from typing import NamedTuple

from .._arrays import Array


class Certified(NamedTuple):
    """Brackets of Gaussian forms, and a bound of the matrix that they are forms of."""

    center: Array  # the mean of the middles of the brackets
    half_width: Array  # the mean of half their widths
    half_range: Array  # of f on the bounds: no less than the norm of what is estimated
    n: int
    probes: int

    def interval(self, level: float) -> tuple[Array, Array]:
        """By Bernstein's inequality for quadratic forms."""
        length, m = math.log(2 / (1 - level)), self.probes
        reach = (2 * length + math.sqrt(4 * length**2 + 4 * m * self.n * length)) / m
        reach = reach * self.half_range + self.half_width
        return self.center - reach, self.center + reach
