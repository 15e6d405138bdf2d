"""Estimates as text, as plain numbers, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .._arrays import Array, RowArray, dtype_name, is_complex, to_host, to_number

NEEDED = "value", "standard_error", "num_matvecs", "method", "converged", "reason", "dtype", "dof"
ARRAYS = "skewness", "slope", "slope_error"


def rounded(value: complex, error: float) -> str:
    """The value to two digits of its error."""
    plain = value.real if value.imag == 0 else value
    if not (math.isfinite(error) and error > 0):
        return f"{plain:.10g} +- {error:.2g}" if error else f"{plain!r} +- 0.0"
    size = max(abs(value.real), abs(value.imag))
    places = math.floor(math.log10(max(size, error))) - math.floor(math.log10(error))
    digits = min(places + 2, 16)
    shown = f"{plain:.0f}" if error >= 10 and size < 1e16 else f"{plain:.{digits}g}"
    return f"{shown} +- {error:.2g}"


def entries(samples: Array) -> Iterator[Array]:
    """Numbers, one by one."""
    return (samples[i] for i in range(samples.shape[0]))


def plain(x: Array) -> Any:
    """What JSON can hold."""
    x = to_host(x) if isinstance(x, RowArray) else x
    if getattr(x, "ndim", 0):
        return [plain(x[i]) for i in range(x.shape[0])]
    value = to_number(x)
    number = [value.real, value.imag] if is_complex(x) else value.real
    return number if math.isfinite(abs(value)) else None


def to_dict(estimate: Any, parts: type[Any]) -> dict[str, Any]:
    """Values that JSON can hold; of what is kept, only the parts of the error."""
    held = {name: getattr(estimate, name) for name in NEEDED if name != "dtype"}
    held |= {name: plain(held[name]) for name in ("value", "standard_error")}
    held["dtype"] = dtype_name(getattr(estimate.value, "dtype", "float64"))
    held |= {name: _plain(getattr(estimate, name)) for name in ARRAYS}
    kept = estimate.kept
    held["kept"] = _of_parts(kept) if isinstance(kept, parts) else None
    return held | {"origin": estimate.origin}


def from_dict(held: Any, estimate: type[Any], parts: type[Any], certified: type[Any]) -> Any:
    """The estimate that a dictionary tells of, in NumPy."""
    absent = [name for name in NEEDED if not isinstance(held, Mapping) or name not in held]
    if absent:
        raise ValueError(
            f"the dictionary of an estimate must hold {absent[0]!r}; pass what "
            "`Estimate.to_dict` of this version gave"
        )
    try:
        dtype = np.dtype(held["dtype"])
        real = np.empty(0, dtype).real.dtype
        arrays = {name: _read(held.get(name), dtype if name == "slope" else real)
                  for name in ARRAYS}  # fmt: skip
        return estimate(
            _read(held["value"], dtype),
            _read(held["standard_error"], real, math.inf),
            int(held["num_matvecs"]),
            str(held["method"]),
            converged=bool(held["converged"]),
            dof=int(held["dof"]),
            reason=str(held["reason"]),
            **arrays,
            kept=_parts(held.get("kept"), real, parts, certified),
            origin=held.get("origin"),
        )
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(
            f"the dictionary of an estimate holds something unreadable ({error}); pass what "
            "`Estimate.to_dict` gave"
        ) from None


def _plain(x: Array | None) -> Any:
    return None if x is None else plain(x)


def _of_parts(kept: Any) -> dict[str, Any]:
    held = {name: _plain(x) for name, x in kept._asdict().items() if name != "certified"}
    record = kept.certified
    told = None if record is None else {
        name: x if isinstance(x, int) else plain(x) for name, x in record._asdict().items()
    }  # fmt: skip
    return held | {"certified": told}


def _parts(held: Any, real: Any, parts: type[Any], certified: type[Any]) -> Any:
    if held is None:
        return None
    record = held.get("certified")
    if record is not None:
        record = certified(**{
            name: x if name in ("n", "probes") else _read(x, real) for name, x in record.items()
        })  # fmt: skip
    errors = (_read(held[name], real, math.inf) for name in ("monte_carlo", "quadrature"))
    return parts(*errors, solves=_read(held.get("solves"), real), certified=record)


def _read(x: Any, dtype: Any, missing: float = math.nan) -> Any:
    """An array of numbers, which None stands for where they are not finite."""
    if x is None and math.isnan(missing):
        return None
    found = np.asarray(x, dtype=np.float64)
    found = np.where(np.isnan(found), missing, found)
    if dtype.kind == "c":
        found = found[..., 0] + 1j * found[..., 1]
    return found.astype(dtype)[()]
