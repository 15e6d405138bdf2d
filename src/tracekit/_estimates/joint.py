"""Ratios, differences and linear combinations of estimates that were made with the same probes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from .._arrays import Array, eps_of, is_traced, namespace
from .estimate import ErrorParts, Estimate, finalize
from .quantiles import t_quantile
from .samples import doubt, skewness_of, standard_error

LEVEL = 0.95  # of the interval of a denominator, which must not hold 0
REMEDY = (
    "pass those of `hutchinson`, `one_sided` or `trace_function` with the same int as rng and as "
    "many probes, or those of one `spectral_run`"
)


def ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    r"""The ratio of two estimates that share their probes, whose errors cancel in part.

    Parameters
    ----------
    numerator : Estimate
        Of any shape that broadcasts with that of the denominator.
    denominator : Estimate
        Made with the same probes as the numerator, or exact; not 0.

    Returns
    -------
    Estimate
        In the library, dtype and device of the two, with the standard error by the delta method and
        the bias of first order removed; what is left of that falls as the square of the number of
        probes. The error is infinite where the 95 % interval of the denominator holds 0. Its
        products are those of both; of one `SpectralRun`, those of the run.

    Raises
    ------
    TypeError, ValueError
        If these are no Estimates, or of several libraries; if they are not known to share all
        probes: different or unknown seeds (``rng=None``), distributions or numbers of probes,
        leave-one-out methods, estimates that keep no samples (diagonals) or passed through
        `jax.jit`; if the denominator is 0.

    See Also
    --------
    difference : Of two estimates.
    linear_combination : Of any number.

    Notes
    -----
    With samples :math:`D_j` and :math:`Z_j` of the m probes, means D and Z and :math:`R = D / Z`,
    the standard error is that of the mean of :math:`(D_j - R Z_j) / Z`, with m - 1 degrees of
    freedom, and the value :math:`R + \mathrm{cov}(D_j - R Z_j, Z_j) / (m Z^2)`. Whatever widens the
    error of one of them beyond the spread of its samples (deflation by each other's spaces) widens
    that of the ratio; errors of a quadrature are added. ``band(level)`` holds all entries at once.

    Two calls share their probes where `rng` is the same int (or generators in the same state), with
    the same distribution of `tracekit.probes`, dimension, dtype and number of probes. Under
    `jax.jit` an int is known, a traced key is not. Fewer than 15 samples that agree, made of ones
    that do not, may do so by chance where probes are signs: the error is infinite then.

    References
    ----------
    Cochran (1977), Sampling Techniques, 3rd ed., chapter 6.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.ones((50, 50)) + np.diag(np.arange(50.0))
    >>> a, b = (tk.hutchinson(X, 20, rng=0) for X in (A, 2 * A))
    >>> float(tk.ratio(a, b)), float(tk.ratio(a, b).standard_error)
    (0.5, 0.0)
    """
    terms = _checked("ratio", (numerator, denominator))
    D, Z = terms
    xp = namespace(Z.value)
    if not is_traced(Z.value) and bool(xp.any(Z.value == 0)):
        raise ValueError(
            "the estimate that `ratio` divides by is 0; pass one of a quantity that is not"
        )
    R = D.value / Z.value
    found = _first_order(R, [(1 / Z.value, D), (-R / Z.value, Z)], "ratio")
    if Z.samples is not None and found.samples is not None:
        m = Z.samples.shape[-1]
        apart = found.samples - R[..., None]
        relative = Z.samples / Z.value[..., None] - 1
        found = _moved(found, xp.sum(apart * relative, axis=-1) / (m * max(m - 1, 1)))
    return _finished(_unless_zero(found, Z), terms)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """The difference of two estimates that share their probes, whose errors cancel in part.

    Parameters
    ----------
    a : Estimate
        Of any shape that broadcasts with that of b.
    b : Estimate
        Made with the same probes as a, or exact.

    Returns
    -------
    Estimate
        As of `linear_combination`: unbiased where both are.

    Raises
    ------
    TypeError, ValueError
        As for `ratio`.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.ones((50, 50)) + np.diag(np.arange(50.0))
    >>> before, after = (tk.hutchinson(X, 20, rng=0) for X in (A, A + 0.1 * np.eye(50)))
    >>> tk.difference(after, before).value.round(9)
    np.float64(5.0)
    """
    terms = _checked("difference", (a, b))
    return _summed(terms, (1, -1), "difference")


def linear_combination(coefficients: Sequence[complex], estimates: Sequence[Estimate]) -> Estimate:
    r"""The sum of estimates that share their probes, each times a number.

    Parameters
    ----------
    coefficients : sequence of numbers
        As many as estimates.
    estimates : sequence of Estimate
        Made with the same probes, or exact; of shapes that broadcast.

    Returns
    -------
    Estimate
        In the library, dtype and device of these, unbiased where they are. The standard error is
        that of the mean of :math:`\sum_i c_i X_{ij}` over the probes j. Errors of a quadrature are
        added.

    Raises
    ------
    TypeError, ValueError
        As for `ratio`; if there are none, or the numbers are not as many.

    Notes
    -----
    For independent estimates, of different seeds, errors add in squares; that takes no function.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(1.0, 2.0, 300))
    >>> run = tk.spectral_run(A, 100, rng=0)
    >>> second, first = run.trace(lambda x: x**2), run.trace(lambda x: x)
    >>> spread = tk.linear_combination((1, -3), (second, first))
    >>> low, high = spread.confidence_interval()
    >>> x = np.linspace(1.0, 2.0, 300)
    >>> bool(low < np.sum(x**2 - 3 * x) < high)
    True
    """
    c, count = [_number(x) for x in coefficients], len(estimates)
    if not count or len(c) != count:
        raise ValueError(
            f"`linear_combination` takes as many numbers as estimates, one at least, got {len(c)} "
            f"and {count}; pass a number for each"
        )
    return _summed(_checked("linear_combination", estimates), c, "linear_combination")


def logarithm(Z: Estimate) -> Estimate:
    """The logarithm of a positive estimate, by the delta method, without bias of first order."""
    xp = namespace(Z.value)
    known = Z.value > 0  # elsewhere, any number, of an infinite error
    at = xp.where(known, Z.value, xp.ones_like(Z.value))
    found = _first_order(xp.log(at), [(1 / at, Z)], "logarithm")
    if found.samples is not None:
        m = found.samples.shape[-1]
        apart = found.samples - found.value[..., None]
        found = _moved(found, xp.sum(apart * apart, axis=-1) / (2 * m * max(m - 1, 1)))
    return _finished(_unless_zero(found, Z, ~known), [Z])


def _summed(terms: list[Estimate], c: Sequence[complex], method: str) -> Estimate:
    value = reduce(add, (x * e.value for x, e in zip(c, terms, strict=True)))
    found = _first_order(value, list(zip(c, terms, strict=True)), method)
    random = [e for e in terms if e.samples is not None]
    if random and all(e.skewness is not None for e in random):
        found = replace(found, skewness=skewness_of(found.samples))
    return _finished(found, terms)


class _Error(NamedTuple):
    """Of an estimate: what its spread is multiplied by, and what is added to it."""

    factor: Array
    more: Array


def _error(e: Estimate) -> _Error:
    xp = namespace(e.standard_error)
    zero, one = xp.zeros_like(e.standard_error), xp.ones_like(e.standard_error)
    if e.samples is None:  # exact
        return _Error(one, e.standard_error)
    parts = e.kept if isinstance(e.kept, ErrorParts) else ErrorParts(e.standard_error, zero)
    plain = standard_error(e.samples)
    rounding = 64 * eps_of(plain) * xp.max(xp.abs(e.samples), axis=-1)
    usable = (plain > rounding) & xp.isfinite(plain) & xp.isfinite(parts.monte_carlo)
    factor = xp.where(usable, parts.monte_carlo, one) / xp.where(usable, plain, one)
    # of samples without spread, what may be hidden by chance; of one, the spread is infinite
    hidden = xp.where(usable | xp.isinf(plain), zero, parts.monte_carlo)
    return _Error(factor, parts.quadrature + hidden)


def _first_order(value: Array, terms: Sequence[tuple[Any, Estimate]], method: str) -> Estimate:
    """A function of estimates, whose derivatives by them are the coefficients of the terms."""
    xp = namespace(value)
    parts = [(c, e, _error(e)) for c, e in terms]
    more = xp.zeros_like(xp.abs(value)) + reduce(add, (_times(c, err.more) for c, _, err in parts))
    random = [part for part in parts if part[1].samples is not None]
    if not random:
        return Estimate(value, more, 0, method)
    samples = value[..., None] + reduce(
        add, (_each(c) * (e.samples - e.value[..., None]) for c, e, _ in random)
    )
    factor = reduce(xp.maximum, (err.factor for *_, err in random))
    spread = standard_error(samples) * factor
    if any("run" not in (e.origin or {}) for _, e, _ in random):
        spread = _beyond_chance(spread, samples, [(c, e) for c, e, _ in random])
    dof = max(e.dof for _, e, _ in random)
    kept = ErrorParts(spread, more)
    return Estimate(value, xp.hypot(spread, more), 0, method, samples, dof=dof, kept=kept)


def _beyond_chance(spread: Array, samples: Array, terms: list[tuple[Any, Estimate]]) -> Array:
    """Infinite where samples of few signs agree that are made of ones which do not.

    Forms of signs tie by chance (see `samples.beyond_chance`), those of what is left in common too.
    """
    xp, m = namespace(samples), samples.shape[-1]
    if m == 1 or not doubt(0.75 ** (m - 1)):
        return spread

    def reach(x: Array) -> Array:
        return xp.max(xp.abs(x - x[..., :1]), axis=-1)

    parts = [abs(c) * reach(e.samples) for c, e in terms]
    sizes = [abs(c) * xp.max(xp.abs(e.samples), axis=-1) for c, e in terms]
    rounding = 64 * eps_of(spread) * reduce(xp.maximum, sizes)
    tied = (reach(samples) <= rounding) & (reduce(xp.maximum, parts) > rounding)
    return xp.where(tied, xp.full_like(spread, math.inf), spread)


def _times(c: Any, error: Array) -> Array:
    """An error times the size of a number, of which 0 takes away what is infinite."""
    xp = namespace(error)
    size = abs(c) + xp.zeros_like(error)
    return size * xp.where(xp.isfinite(error) | (size > 0), error, xp.zeros_like(error))


def _each(c: Any) -> Any:
    return c[..., None] if hasattr(c, "ndim") else c


def _moved(found: Estimate, by: Array) -> Estimate:
    """The estimate and its samples, without a bias."""
    assert found.samples is not None
    return replace(found, value=found.value + by, samples=found.samples + by[..., None])


def _unless_zero(found: Estimate, Z: Estimate, less: Array | None = None) -> Estimate:
    """With an infinite error where it is not known that Z is not 0, or not less."""
    xp, error = namespace(Z.value), found.standard_error
    reach = t_quantile(LEVEL, Z.dof) * Z.standard_error
    unknown = (Z.standard_error > 0) & (xp.abs(Z.value) <= reach)
    unknown = unknown if less is None else unknown | less
    error = xp.where(unknown, xp.full_like(error, math.inf), error)
    kept = found.kept
    if kept is not None:
        beyond = xp.where(xp.isinf(error), error, kept.quadrature)
        kept = kept._replace(quadrature=beyond)
    return replace(found, standard_error=error, kept=kept)


def _finished(found: Estimate, terms: Sequence[Estimate]) -> Estimate:
    """With the products of all, and what is said of them."""
    every = {id(e): e for e in terms}.values()
    runs: dict[Any, int] = {}
    for e in every:
        run = (e.origin or {}).get("run", id(e))
        runs[run] = max(runs.get(run, 0), e.num_matvecs)
    random = [e for e in terms if e.samples is not None]
    told = next((e for e in terms if not e.converged), (random or terms)[0])
    origins = [e.origin or {} for e in random]
    names = ("draws", "probes", "run")
    origin = {name: x for name, x in (origins or [{}])[0].items()
              if name in names and all(other.get(name) == x for other in origins)}  # fmt: skip
    found = replace(
        found,
        num_matvecs=sum(runs.values()),
        converged=told.converged,
        reason=told.reason,
        origin={"draws": []} | origin,
    )
    return finalize(found, quantity=found.method)


def _checked(name: str, estimates: Sequence[Any]) -> list[Estimate]:
    """The estimates, if what is random in them comes from the same probes."""
    for e in estimates:
        if not isinstance(e, Estimate):
            raise TypeError(f"`{name}` takes Estimates, got {type(e).__name__}; pass estimates")
        if e.samples is None and e.dof > 0:
            raise ValueError(
                f"`{name}` needs the samples of each probe, and an estimate of {e.method} keeps "
                f"none; {REMEDY}"
            )
    libraries = {namespace(e.value).__name__.rpartition(".")[2] for e in estimates}
    if len(libraries) > 1:
        raise TypeError(
            f"`{name}` takes estimates of one library, got those of "
            f"{' and '.join(sorted(libraries))}; estimate both in one"
        )
    random = [e for e in estimates if e.samples is not None]
    if len({id(e) for e in random}) > 1:
        _refuse_apart(name, random)
    return list(estimates)


def _refuse_apart(name: str, estimates: list[Estimate]) -> None:
    first = estimates[0].origin or {}
    for e in estimates:
        known = e.origin or {}
        if not known.get("probes"):
            raise ValueError(
                f"`{name}` needs to know which probe each sample is of, and an estimate of "
                f"{e.method} does not say so; {REMEDY}"
            )
        if not known.get("draws"):
            raise ValueError(
                f"`{name}` takes estimates that share their probes, and one is of an unknown seed; "
                f"{REMEDY}"
            )
        if known["draws"] != first["draws"]:
            raise ValueError(
                f"`{name}` takes estimates that share their probes, and these are of different "
                f"seeds; {REMEDY}"
            )
        if known["probes"] != first["probes"]:
            both = " and ".join(", ".join(x["probes"]) for x in (first, known))
            raise ValueError(
                f"`{name}` takes estimates that share their probes, got {both}; {REMEDY}"
            )


def _number(x: Any) -> complex:
    """A number of Python, real where it can be, which leaves dtypes as they are."""
    try:
        c = complex(x)
    except (TypeError, ValueError):
        raise TypeError(
            f"`coefficients` must be numbers, got {x!r}; pass one for each estimate"
        ) from None
    return c if c.imag else c.real
