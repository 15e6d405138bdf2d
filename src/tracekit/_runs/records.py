"""Records of arrays and numbers taken apart, for files and for pickling, and put together again."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._arrays import Array, is_array
from .._operators import LinearOperator

PLAIN = (bool, int, float, str, type(None))


def taken_apart(
    record: Any, operators: Sequence[LinearOperator] = ()
) -> tuple[dict[str, Array], Any]:
    """The arrays of a record, by name, and what JSON can hold of the rest.

    A record is a dataclass or named tuple of this package, or a list, tuple or dictionary of such;
    operators in it have to be among those given, and are told by their number.
    """
    arrays: dict[str, Array] = {}

    def told(x: Any) -> Any:
        if isinstance(x, LinearOperator):
            return {"operator": _number_of(x, operators)}
        if isinstance(x, PLAIN) and not isinstance(x, np.generic):  # np.float64 is a float
            return {"float": str(x)} if isinstance(x, float) and x - x != 0 else x
        if isinstance(x, type):
            return {"type": _name_of(x)}
        if dataclasses.is_dataclass(x):
            fields = {f.name: told(getattr(x, f.name)) for f in dataclasses.fields(x) if f.init}
            return {"record": _name_of(type(x)), "fields": fields}
        if hasattr(x, "_asdict"):
            fields = {name: told(y) for name, y in x._asdict().items()}
            return {"record": _name_of(type(x)), "fields": fields}
        if isinstance(x, dict):
            return {"dict": {name: told(y) for name, y in x.items()}}
        if isinstance(x, list | tuple):
            return {type(x).__name__: [told(y) for y in x]}
        if is_array(x) or isinstance(x, np.generic):
            arrays[name := f"a{len(arrays)}"] = x
            return {"array": name}
        raise TypeError(f"a run cannot be kept with a {type(x).__name__} in it")

    return arrays, told(record)


def put_together(
    arrays: Mapping[str, Array],
    told: Any,
    operators: Sequence[LinearOperator] = (),
    place: Callable[[Array], Array] = lambda x: x,
) -> Any:
    """The record that was taken apart, with these operators; `place` moves its arrays."""

    def made(x: Any) -> Any:
        if isinstance(x, PLAIN):
            return x
        ((kind, inside), *more) = x.items()
        if kind == "operator":
            return operators[inside]
        if kind == "float":
            return float(inside)
        if kind == "array":
            return place(arrays[inside])
        if kind == "type":
            return _of_name(inside)
        if kind == "record":
            fields = {name: made(y) for name, y in more[0][1].items()}
            return _of_name(inside)(**fields)
        if kind == "dict":
            return {name: made(y) for name, y in inside.items()}
        return {"list": list, "tuple": tuple}[kind](made(y) for y in inside)

    return made(told)


def _number_of(A: LinearOperator, operators: Sequence[LinearOperator]) -> int:
    for i, B in enumerate(operators):
        if A is B:
            return i
    raise TypeError("a run cannot be kept with an operator in it that was made on the way")


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _of_name(name: str) -> Any:
    """A class of this package, and of no other: a file may come from anywhere."""
    module, _, path = name.partition(":")
    if module.partition(".")[0] not in ("tracekit", "tracekit_ntk") or "." in path:
        raise ValueError(f"{name!r} is no record of this package")
    found = getattr(importlib.import_module(module), path)
    if not isinstance(found, type):
        raise ValueError(f"{name!r} is no record of this package")
    return found
