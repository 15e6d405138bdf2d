"""Where estimates come from: what drew their probes, and of what quantity they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from .._arrays import constant, fingerprint, is_traced, real, to_number
from .estimate import Estimate

P = ParamSpec("P")
T = TypeVar("T")

ASKED = (
    "f",
    "p",
    "ridge",
    "ridges",
    "y",
    "beta",
    "betas",
    "dims",
    "axis",
)  # arguments that say which quantity is estimated


def with_origin(estimator: Callable[P, T]) -> Callable[P, T]:
    """The estimator, whose estimates remember where they come from."""
    names = list(signature(estimator).parameters)

    @wraps(estimator)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        drawn = fingerprint(kwargs.get("rng"))  # a generator has moved on afterwards
        found = estimator(*args, **kwargs)
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        origin: dict[str, Any] = {"draws": [] if drawn is None else [drawn]}
        shape = getattr(given.get(names[0]), "shape", None)
        if shape is not None:
            origin["shape"] = list(shape)
        origin |= {name: _as_text(given[name]) for name in ASKED if name in given}
        if callable(given.get("f")) and isinstance(found, Estimate):
            origin["f"] += _values(given["f"], found.value)
        stamped: T = _stamped(found, origin)
        return stamped

    return call


def of_probes(found: Estimate, probes: list[str]) -> Estimate:
    """The estimate, with what its samples are of: one of each of these probes, in their order."""
    return replace(found, origin=(found.origin or {}) | {"probes": probes}) if probes else found


def _stamped(found: Any, origin: dict[str, Any]) -> Any:
    if isinstance(found, Estimate):
        return of_probes(replace(found, origin=origin), (found.origin or {}).get("probes", []))
    if isinstance(found, tuple):  # of several estimates
        return type(found)(*(_stamped(part, origin) for part in found))
    return found


def _as_text(x: Any) -> str:
    return str(getattr(x, "__name__", x))


def _values(f: Callable[[Any], Any], like: Any) -> str:
    """What tells functions of one name apart: some values, where they are known."""
    if is_traced(like):
        return ""
    try:
        y = f(constant(like) * 0.0 + 0.75)
        return f" ({to_number(real(y)).real:.5g} at 0.75)"
    except Exception:  # it may be defined elsewhere alone
        return ""
