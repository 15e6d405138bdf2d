"""Independent runs of one estimator as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations
from operator import add
from typing import Any

from .._arrays import (
    Array,
    abs2,
    device_of,
    dtype_name,
    eps_of,
    is_traced,
    magnitude,
    namespace,
    positive,
    real,
)
from .certified import Certified
from .estimate import ErrorParts, Estimate
from .samples import doubt

# leave-one-out estimates and their like, whose variance falls as the square of the products
SHARED = {
    *("xtrace", "xnystrace", "xdiag", "xnysdiag", "frobenius_norm", "spectral_summary"),
    *("inner", "alignment", "target_alignment"),
}


def merged(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several estimates, weighted by what each has spent and not by its error."""
    _refuse_others(estimates)
    if len(estimates) == 1:
        return estimates[0]
    first = estimates[0]
    if first.method == "frobenius_norm":  # squares are what is unbiased
        return _root(merged([_square(e) for e in estimates]))
    if first.method in SHARED:
        weights = [_weight(e) for e in estimates]
        return _finished(_mean_of_shared(estimates, _shares(weights)), estimates, sum(weights))
    return _finished(_mean_of_samples(estimates), estimates)


def _mean_of_shared(estimates: Sequence[Estimate], shares: list[float]) -> Estimate:
    """Errors in squares: what is in a run's error is more than the spread of its samples."""
    value = _total(w * e.value for w, e in zip(shares, estimates, strict=True))
    unit = _unit(estimates)
    square = _total(
        abs2(w * (e.standard_error / unit)) for w, e in zip(shares, estimates, strict=True)
    )
    error = namespace(square).sqrt(square) * unit
    dof = sum(e.dof for e in estimates)
    return replace(_with_samples(estimates, shares), value=value, standard_error=error, dof=dof)


def _mean_of_samples(estimates: Sequence[Estimate]) -> Estimate:
    """As of all samples together, by count, mean, square and cube of each run.

    By Chan, Golub, LeVeque (1983), Am. Stat. 37, doi:10.1080/00031305.1983.10483115.
    """
    counts = [e.dof + 1 for e in estimates]
    total, shares, unit = sum(counts), _shares(counts), _unit(estimates)
    value = _total(w * e.value for w, e in zip(shares, estimates, strict=True))
    xp, steps = namespace(value), [(e.value - value) / unit for e in estimates]
    squares = [_squares(e, k, unit) for e, k in zip(estimates, counts, strict=True)]
    rest = _total(s + k * abs2(d) for s, k, d in zip(squares, counts, steps, strict=True))
    error = xp.sqrt(rest / (total * (total - 1))) * unit
    if max(counts) == 1:  # equal samples may be so by chance
        tied = rest <= total * (64 * eps_of(rest) * xp.abs(value / unit)) ** 2
        error = xp.where(tied, error + doubt(0.75 ** (total - 1)), error)
    squares = [xp.where(xp.isfinite(s), s, xp.zeros_like(s)) for s in squares]
    cubes = [
        None if e.skewness is None
        else e.skewness * s**1.5 / k**0.5 + 3 * real(d) * s + k * real(d) ** 3
        for e, k, s, d in zip(estimates, counts, squares, steps, strict=True)
    ]  # fmt: skip
    third, skewness = _total_of_known(cubes), None
    if third is not None:
        skewness = third / total / positive(rest / total) ** 1.5
        skewness = xp.where(xp.isfinite(skewness), skewness, xp.zeros_like(skewness))
    found = _with_samples(estimates, shares)
    return replace(found, value=value, standard_error=error, dof=total - 1, skewness=skewness)


def _squares(estimate: Estimate, count: int, unit: Array) -> Array:
    """The sum of squared deviations that a standard error tells of; of one sample, none."""
    error = estimate.standard_error
    if isinstance(estimate.kept, ErrorParts):
        error = estimate.kept.monte_carlo
    if count == 1:
        return namespace(error).zeros_like(error)
    return abs2(error / unit) * (count * (count - 1))


def _with_samples(estimates: Sequence[Estimate], shares: list[float]) -> Estimate:
    """What is no mean: products, samples where they are averaged alike, and the slope."""
    first, samples = estimates[0], [e.samples for e in estimates]
    sizes = [0 if x is None else x.shape[-1] for x in samples]
    joined = None
    if all(sizes) and all(
        abs(w - k / sum(sizes)) < 1e-9 for w, k in zip(shares, sizes, strict=True)
    ):
        joined = namespace(first.value).concat(samples, axis=-1)
    slope = _weighted([e.slope for e in estimates], shares)
    slope_error = _weighted([e.slope_error for e in estimates], shares, squared=True)
    parts = [e.kept for e in estimates]
    kept = _parts(parts, shares) if all(isinstance(x, ErrorParts) for x in parts) else None
    return replace(
        first,
        num_matvecs=sum(e.num_matvecs for e in estimates),
        samples=joined,
        skewness=None,
        slope=slope,
        slope_error=slope_error,
        kept=kept,
    )


def _parts(parts: list[ErrorParts], shares: list[float]) -> ErrorParts:
    """Errors of the quadrature are systematic: they are averaged, not their squares."""
    return ErrorParts(
        parts[0].monte_carlo,
        _total(w * x.quadrature for w, x in zip(shares, parts, strict=True)),
        _weighted([x.solves for x in parts], shares),
        _certified([x.certified for x in parts]),
    )


