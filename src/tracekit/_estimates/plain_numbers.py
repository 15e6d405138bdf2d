"""Estimates as text and as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .._arrays import Array, is_complex, to_number


def rounded(value: complex, error: float) -> str:
    """The value to two digits of its error."""
    plain = value.real if value.imag == 0 else value
    if not (math.isfinite(error) and error > 0):
        return f"{plain:.10g} +- {error:.2g}" if error else f"{plain!r} +- 0.0"
    size = max(abs(value.real), abs(value.imag))
    places = math.floor(math.log10(max(size, error))) - math.floor(math.log10(error))
    digits = min(places + 2, 16)
    shown = f"{plain:.0f}" if error >= 10 and size < 1e16 else f"{plain:.{digits}g}"
    return f"{shown} +- {error:.2g}"


def entries(samples: Array) -> Iterator[Array]:
    """Numbers, one by one."""
    return (samples[i] for i in range(samples.shape[0]))


def plain(x: Array) -> Any:
    """What JSON can hold."""
    if getattr(x, "ndim", 0):
        return [plain(x[i]) for i in range(x.shape[0])]
    value = to_number(x)
    number = [value.real, value.imag] if is_complex(x) else value.real
    return number if math.isfinite(abs(value)) else None
