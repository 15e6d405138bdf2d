"""Which parameters are chosen, by patterns of their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any


def matching(names: Sequence[str], patterns: Any) -> list[str]:
    """The names that one of the patterns matches, in their order; each pattern has to match."""
    every = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(every, Iterable) or not all(isinstance(each, str) for each in every):
        raise TypeError(
            f"trainable={patterns!r} chooses no parameters; pass True, False, a pattern of names "
            "such as 'blocks.*.attn.*', a submodule, or a list of these"
        )
    every = list(every)
    for pattern in every:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"no parameter is named like {pattern!r}; there are {listed(names)}, and * stands "
                "for anything"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in every)]


def dotted(path: Sequence[Any]) -> str:
    """The name of a leaf of a tree, from its path of keys: such as ``blocks.0.weight``."""
    return ".".join(str(_key(entry)) for entry in path)


def check_name(name: str, names: Iterable[str]) -> None:
    """Refuse a name that there is not."""
    if name not in names:
        raise KeyError(f"there is no parameter {name!r}; there are {listed(list(names))}")


def listed(names: Sequence[str]) -> str:
    """Some of the names, as a text."""
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _key(entry: Any) -> Any:
    return next((getattr(entry, a) for a in ("key", "idx", "name") if hasattr(entry, a)), entry)
