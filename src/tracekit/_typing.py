"""Names for the things that every room handles."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

Array: TypeAlias = Any  # until the array API standard has a typed protocol
DType: TypeAlias = Any
Device: TypeAlias = Any
Namespace: TypeAlias = ModuleType
Rng: TypeAlias = Any  # None, an int, or a generator of NumPy, torch, JAX or CuPy
Product: TypeAlias = Callable[[Array], Array]
Probes: TypeAlias = Callable[..., Array]  # (source, n, m) -> (n, m)
