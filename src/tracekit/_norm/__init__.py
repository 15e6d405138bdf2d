"""Norms, effective ranks and alignments."""

from .alignment import alignment, inner, target_alignment
from .one_sided import one_sided_alignment, one_sided_summary
from .spectral_summary import effective_rank, frobenius_norm, spectral_summary
from .summary import SpectralSummary

__all__ = [
    "SpectralSummary",
    "alignment",
    "effective_rank",
    "frobenius_norm",
    "inner",
    "one_sided_alignment",
    "one_sided_summary",
    "spectral_summary",
    "target_alignment",
]
