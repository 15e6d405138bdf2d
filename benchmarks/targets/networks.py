"""Networks beyond the kernel: curvature, derivatives by inputs, wide heads, states, projections.

Exact traces and kernels of convolutions are those of `kernels`. Every figure is a ratio of times in
one run, an error or a coverage; each part of each framework is a process of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import kernels
from .table import FIGURES, Row, Table, in_own_process

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = (
    *("curvature", "hessian", "divergence", "heads"),
    *("exact_norms", "recurrent", "projections"),
)


def tables() -> Iterator[Table]:
    """All parts, one after the other."""
    for name in PARTS:
        yield from importlib.import_module(f".{name}", __package__).tables()
    yield Table("Exact traces, and kernels of convolutions: times cheaper", FIGURES, structure())


def structure() -> Iterator[Row]:
    """Judge what the structure of networks saves."""
    for library in ("torch", "jax"):
        for part in ("traces", "convolutions"):
            yield from in_own_process(kernels.part, library, part)
