"""Parts of kernels added up, in the widest precision there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracekit._arrays import Array, abs2, beside, namespace, real

from .._backend import adapter
from .._factors import Uses
from .output_axes import zeros


def parts_of(
    left: Uses, right: Uses, names: list[str], per_parameter: bool
) -> Iterator[tuple[str, Uses, Uses]]:
    """Uses of all parameters together, or one by one with the names."""
    if not per_parameter:
        yield "", left, right
        return
    for name in names:
        one = {name: left[name]}
        yield name, one, one if left is right else {name: right[name]}


def sum_of(K: Array) -> Array:
    """The sum of the real part, in the widest precision there is."""
    xp = namespace(K)
    kinds = xp.__array_namespace_info__().dtypes(kind="real floating")
    K = real(K)
    return xp.sum(K, dtype=kinds.get("float64", K.dtype))


def scaled_squares(K: Array) -> tuple[Array, Array]:
    """The largest absolute value, and the sum of squares over its square."""
    xp = namespace(K)
    size = xp.max(xp.abs(K))
    return size, sum_of(abs2(K / _divisor(size)))


def root_of(parts: list[tuple[float, Array, Array]]) -> Array:
    """The root of sums of squares, which are weighted and scaled: no square is too small."""
    xp = namespace(parts[0][1])
    most = xp.max(xp.stack([size for _, size, _ in parts]))
    total = total_of([weight * s * (size / _divisor(most)) ** 2 for weight, size, s in parts])
    return xp.sqrt(total) * most


def total_of(parts: list[Array]) -> Array:
    """The sum of arrays of one shape."""
    return sum(parts[1:], start=parts[0])


def tree_of(params: Any, values: dict[str, Array], names: list[str], per_parameter: bool) -> Any:
    """One value, or one for each parameter, in the parameters' real dtype."""
    first = adapter(params).tree_flatten(params)[0][0]
    zero = beside(first, 0.0, real(zeros(params, ())).dtype)
    xp = namespace(zero)
    keys = names if per_parameter else [""]
    given = [xp.astype(values.get(key, zero), zero.dtype) for key in keys]
    return adapter(params).unflatten(params, given) if per_parameter else given[0]


def _divisor(size: Array) -> Array:
    xp = namespace(size)
    return xp.where(size > 0, size, xp.ones_like(size))
