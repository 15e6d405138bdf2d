"""What functions of samples must be like to have derivatives sample by sample."""

from __future__ import annotations

from typing import Any, NoReturn

from tracekit._arrays import Array, is_array, is_finite, namespace

from .._derivatives import checks as arguments


def batch(x: Any) -> None:
    """Refuse samples that nothing can be differentiated by, or that are none."""
    if not is_array(x):
        raise TypeError(
            f"`x` must be one array, got {type(x).__name__}; pass the samples along axis 0 of an "
            "array of PyTorch or JAX, and close over everything else"
        )
    if not namespace(x).isdtype(x.dtype, "real floating"):
        raise TypeError(
            f"`x` must be of real floating-point numbers, got {x.dtype}; pass complex numbers as "
            "their real and imaginary parts, along an axis of their own, and integers as floats"
        )
    if len(x.shape) < 2 or 0 in x.shape:
        raise ValueError(
            f"`x` must be of shape (N, D) or (N, ...), got {tuple(x.shape)}; pass samples along "
            "axis 0, a single point as x[None]"
        )


def budget(num_matvecs: Any) -> None:
    """Refuse what is no number of products, nor None for the exact value."""
    if num_matvecs is not None:
        arguments.positive("num_matvecs", num_matvecs)


def values(y: Any, shape: tuple[int, ...], name: str) -> None:
    """Refuse outputs that are not one real array of this shape."""
    if not is_array(y):
        raise TypeError(
            f"{name} returned a {type(y).__name__}, not one array; return the array of shape "
            f"{tuple(shape)} alone"
        )
    if not namespace(y).isdtype(y.dtype, "real floating"):
        raise TypeError(
            f"{name} returned dtype {y.dtype}, of which there is no trace here; return real "
            "floating-point numbers, complex ones as their real and imaginary parts"
        )
    if tuple(y.shape) != tuple(shape):
        raise ValueError(
            f"{name} returned shape {tuple(y.shape)}, where {tuple(shape)} is needed; return one "
            f"{'number' if len(shape) == 1 else 'vector of the shape of a sample'} for every sample"
        )


def finite(y: Array, name: str) -> None:
    """Refuse values that have no derivative."""
    if not is_finite(y):
        raise ValueError(
            f"{name} is NaN or infinite at some of these samples, where it has no derivative; look "
            "at the samples and parameters first"
        )


def independent(deviation: float, name: str) -> NoReturn:
    """Refuse functions that mix samples."""
    raise ValueError(
        f"{name} of a sample depends on what the other samples are, or on chance (by "
        f"{deviation:.1e} of the largest), as with BatchNorm or dropout in training mode, so that "
        "samples have no derivatives of their own; put the module in eval mode, or draw noise once "
        "and close over it"
    )
