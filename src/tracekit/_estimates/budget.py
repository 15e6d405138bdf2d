"""Checks of budgets and tolerances."""

from __future__ import annotations

import math
import operator
from typing import Any


def checked_budget(num_matvecs: Any, name: str = "num_matvecs") -> int:
    """The budget as an int of at least 1."""
    try:
        budget = operator.index(num_matvecs)
    except TypeError:
        budget = 0
    if isinstance(num_matvecs, bool) or budget < 1:
        raise ValueError(
            f"{name}={num_matvecs!r} is no budget; pass the number of products to spend, "
            "an int of 1 or more"
        )
    return budget


def checked_tolerance(rtol: Any, atol: Any) -> None:
    """Refuse tolerances that are not numbers of 0 or more."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} is no tolerance; pass a number of 0 or more")
