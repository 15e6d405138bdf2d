"""What is made of factors: of all samples at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit._arrays import Array

from .._factors import Uses


def reduced(
    found: Any, start: int, stop: int, reduce: Callable[[Uses], dict[str, Array]]
) -> dict[str, Array]:
    """What `reduce` makes of the uses by these outputs, arrays with samples on axis 0."""
    return reduce(found.uses(start, stop))


def samples_at_once(found: Any) -> int:
    """How many samples `reduced` holds the cotangents of."""
    return found.samples  # type: ignore[no-any-return]
