"""Trace, Frobenius norm and effective rank in one record."""

from __future__ import annotations

from typing import NamedTuple

from .._estimates import Estimate


class SpectralSummary(NamedTuple):
    """Three numbers about a spectrum, from the same products.

    Parameters
    ----------
    trace : Estimate
        Of the trace; ``num_matvecs`` of each of the three is what all three cost together.
    frobenius_norm : Estimate
        Of the Frobenius norm.
    effective_rank : Estimate
        Of the participation ratio.
    """

    trace: Estimate
    frobenius_norm: Estimate
    effective_rank: Estimate


SpectralSummary.__module__ = "tracekit"
