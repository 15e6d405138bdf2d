"""Quantiles of intervals: of one mean, and of several at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

DRAWS = 2000  # for the quantile of the largest of several deviations
FEW = 8  # over the square of the samples: as for the error of as few of them


def checked_level(level: float) -> None:
    """Refuse what is no level of an interval."""
    if not 0 < level < 1:
        raise ValueError(
            f"`level` must be a number between 0 and 1, got {level}; pass one such as 0.95"
        )


def joint_quantile(samples: Any, level: float) -> float:
    """The quantile of the largest deviation of several means, in their own standard errors.

    Wider where samples are few, by experiment: skewed ones show too little spread then.
    """
    count = samples.shape[-1]
    if count < 2:
        return math.inf
    rng = np.random.default_rng(0)
    deviation = samples.reshape(-1, count)
    deviation = deviation - deviation.mean(axis=-1, keepdims=True)
    size = np.linalg.norm(deviation, axis=-1, keepdims=True)
    unit = np.divide(deviation, size, out=np.zeros_like(deviation), where=size > 0)
    largest = np.abs(unit @ rng.standard_normal((count, DRAWS))).max(axis=0)
    denominator = np.sqrt(rng.chisquare(count - 1, DRAWS) / (count - 1))
    wider: float = 1 + FEW / count**2
    return float(np.quantile(largest / denominator, level)) * wider


def t_quantile(level: float, dof: int) -> float:
    """Two-sided quantile of Student's t distribution; 1 where the error is 0 or infinite anyway."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, (1 + level) / 2)) if dof > 0 else 1.0
