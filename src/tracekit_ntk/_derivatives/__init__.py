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
from .processes import agreed, check_rows, held_rows, sharers

__all__ = [
    "PRODUCTS",
    "Backend",
    "Linearised",
    "PerSample",
    "Transforms",
    "agreed",
    "both_parts",
    "check_name",
    "check_rows",
    "checks",
    "chunk",
    "cut",
    "dotted",
    "generic",
    "held_rows",
    "in_chunks",
    "is_complex_linear",
    "itemsize",
    "matching",
    "of_samples",
    "sharers",
]
