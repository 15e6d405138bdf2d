"""Validates the public face's docstrings by numpydoc, with the checks named in pyproject.toml."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType

from numpydoc.hooks.validate_docstrings import parse_config
from numpydoc.validate import validate

FACES = ("tracekit", "tracekit.testing", "tracekit_ntk")


def public_paths(module: ModuleType) -> Iterator[str]:
    """Yield the import paths of what a module exports, and of its classes' public members."""
    for name in module.__all__:
        value, path = getattr(module, name), f"{module.__name__}.{name}"
        if inspect.ismodule(value):
            yield from public_paths(value)
        elif inspect.isclass(value) or inspect.isroutine(value):
            yield path
        if inspect.isclass(value):
            for member, attribute in vars(value).items():
                if member[0] != "_" and isinstance(attribute, FunctionType | property):
                    yield f"{path}.{member}"


def main() -> int:
    checks = parse_config(".")["checks"]
    paths = {path for face in FACES for path in public_paths(importlib.import_module(face))}
    faults = [
        f"{path}: {code} {text}"
        for path in sorted(paths)
        for code, text in validate(path)["errors"]
        if code in checks
    ]
    print(*faults, f"{len(paths)} public docstrings, {len(faults)} faults", sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
