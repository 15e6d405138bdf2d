"""The spectral density of a Hermitian operator, by Lanczos or by Chebyshev moments."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from .._arrays import Array, Rng, is_complex, namespace, to_number
from .._estimates import SpectralDensity, checked_budget
from .._operators import all_columns_cost, counted, square
from .._sketches import Arnoldi, Krylov, Rule, Space, Spaces, chebyshev, gauss, rules
from ..probes import Source, distributions
from .request import eigenvalues, is_affordable

FIRST = 4  # probes that are taken first


def spectral_density(
    A: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    depth: int | None = None,
    quadrature: Any = None,
) -> SpectralDensity:
    """The distribution of the eigenvalues of a Hermitian operator.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n.
    num_matvecs : int
        Products m to spend: `depth` for each probe (by Lanczos ``2 depth - 1``, by Chebyshev
        moments ``2 depth``, if A was made by `gram`). From n products on (the lesser dimension of
        L, if A is ``L L^H``), where n^2 numbers fit in a gigabyte, all eigenvalues are computed,
        unless `depth` is given.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        Products with each probe: what resolves the density. If not given, twice the root of m, at
        most n.
    quadrature : optional
        ``tracekit.quadrature.lanczos(...)``, the default: normal distributions around Ritz values.
        ``tracekit.quadrature.chebyshev(...)``: two moments a product, spread by Jackson's kernel,
        which resolve up to twice as much, in four columns of memory a probe.

    Returns
    -------
    SpectralDensity
        Points with weights; it says its `resolution` and its `relative_error` at each point, counts
        eigenvalues in intervals with both errors, and draws itself.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`.

    Notes
    -----
    More depth resolves more, more probes have a smaller error: the eigenvalues within a resolution
    times the probes are what the error is the root of. Moments of degree below 2 depth are right
    but for the choice of the probes.

    References
    ----------
    Lin, Saad, Yang (2016), SIAM Rev. 58, arXiv:1308.5467; Weisse, Wellein, Alvermann, Fehske
    (2006), Rev. Mod. Phys. 78, arXiv:cond-mat/0504627.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(0.0, 2.0, 200))
    >>> density = tk.spectral_density(A, 120, rng=0)
    >>> bool(abs(density.density(np.array([1.0])) - 0.5) < 0.2)
    True
    """
    A, m = square(A, "spectral density"), checked_budget(num_matvecs)
    way = rules.checked(quadrature, A)
    if depth is None and is_affordable(A, m):
        return of_eigenvalues(eigenvalues(A), all_columns_cost(A))
    steps = 2 * math.isqrt(m) if depth is None else checked_budget(depth, "depth")
    operator, counter = counted(A)

    def found(margin: float) -> SpectralDensity:
        left, n = m - counter.total, A.shape[0]
        draw = distributions.stream(distributions.rademacher, Source(rng, A), n, n)
        X = draw(min(FIRST, n))
        around, spent = rules.with_interval(
            way, operator, X, left, semidefinite=A.factor is not None, margin=margin
        )
        reached, count = _afforded(around, A, min(steps, n), left - spent)
        K = rules.begin(around, operator, X[:, : min(FIRST, count)]).advance(reached)
        spaces = Spaces(K.without_basis(), 0)
        if count > FIRST:
            spaces.grow(count - FIRST, draw, partial(rules.begin, around, operator))
        return of_spaces(spaces.read(), counter.total)

    return rules.widened(way, found)


def of_eigenvalues(x: Array, num_matvecs: int) -> SpectralDensity:
    """The density of all eigenvalues."""
    n = x.shape[0]
    return SpectralDensity(x, namespace(x).ones_like(x) / n, num_matvecs, n, n)


def of_spaces(K: Space, num_matvecs: int) -> SpectralDensity:
    """The density that probes see."""
    xp, A = K.operator.xp, K.operator
    assert not isinstance(K, Arnoldi)
    if isinstance(K, Krylov):
        x, shares = gauss.shares(K)
    else:
        x, shares = chebyshev.rule(K, K.depth, damped=True)
    shares = shares / xp.sum(shares)
    found = SpectralDensity(
        xp.reshape(x, (-1,)),
        xp.reshape(shares, (-1,)),
        num_matvecs,
        K.depth,
        A.shape[0],
        K.groups,
        complex_probes=is_complex(A),
    )
    if isinstance(K, Krylov):
        return found
    center, half = (to_number(part[0]).real for part in (K.center, K.half))
    moments = chebyshev.moments_of(xp.sum(shares, axis=0))
    return replace(found, moments=moments, interval=(center - half, center + half))


def _afforded(way: Rule, A: Any, depth: int, budget: int) -> tuple[int, int]:
    """Steps and probes that a budget pays for: at least one of each."""
    while depth > 1 and rules.cost(way, A, depth) > budget:
        depth -= 1
    each = rules.cost(way, A, depth)
    if each > budget:
        raise ValueError(
            f"{budget} products are left for a probe, which takes {each}, after the interval of "
            "the spectrum was found; pass more, or quadrature.chebyshev(interval=(low, high))"
        )
    return depth, min(budget // each, A.shape[0])
