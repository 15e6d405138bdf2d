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
from .operators import (
    KnownQuantity,
    checksum,
    gram_in_chunks,
    memoised,
    operator,
    over_batches,
    over_processes,
    refuse_spent,
)
from .patterns import check_name, dotted, matching
from .processes import agreed, check_rows, held_rows, sharers
from .quadratic import INEXACT, Quadratic, steps

__all__ = [
    "INEXACT",
    "PRODUCTS",
    "Backend",
    "KnownQuantity",
    "Linearised",
    "PerSample",
    "Quadratic",
    "Transforms",
    "agreed",
    "both_parts",
    "check_name",
    "check_rows",
    "checks",
    "checksum",
    "chunk",
    "cut",
    "dotted",
    "generic",
    "gram_in_chunks",
    "held_rows",
    "in_chunks",
    "is_complex_linear",
    "itemsize",
    "matching",
    "memoised",
    "of_samples",
    "operator",
    "over_batches",
    "over_processes",
    "refuse_spent",
    "sharers",
    "steps",
]
