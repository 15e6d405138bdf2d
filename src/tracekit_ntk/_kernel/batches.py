"""Networks of data that does not fit in memory, captured batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

from tracekit._arrays import Array

from .._backend import adapter, capture
from .._derivatives import checks, checksum, refuse_spent
from ..factors import Capture


def captures(
    f: Callable[..., Any], params: Any, x: Any, batches: Iterable[Any] | None, whole: bool
) -> Iterator[Capture]:
    """The capture of x, or one after the other those of all batches."""
    _one_of(x, batches)
    if batches is None:
        yield capture(f, params, x, whole=whole)
        return
    batch = None
    for batch in batches:
        yield capture(f, params, batch, whole=whole, alone=True)
    if batch is None:
        raise ValueError(checks.NO_BATCHES)


def pairs(
    f: Callable[..., Any], params: Any, x: Any, batches: Iterable[Any] | None, whole: bool
) -> Iterator[tuple[Capture, Capture]]:
    """Each capture with itself, and with those of all batches that come after it."""
    _one_of(x, batches)
    if batches is None:
        found = capture(f, params, x, whole=whole)
        yield found, found
        return
    refuse_spent(batches, "all of them meet each other")
    seen: list[complex] = []
    for i in count():
        first: Capture | None = None
        k = -1
        for k, batch in enumerate(batches):
            told = _sum_of(params, batch)
            seen += [told] if i == 0 else []
            if k >= len(seen) or abs(told - seen[k]) > 1e-6 * abs(seen[k]):
                raise ValueError(_changed(k))
            if k >= i:
                found = capture(f, params, batch, whole=whole, alone=i == 0)
                first = first or found
                yield first, found
        if k < 0:
            raise ValueError(checks.NO_BATCHES)
        if k + 1 < len(seen):
            raise ValueError(_changed(k + 1))
        if i + 1 >= len(seen):
            return


def joined(params: Any, found: list[Any], join: Callable[[list[Array]], Array]) -> Any:
    """Trees of one structure, or arrays, put together leaf by leaf."""
    if len(found) == 1:
        return found[0]
    library = adapter(params)
    leaves = [library.tree_flatten(tree)[0] for tree in found]
    made = [join(list(each)) for each in zip(*leaves, strict=True)]
    return library.unflatten(found[0], made)


def _one_of(x: Any, batches: Iterable[Any] | None) -> None:
    if x is not None and batches is not None:
        raise ValueError("x and batches are both given; pass x for data that fits in memory")


def _sum_of(params: Any, batch: Any) -> complex:
    """A number that changes with the order of what a batch holds."""
    leaves = adapter(params).tree_flatten(batch)[0]
    return sum((checksum(leaf) for leaf in leaves if hasattr(leaf, "shape")), start=0j)


def _changed(k: int) -> str:
    return (
        f"batch {k + 1} was not the same when batches were gone through again; pass them in a "
        "fixed order (shuffle=False), without random augmentation"
    )
