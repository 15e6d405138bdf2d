"""The quadratic model of a function at one point, and how gradients are differenced for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracekit._arrays import Array, Product

INEXACT = 0.05  # what differences of gradients may be apart from what they should be


@dataclass(frozen=True)
class Quadratic:
    """Value and Hessian of a scalar function of parameters at one point.

    `product` takes (P, k) columns to (P, k), parameters flattened leaf by leaf. `numbers` are those
    that a column takes while it is made. `known` is what a library may be told when it looks at the
    function again, which it then takes for checked.
    """

    value: Array
    sizes: tuple[int, ...]
    dtype: Any
    device: Any
    product: Product
    numbers: int
    known: Any = None


def steps(eps: float, point: float, direction: float) -> tuple[float, float, float]:
    """Steps of central differences of a gradient, which is known to `eps`, along a direction.

    Given the norms of both. The first balances the error of the formula, of the second power of the
    step, and that of rounding, the inverse. The second tells how inexact that was; the third, which
    is short, crosses few kinks.
    """
    unit = (1 + point) / direction if direction > 0 else 1.0
    return eps ** (1 / 3) * unit, 2 * eps ** (1 / 3) * unit, eps**0.5 * unit
