"""What a variable of a jaxpr shows of one parameter: where its entries lie in that parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tracekit._arrays import Array


class Axis(NamedTuple):
    """Entries of a parameter in a row: how many, and how far apart in the flat parameter."""

    length: int
    stride: int


@dataclass(frozen=True)
class View:
    """A parameter seen through transposes, reshapes, slices, casts, and times a scalar.

    `layers` are the loops that go over the parameter slice by slice: the depth of the loop, and
    the axis it takes. `placeholder` is an array of the view's shape whose memory is neither written
    nor read: its strides alone are of use. `apply` takes the parameter to the view of all layers.
    """

    leaf: int
    placeholder: np.ndarray[Any, Any]
    address: int
    apply: Callable[[Array], Array]
    layers: tuple[tuple[int, Axis], ...] = ()
    scale: Array | None = None

    @property
    def offset(self) -> int:
        """Where the first entry lies in the flat parameter."""
        return _address(self.placeholder) - self.address

    @property
    def axes(self) -> list[Axis]:
        """The axes of the view, without layers."""
        pairs = zip(self.placeholder.shape, self.placeholder.strides, strict=True)
        return [Axis(length, stride if length > 1 else 0) for length, stride in pairs]

    def layer(self, depth: int) -> View:
        """What one step of the loop of that depth sees, which goes over the first axis."""
        taken = (depth, Axis(self.placeholder.shape[0], self.placeholder.strides[0]))
        return replace(self, placeholder=self.placeholder[0, ...], layers=(*self.layers, taken))

    def times(self, factor: Array) -> View:
        """The view times a scalar."""
        return replace(self, scale=factor if self.scale is None else self.scale * factor)


def whole(leaf: int, shape: Sequence[int]) -> View:
    """The view of all of a parameter."""
    placeholder = np.empty(shape, np.int8)
    return View(leaf, placeholder, _address(placeholder), lambda parameter: parameter)


def look_through(eqn: Any, view: View) -> list[View] | None:
    """What the results of an equation show, if it but moves, repeats or casts entries."""
    name, params = eqn.primitive.name, eqn.params
    if name not in _MOVES or not _same_field(eqn):
        return None
    moved = _MOVES[name](view.placeholder, params)
    if not all(np.may_share_memory(part, view.placeholder) for part in moved):
        return None  # NumPy had to copy: no strides describe it

    def shows(k: int) -> Callable[[Array], Array]:
        def step(value: Array) -> Array:
            out = eqn.primitive.bind(value, **params)
            return out[k] if eqn.primitive.multiple_results else out

        for _ in view.layers:
            step = jax.vmap(step)
        return lambda parameter: step(view.apply(parameter))

    return [replace(view, placeholder=part, apply=shows(k)) for k, part in enumerate(moved)]


def contiguous(axes: Sequence[Axis]) -> bool:
    """Whether entries lie one after the other in this order of axes."""
    expected = 1
    for length, stride in reversed(axes):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


class Place(NamedTuple):
    """Where an outer product lies in the parameter, see `Outer`; spread over more rows if given."""

    input_first: bool
    start: int
    apart: int = 1  # leading parts of the outputs, of which each is a group with the same inputs
    rows: np.ndarray[Any, Any] | None = None
    columns: np.ndarray[Any, Any] | None = None
    shape: tuple[int, int] = (0, 0)


def place(
    view: View, shape: Sequence[int], g: Sequence[Axis], d: Sequence[Axis], w: Sequence[Axis]
) -> Place | None:
    """The place of (groups, inputs, outputs) in the parameter; None if they do not factor there."""
    if contiguous([*g, *d, *w]):
        return Place(True, view.offset)
    if contiguous([*g, *w, *d]):
        return Place(False, view.offset)
    for k in range(1, len(w)):
        if contiguous([*g, *w[:k], *d, *w[k:]]):
            return Place(True, view.offset, math.prod(axis.length for axis in w[:k]))
    if math.prod(axis.length for axis in g) > 1:
        return None
    at_d, at_w = _positions(d), _positions(w)
    for cut in range(1, len(shape)):  # a slice of a matrix: spread over the rows and columns of it
        matrix = math.prod(shape[:cut]), math.prod(shape[cut:])
        for input_first, at_rows, at_columns in ((True, at_d, at_w), (False, at_w, at_d)):
            row, column = divmod(view.offset, matrix[1])
            rows, rest = np.divmod(at_rows, matrix[1])
            columns = at_columns + column
            if not rest.any() and columns.min() >= 0 and columns.max() < matrix[1]:
                rows = rows + row
                if len(np.unique(rows)) == len(rows) and len(np.unique(columns)) == len(columns):
                    return Place(input_first, 0, 1, rows, columns, matrix)
    return None


def _positions(axes: Sequence[Axis]) -> np.ndarray[Any, Any]:
    """Where the entries of some axes lie, in C order."""
    at = np.zeros(1, np.int64)
    for length, stride in axes:
        at = (at[:, None] + stride * np.arange(length)).reshape(-1)
    return at


def _address(x: np.ndarray[Any, Any]) -> int:
    return int(x.__array_interface__["data"][0])


def _same_field(eqn: Any) -> bool:
    """Whether results are floating-point as the operand is, both real or both complex."""
    source = eqn.invars[0].aval.dtype
    return all(
        jnp.issubdtype(v.aval.dtype, jnp.inexact)
        and jnp.issubdtype(v.aval.dtype, jnp.complexfloating)
        == jnp.issubdtype(source, jnp.complexfloating)
        for v in eqn.outvars
    )


def _broadcast(a: np.ndarray[Any, Any], shape: Sequence[int], axes: Sequence[int]) -> Any:
    spread = [1] * len(shape)
    for length, axis in zip(a.shape, axes, strict=True):
        spread[axis] = length
    return np.broadcast_to(a.reshape(spread), shape)


def _slice(a: np.ndarray[Any, Any], p: dict[str, Any]) -> Any:
    strides = p["strides"] or (1,) * a.ndim
    return a[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]


_MOVES: dict[str, Callable[[Any, dict[str, Any]], list[Any]]] = {
    "broadcast_in_dim": lambda a, p: [_broadcast(a, p["shape"], p["broadcast_dimensions"])],
    "convert_element_type": lambda a, p: [a],
    "copy": lambda a, p: [a],
    "name": lambda a, p: [a],
    "reshape": lambda a, p: [a.reshape(p["new_sizes"])],
    "rev": lambda a, p: [np.flip(a, p["dimensions"])],
    "slice": lambda a, p: [_slice(a, p)],
    "split": lambda a, p: np.split(a, np.cumsum(p["sizes"])[:-1], p["axis"]),
    "squeeze": lambda a, p: [a.squeeze(p["dimensions"])],
    "transpose": lambda a, p: [a.transpose(p["permutation"])],
}
