"""Combinations of a sample's outputs, as cotangents of one reverse pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit._arrays import Array, device_of, is_array, namespace

from ..factors import Capture
from .output_axes import zeros


def cotangent_columns(found: Capture, params: Any, cotangent: Any) -> Array:
    """One combination of the outputs of each sample, (N, O, 1), in the parameters' dtype."""
    like = zeros(params, ())
    xp, shape = namespace(like), found.output_shape
    if not is_array(cotangent):
        cotangent = xp.asarray(cotangent, device=device_of(like))
    if tuple(cotangent.shape) not in (shape, (found.samples, *shape)):
        raise ValueError(
            f"`cotangent` must be of the output's shape {shape} of a sample, or of "
            f"{(found.samples, *shape)} of all of them, got {tuple(cotangent.shape)}; pass an "
            "array of either shape"
        )
    kinds = [namespace(x).isdtype(x.dtype, "complex floating") for x in (cotangent, like)]
    if kinds == [True, False]:
        raise ValueError(
            "`cotangent` must be real where the parameters are, got complex numbers; combine real "
            "and imaginary parts of the outputs one after the other"
        )
    V = xp.asarray(cotangent, dtype=like.dtype, device=device_of(like))
    V = xp.broadcast_to(V, (found.samples, *shape))
    return xp.reshape(V, (found.samples, found.outputs, 1))


def of_each(cotangent: Any, x2: Any, axes: int) -> tuple[Any, Any]:
    """The cotangents of both batches; of every sample only where it is said whose they are."""
    if isinstance(cotangent, tuple):
        if len(cotangent) != 2 or x2 is None:
            raise ValueError(
                f"a tuple of {len(cotangent)} cotangents must be two, of x1 and of x2; pass one "
                "array where there is no x2"
            )
        return cotangent
    if x2 is not None and len(np.shape(cotangent)) > axes:
        raise ValueError(
            "`cotangent` names samples, but not whose: x2 is given; pass a tuple of two arrays, of "
            "x1 and of x2"
        )
    return cotangent, cotangent
