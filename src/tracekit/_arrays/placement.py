"""How tall arrays lie over devices: one record an engine, read off what the caller holds."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Protocol, runtime_checkable

import array_api_compat
import numpy as np

from .libraries import Array, Namespace, Space, is_traced


@runtime_checkable
class Placement(Protocol):
    """How arrays (n, k) of many rows and few columns lie; one class an engine.

    What has other numbers of rows than the operator that it was declared for stays as it is.
    """

    @property
    def parts(self) -> int:
        """Blocks of rows, all of one size."""

    @property
    def declared(self) -> bool:
        """Whether the caller said so: results of products are then held to it."""

    def place(self, X: Array) -> Array:
        """`X`, which may be NumPy's, where it belongs."""

    def create(self, draw: Callable[..., Array], number: int, *arrays: Array) -> Array:
        """``draw(number, *arrays)``, each part made where it belongs; programs are kept."""

    def assemble(self, shape: tuple[int, int], part: Callable[[range], Array]) -> Array:
        """An array of what `part` draws on the host: of each part its rows alone."""

    def rows(self, n: int) -> Array:
        """The numbers of n rows as a column (n, 1) where it belongs."""

    def complaint(self, Y: Array) -> str | None:
        """How `Y` lies, if that is otherwise."""


@dataclass(frozen=True)
class JaxPlacement:
    """Arrays of JAX that lie as a `jax.sharding.Sharding` of arrays (n, k) says.

    Over an abstract mesh, which is all that traced arrays know, the compiler chooses.
    """

    sharding: Any
    sizes: tuple[int, ...]  # numbers of rows of tall arrays
    declared: bool = True

    @property
    def parts(self) -> int:
        """Blocks of rows; as many as devices, where the compiler chooses."""
        devices = int(self.sharding.num_devices)
        if self._is_abstract:
            return devices
        return devices // int(self.sharding.shard_shape((devices, devices))[0])

    def place(self, X: Array) -> Array:
        """`X` where it belongs; by the compiler in compiled code."""
        import jax

        if not self._cuts(X.shape):
            return jax.numpy.asarray(X)
        compiled = is_traced(jax.numpy.zeros(()))
        if compiled or (is_traced(X) and not self._is_abstract):
            return jax.lax.with_sharding_constraint(jax.numpy.asarray(X), self.sharding)
        if self._is_abstract:
            return jax.numpy.asarray(X)
        if isinstance(X, np.ndarray):  # no process compares the whole of it with that of others
            return jax.make_array_from_callback(X.shape, self.sharding, lambda part: X[part])
        return jax.device_put(X, self.sharding)

    def assemble(self, shape: tuple[int, int], part: Callable[[range], Array]) -> Array:
        """An array of what `part` draws on the host, for each device of this process its rows."""
        import jax

        if self._is_abstract or not self._cuts(shape):
            return jax.numpy.asarray(part(range(shape[0])))
        drawn = cache(part)  # where several devices hold the same rows

        def held(index: tuple[slice, ...]) -> Array:
            return drawn(range(shape[0])[index[0]])[:, index[1]]

        return jax.make_array_from_callback(shape, self.sharding, held)

    def rows(self, n: int) -> Array:
        """The numbers of n rows as a column where it belongs."""
        return self.create(_row_numbers, n)

    def create(self, draw: Callable[..., Array], number: int, *arrays: Array) -> Array:
        """``draw(number, *arrays)``; compiled, so that every device makes its own part."""
        import jax

        if is_traced(jax.numpy.zeros(())) or any(is_traced(x) for x in arrays) or self._is_abstract:
            return self.place(draw(number, *arrays))
        shape = jax.eval_shape(lambda *x: draw(number, *x), *arrays).shape
        return _compiled(draw, number, self.sharding if self._fits(shape) else None)(*arrays)

    def complaint(self, Y: Array) -> str | None:
        """How `Y` lies, if that is otherwise; nothing where that is not known yet."""
        if is_traced(Y) or self._is_abstract or not self._fits(Y.shape):
            return None
        if Y.sharding.is_equivalent_to(self.sharding, Y.ndim):
            return None
        return f"{_words(Y.sharding)}, where layout= says {_words(self.sharding)}"

    @property
    def _is_abstract(self) -> bool:
        from jax.sharding import AbstractMesh

        return isinstance(getattr(self.sharding, "mesh", None), AbstractMesh)

    def _cuts(self, shape: tuple[int, ...]) -> bool:
        return shape[0] in self.sizes and self._fits(shape)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) != 2:
            return False
        if self._is_abstract:
            return True
        try:
            self.sharding.shard_shape(shape)
        except ValueError:
            return False
        return True


def _row_numbers(n: int) -> Array:
    import jax

    return jax.numpy.arange(n)[:, None]


@lru_cache(maxsize=64)
def _compiled(draw: Callable[..., Array], number: int, sharding: Any) -> Callable[..., Array]:
    import jax

    program: Callable[..., Array] = jax.jit(
        lambda *arrays: draw(number, *arrays), out_shardings=sharding
    )
    return program


def _words(sharding: Any) -> str:
    cut = getattr(sharding, "spec", "the whole on each")
    return f"{cut} on {len(sharding.device_set)} devices"


