"""What an engine must offer, and what its derivatives share."""

from . import checks
from .backend import Backend
from .chunks import chunk, cut, in_chunks, itemsize
from .linearised import (
    PRODUCTS,
    Linearised,
    PerSample,
    Transforms,
    both_parts,
    generic,
    is_complex_linear,
    of_samples,
)
from .patterns import check_name, dotted, matching

__all__ = [
    "PRODUCTS",
    "Backend",
    "Linearised",
    "PerSample",
    "Transforms",
    "both_parts",
    "check_name",
    "checks",
    "chunk",
    "cut",
    "dotted",
    "generic",
    "in_chunks",
    "is_complex_linear",
    "itemsize",
    "matching",
    "of_samples",
]
