"""How tall arrays of an operator lie over devices: as its maker declares, or as its arrays show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .._arrays import (
    Array,
    Device,
    Namespace,
    Placement,
    Product,
    RowLayout,
    freely_cut,
    lazy_rows,
    leaves,
    lies_in_parts,
    np_compat,
    placement,
    placement_of,
    plain,
    rows_of,
    rows_of_mesh,
)

_DEPTH = 5  # of functions within functions


def read_layout(
    given: Any,
    shape: tuple[int, int],
    products: tuple[Callable[..., Any] | None, ...],
    xp: Namespace,
    device: Device,
) -> Placement | None:
    """The layout that is declared, if it suits the shape, or that of the arrays of the products."""
    if given is None:
        return _shown(products, shape) if lies_in_parts(xp) else None
    if isinstance(given, Placement):
        return given
    if isinstance(given, RowLayout):
        return rows_of(given, shape, xp, device)
    if isinstance(given, tuple) and len(given) == 2 and hasattr(given[0], "get_local_rank"):
        return rows_of_mesh(given, shape, xp, device)
    sizes = isinstance(given, tuple) and all(isinstance(size, int | float) for size in given)
    if sizes and plain(xp) is np_compat:
        return lazy_rows(given, shape, xp, device)
    layout = placement(given, shape, xp)
    if all(size % layout.parts for size in shape):
        more = -(-shape[1] // layout.parts) * layout.parts
        raise ValueError(
            f"`layout` must cut {shape[1]} rows into equal blocks, got one of {layout.parts}; fill "
            f"the operator with zero rows and columns up to {more}, or pass another layout"
        )
    return layout


def laid(A: Array) -> tuple[Array, Placement | None]:
    """A matrix, where operations may cut it freely, and the layout that suits it."""
    A = freely_cut(A)
    return A, placement_of([A], A.shape)


def placed(product: Product, layout: Placement | None) -> Product:
    """The product with a matrix, whose result lies as it should.

    What a matrix that is cut by columns gives lies whole on all devices.
    """
    return product if layout is None else lambda X: layout.place(product(X))


def _shown(products: tuple[Any, ...], shape: tuple[int, int]) -> Placement | None:
    """How the arrays lie that the products hold."""
    held = [thing for product in products for thing in _held(product, _DEPTH)]
    for thing in held:
        if hasattr(thing, "matmat") and isinstance(getattr(thing, "layout", None), Placement):
            return thing.layout  # type: ignore[no-any-return]  # of an operator
    return placement_of(held, shape)


def _held(function: Any, depth: int) -> Iterator[Any]:
    """What a function finds in its closure, in its object, and in functions of these."""
    if depth == 0:
        return
    for part in _parts(function):
        for leaf in leaves(part):
            if callable(leaf):
                yield from _held(leaf, depth - 1)
            else:
                yield leaf


def _parts(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for name in ("__wrapped__", "__self__", "product", "func", "args", "keywords"):
        part = getattr(function, name, None)
        if part is not None:
            yield part
            if name == "__self__" and type(part).__module__ != "builtins":
                yield getattr(part, "__dict__", None)