def placement(given: Any, sizes: tuple[int, ...], xp: Namespace) -> Placement:
    """What the caller says of where tall arrays lie, as a record."""
    if isinstance(given, Placement):
        return given
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(given, jax.sharding.Sharding):
        if not array_api_compat.is_jax_namespace(xp):
            raise TypeError(
                f"`layout` must be of the operator's library, got {type(given).__name__} for "
                f"{xp.__name__}; pass xp=jax.numpy, or no layout"
            )
        _require_auto(getattr(given, "mesh", None), tuple(getattr(given, "spec", ())))
        return JaxPlacement(_of_two_axes(given), sizes)
    raise TypeError(
        "`layout` must be a jax.sharding.Sharding of arrays (n, k), (DeviceMesh, placements) of "
        f"PyTorch, sizes of chunks of dask, or a RowLayout, got {type(given).__name__}; pass one, "
        "such as NamedSharding(mesh, PartitionSpec('data', None)), or None"
    )


def placement_of(arrays: Iterable[Any], sizes: tuple[int, ...]) -> Placement | None:
    """How those arrays lie that are cut along an axis of one of these sizes, if any is.

    Of a matrix that is cut along both axes, tall arrays are cut by all of its mesh. Of arrays that
    are traced only the mesh is known.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    spec, hint = jax.sharding.PartitionSpec, None
    for x in arrays:
        if not isinstance(x, jax.Array):
            continue
        sharding = jax.typeof(x).sharding if is_traced(x) else x.sharding
        mesh = getattr(sharding, "mesh", None)
        if mesh is None or not set(sizes) & set(x.shape):
            continue
        cut = tuple(zip(x.shape, sharding.spec, strict=False))
        axes = tuple(name for size, entry in cut for name in _axes(entry) if size in sizes)
        _require_auto(mesh, axes)
        if axes and not is_traced(x):
            rows = jax.sharding.NamedSharding(mesh, spec(axes, None))
            return JaxPlacement(rows, sizes, declared=False)
        if is_traced(x) and _free_devices(mesh) > 1:
            free = spec(spec.UNCONSTRAINED, spec.UNCONSTRAINED)
            hint = JaxPlacement(jax.sharding.NamedSharding(mesh, free), sizes, declared=False)
    return hint


def freely_cut(A: Array) -> Array:
    """The same array, in the same memory, on a mesh of axes that operations may cut freely."""
    mesh = None if is_traced(A) else getattr(getattr(A, "sharding", None), "mesh", None)
    if mesh is None or not array_api_compat.is_jax_array(A):
        return A
    jax = sys.modules["jax"]
    auto = jax.sharding.AxisType.Auto
    if all(kind == auto for kind in mesh.axis_types):
        return A
    mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=(auto,) * mesh.devices.ndim)
    return jax.device_put(A, jax.sharding.NamedSharding(mesh, A.sharding.spec))


def unit_columns(space: Space, n: int, width: int, start: int = 0) -> Array:
    """Coordinate vectors of n entries from one on, where the arrays of a space lie."""
    xp, layout = space.xp, getattr(space, "layout", None)
    if layout is None:
        return xp.eye(n, width, k=-start, dtype=space.dtype, device=space.device)
    columns = xp.arange(start, start + width)[None, :]
    return xp.astype(layout.rows(n) == columns, space.dtype)


def lies_in_parts(xp: Namespace) -> bool:
    """Whether arrays of a library can lie on several devices here."""
    return array_api_compat.is_jax_namespace(xp) and sys.modules["jax"].device_count() > 1


def row_blocks(Y: Array) -> int:
    """Blocks of rows that a tall array (..., n, k) lies in; devices, where it is traced."""
    if not array_api_compat.is_jax_array(Y):
        return 1
    if is_traced(Y):
        return _free_devices(sys.modules["jax"].typeof(Y).sharding.mesh)
    return int(Y.shape[-2] // max(Y.sharding.shard_shape(Y.shape)[-2], 1))


def leaves(tree: Any) -> list[Any]:
    """What a tree of arrays holds, where JAX is loaded."""
    jax = sys.modules.get("jax")
    return [] if jax is None else jax.tree.leaves(tree)


def _of_two_axes(sharding: Any) -> Any:
    """The same for arrays (n, k), where it was written for vectors."""
    spec = getattr(sharding, "spec", None)
    if spec is None or len(spec) == 2:
        return sharding
    jax = sys.modules["jax"]
    if len(spec) > 2:
        raise ValueError(
            f"`layout` must be for arrays of two axes (n, k), got {spec}; pass PartitionSpec("
            f"{spec[0]!r}, None)"
        )
    spec = jax.sharding.PartitionSpec(*spec, *(None,) * (2 - len(spec)))
    return jax.sharding.NamedSharding(sharding.mesh, spec)


def _axes(entry: Any) -> tuple[str, ...]:
    """Axes of a mesh that cut an axis of an array."""
    return (entry,) if isinstance(entry, str) else tuple(entry) if isinstance(entry, tuple) else ()


def _free_devices(mesh: Any) -> int:
    """Devices along the axes of a mesh that the compiler chooses for."""
    auto = sys.modules["jax"].sharding.AxisType.Auto
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in kinds if kind == auto)


def _require_auto(mesh: Any, axes: tuple[Any, ...]) -> None:
    """Refuse arrays that are cut along axes where JAX asks of every operation how its result is."""
    explicit = sys.modules["jax"].sharding.AxisType.Explicit
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)) if mesh is not None else {}
    if any(kinds[name] == explicit for entry in axes for name in _axes(entry)):
        raise ValueError(
            "arrays must be cut along Auto axes of a mesh, got Explicit ones, which jax.make_mesh "
            "makes by default; make the mesh with axis_types=(jax.sharding.AxisType.Auto,) and "
            "move them there by jax.device_put, or compile by jax.sharding.auto_axes"
        )
