"""What probes were drawn, as text that tells them from others."""

from __future__ import annotations

from .._arrays import Probes, dtype_name
from .source import Source


def of_columns(probes: Probes, source: Source, n: int, m: int, most: int) -> list[str]:
    """The first m columns of a stream of at most so many: with the seed, all that they depend on.

    Nothing is said of a distribution of the caller's, which a name does not tell from others.
    """
    if getattr(probes, "itself", None) is not probes:
        return []
    name, kind = getattr(probes, "__name__", ""), "seed" if source.is_seeded else "generator"
    count = f"{m} of {most}" if getattr(probes, "joint", False) else m
    return [f"{count} {name} probes of dimension {n}, {dtype_name(source.dtype)}, of a {kind}"]