def _certified(records: list[Certified | None]) -> Certified | None:
    known = [x for x in records if x is not None]
    if len(known) < len(records) or len({x.n for x in known}) > 1:
        return None
    xp, counts = namespace(known[0].center), [x.probes for x in known]
    shares = _shares(counts)
    ranges = [x.half_range for x in known]
    return Certified(
        _total(w * x.center for w, x in zip(shares, known, strict=True)),
        _total(w * x.half_width for w, x in zip(shares, known, strict=True)),
        reduce(xp.maximum, ranges),
        known[0].n,
        sum(counts),
    )


def _finished(found: Estimate, estimates: Sequence[Estimate], weight: float = 0) -> Estimate:
    """With the errors of the quadrature, and what is said of all runs."""
    error, kept = found.standard_error, found.kept
    if kept is not None:
        kept = kept._replace(monte_carlo=error)
        error = namespace(error).hypot(error, kept.quadrature)
    first = next((e for e in estimates if not e.converged), estimates[0])
    told = first.reason if len({e.reason for e in estimates}) == 1 or not first.converged else ""
    origins = [e.origin or {} for e in estimates]
    origin = {name: x for other in origins for name, x in other.items()}
    origin["draws"] = [x for other in origins for x in other.get("draws", [])]
    origin |= {"weight": weight} if weight else {}
    return replace(
        found,
        paused=None,
        standard_error=error,
        kept=kept,
        converged=first.converged,
        reason="; ".join(filter(None, (told, f"{len(estimates)} runs merged"))),
        origin=origin,
    )


def _square(norm: Estimate) -> Estimate:
    error = 2 * norm.value * norm.standard_error
    return replace(norm, value=norm.value * norm.value, standard_error=error, method="inner")


def _root(square: Estimate) -> Estimate:
    xp = namespace(square.value)
    root = xp.sqrt(square.value)
    error = square.standard_error / (2 * positive(root))
    return replace(square, value=root, standard_error=error, method="frobenius_norm")


def _weight(estimate: Estimate) -> float:
    known: float = (estimate.origin or {}).get("weight", 0)
    return known or float(estimate.num_matvecs) ** 2


def _shares(weights: Sequence[float]) -> list[float]:
    return [w / sum(weights) for w in weights]


def _unit(estimates: Sequence[Estimate]) -> Array:
    """Squares of tiny and huge numbers stay in range in it."""
    errors = [e.standard_error for e in estimates]
    xp = namespace(errors[0])
    known = [xp.where(xp.isfinite(x), x, xp.zeros_like(x)) for x in errors]
    return magnitude(xp.stack([*known, *(xp.abs(e.value) for e in estimates)]))


def _weighted(
    xs: list[Array | None], shares: list[float], *, squared: bool = False
) -> Array | None:
    if not squared:
        return _total_of_known(
            [None if x is None else w * x for x, w in zip(xs, shares, strict=True)]
        )
    square = _weighted([None if x is None else abs2(x) for x in xs], [w * w for w in shares])
    return None if square is None else namespace(square).sqrt(square)


def _total_of_known(xs: list[Array | None]) -> Array | None:
    return None if any(x is None for x in xs) else _total(xs)


def _total(xs: Iterable[Array]) -> Array:
    return reduce(add, xs)


def _refuse_others(estimates: Sequence[Estimate]) -> None:
    """Refuse estimates that do not add up."""
    told = [_told(i, e) for i, e in enumerate(estimates)]
    names = dict.fromkeys(name for facts in told for name in facts)
    for name in names:
        known = [(i, facts[name]) for i, facts in enumerate(told) if name in facts]
        for i, x in known:
            if x != known[0][1]:
                raise ValueError(
                    f"estimates {known[0][0]} and {i} differ in {name}, {known[0][1]} and {x}, and "
                    "do not add up; merge runs of one call with different seeds"
                )
    for (i, a), (j, b) in combinations(enumerate(estimates), 2):
        if _same_run(a, b):
            raise ValueError(
                f"estimates {i} and {j} are of the same random numbers, so that together they say "
                "no more than one; merge runs of different seeds"
            )


def _told(i: int, estimate: Estimate) -> dict[str, Any]:
    """What has to be the same of all."""
    if is_traced(estimate.value):
        raise TypeError("`merge` reads values, which jax.jit hides; call it outside of it")
    if estimate.dof == 0 and _all(estimate.standard_error == 0):
        raise ValueError(f"estimate {i} is exact, so that others add nothing to it; use it alone")
    value = estimate.value
    facts = {
        "method": estimate.method,
        "shape of the value": tuple(value.shape),
        "library": namespace(value).__name__.removeprefix("array_api_compat."),
        "dtype": dtype_name(value.dtype),
        "device": str(device_of(value)),
    }
    names = {"shape": "shape of the operator"}
    for name, x in (estimate.origin or {}).items():
        if name not in ("draws", "weight"):
            facts[names.get(name, f"`{name}`")] = x
    return facts


def _same_run(a: Estimate, b: Estimate) -> bool:
    """Whether two have a seed in common, or where seeds are not known, all their numbers."""
    first, second = ((e.origin or {}).get("draws", []) for e in (a, b))
    if a is b or set(first) & set(second):
        return True
    if (first and second) or _all(a.standard_error == 0):
        return False  # exact runs may agree
    x, y = (e.value if e.samples is None else e.samples for e in (a, b))
    same = tuple(x.shape) == tuple(y.shape) and _all(x == y)
    return same and _all(a.standard_error == b.standard_error)


def _all(x: Array) -> bool:
    return bool(namespace(x).all(x))
