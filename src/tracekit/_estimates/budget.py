"""Checks of budgets and tolerances."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def checked_budget(num_matvecs: Any, name: str = "num_matvecs") -> int:
    """The budget as an int of at least 1."""
    try:
        budget = operator.index(num_matvecs)
    except TypeError:
        budget = 0
    if isinstance(num_matvecs, bool) or budget < 1:
        raise ValueError(
            f"`{name}` must be a positive integer, got {num_matvecs!r}; pass an int of 1 or more"
        )
    return budget


def checked_tolerance(rtol: Any, atol: Any) -> None:
    """Refuse tolerances that are not numbers of 0 or more."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(
                f"`{name}` must be a number of 0 or more, got {value!r}; pass one such as 1e-2"
            )


def former_name(old: str, new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Take an argument by its former name too, which is deprecated."""

    def decorate(f: Callable[P, T]) -> Callable[P, T]:
        @wraps(f)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"`{old}` is the former name of `{new}`; pass `{new}` alone")
                kwargs[new] = kwargs.pop(old)
            return f(*args, **kwargs)

        return call

    return decorate
