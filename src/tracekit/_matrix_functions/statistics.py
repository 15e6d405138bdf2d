"""Scores that choose a ridge, by cross-validation or likelihood: curves from one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    Rng,
    device_of,
    eps_of,
    inner,
    is_array,
    is_complex,
    is_traced,
    namespace,
    orthonormalise,
    to_host,
)
from .._estimates import (
    ErrorParts,
    Estimate,
    checked_budget,
    with_origin,
)
from .._operators import LinearOperator, as_operator, gram, square
from .._sketches import ControlVariate, lanczos
from ..functions import Function, semidefinite
from .batch import evaluate
from .quadrature import NOT_SETTLED, SHARE, quadrature_error
from .request import checked_numbers, is_affordable
from .spectral_run import BREADTH, LEAST_DEPTH, spectral_run

SETTLED = 1e-4  # relative error of what depends on y
PART = 0.25  # of the products, what that may take
Part = Callable[[Array, Array], Array]
CURVED = 3  # standard errors below which a trace in a denominator is as good as 0


@with_origin
def gcv(
    A: Any,
    y: Array,
    ridges: Sequence[float],
    num_matvecs: int,
    *,
    penalty: bool = False,
    fixed: Array | None = None,
    rng: Rng = None,
    depth: int | None = None,
) -> Estimate:
    r"""Scores of generalised cross-validation, for a grid of ridges from one run.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian positive semidefinite, of dimension n: a kernel matrix K; or, with `penalty`, the
        penalty matrix P of a smoothing spline.
    y : array of shape (n,) or (n, c)
        The responses, in A's library.
    ridges : sequence of float, length T
        Positive numbers :math:`\lambda`, in the unit of K's eigenvalues, or one over that of P's.
    num_matvecs : int
        Products to spend at most, on all ridges together: up to a quarter of them on y, the rest as
        for `spectral_run`. Exact from n products on.
    penalty : bool, optional
        Whether A penalises: the fit is :math:`(I + \lambda P)^{-1} y`, not
        :math:`K (K + \lambda I)^{-1} y`.
    fixed : array of shape (n, p), optional
        Columns that are fitted without a penalty, such as one of ones for an intercept; with
        `penalty` those that P takes to 0.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        Lanczos steps, from y and from the probes; chosen if not given.

    Returns
    -------
    Estimate
        Of shape (T,), in the unit of :math:`|y|^2`, in A's library and real dtype.
        ``band(level)`` holds all scores at once; `argmin` tells the least ones.

    Raises
    ------
    ValueError, TypeError
        As for `spectral_run`; if a ridge is not positive, or `y` or `fixed` is of another shape.

    Notes
    -----
    With R the matrix that takes y to its residuals, :math:`n |R y|^2 / (\mathrm{tr}\, R)^2`, summed
    over the columns of y. The numerator is a Gauss rule of Lanczos started at y, c products a step,
    whose error is far below that of the trace, and part of the standard error. The trace is
    estimated, and its error carried over by the delta method; the score is then too large by
    three times the square of the trace's relative error, on average. Where the trace is not three
    times its error, the score's error is infinite.

    References
    ----------
    Golub, Heath, Wahba (1979), Technometrics 21, doi:10.1080/00401706.1979.10489751; Golub, von
    Matt (1997), J. Comput. Graph. Stat. 6, doi:10.1080/10618600.1997.10474725.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> x = np.linspace(0.0, 1.0, 200)
    >>> K = np.exp(-50 * (x[:, None] - x) ** 2)
    >>> y = np.sin(9 * x) + np.random.default_rng(0).normal(scale=0.3, size=200)
    >>> scores = tk.gcv(K, y, [1e-4, 1e-1, 1e2], 120, rng=0)
    >>> best, candidates = tk.argmin(scores)
    >>> best, best in candidates
    (1, True)
    """
    model = _Model.of(A, y, ridges, num_matvecs, penalty, fixed)
    trace, size = _read(model, lambda r, u: r, lambda r, u: r * r, rng, depth)
    n, rest = model.A.shape[0], trace.value - (0 if penalty else model.p)
    value = n * size.value / (rest * rest)
    found = _by_delta(trace, size, value, -2 * value / rest, n / (rest * rest), "gcv")
    return _where_curved(found, trace.standard_error, rest)


@with_origin
def reml(
    A: Any,
    y: Array,
    ridges: Sequence[float],
    num_matvecs: int,
    *,
    penalty: bool = False,
    fixed: Array | None = None,
    rng: Rng = None,
    depth: int | None = None,
) -> Estimate:
    r"""Restricted likelihoods of a Gaussian process or spline, for a grid of ridges from one run.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        As for `gcv`: the covariance of the process up to its scale, or, with `penalty`, its
        precision.
    y : array of shape (n,) or (n, c)
        As for `gcv`; columns are independent, of one ridge and one scale.
    ridges : sequence of float, length T
        As for `gcv`: the variance of the noise over the scale of the process.
    num_matvecs : int
        As for `gcv`.
    penalty : bool, optional
        As for `gcv`.
    fixed : array of shape (n, p), optional
        As for `gcv`: fixed effects, integrated out. With `penalty` they have to span all that P
        takes to 0, as constants and slopes for a cubic spline.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        As for `gcv`.

    Returns
    -------
    Estimate
        Of shape (T,), in A's library and real dtype: minus twice the logarithm of the restricted
        likelihood for each column, at the scale that makes it largest, up to a constant that no
        ridge changes. The least is best, as for `gcv`; a difference of 2 is one of 1 in the
        logarithm. Without `fixed` the likelihood itself.

    Raises
    ------
    ValueError, TypeError
        As for `gcv`; if y is 0, or of `fixed` alone.

    Notes
    -----
    With R as for `gcv`, :math:`(n - p) \log y^H R y - \log \det{}' R`, the determinant that of what
    is not fixed: :math:`\mathrm{tr} \log(I + K / \lambda)` is estimated, or
    :math:`\mathrm{tr} \log(I + \lambda P) - (n - p) \log \lambda`; the rest is of Lanczos started
    at y. Unbiased up to the quadrature.

    References
    ----------
    Patterson, Thompson (1971), Biometrika 58, doi:10.1093/biomet/58.3.545; Wahba (1985), Ann. Stat.
    13, doi:10.1214/aos/1176349743.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> x = np.linspace(0.0, 1.0, 200)
    >>> K = np.exp(-50 * (x[:, None] - x) ** 2)
    >>> y = np.sin(9 * x) + np.random.default_rng(0).normal(scale=0.3, size=200)
    >>> scores = tk.reml(K, y, [1e-4, 1e-1, 1e2], 120, fixed=np.ones((200, 1)), rng=0)
    >>> best, candidates = tk.argmin(scores)
    >>> best, best in candidates
    (1, True)
    """
    model = _Model.of(A, y, ridges, num_matvecs, penalty, fixed)
    xp, free = model.A.xp, model.A.shape[0] - model.p
    trace, size = _read(model, lambda r, u: xp.log1p(u), lambda r, u: r, rng, depth)
    if not is_traced(size.value) and bool(xp.any(size.value <= 0)):
        raise ValueError("`y` must have a part that is not 0 nor of `fixed`, and has none")
    c = xp.asarray(model.ridges, dtype=trace.value.dtype, device=device_of(trace.value))
    value = free * xp.log(size.value) + trace.value - (free * xp.log(c) if penalty else 0)
    return _by_delta(trace, size, value, xp.ones_like(value), free / size.value, "reml")


class _Model(NamedTuple):
    """What is asked: of an operator and responses without what is fixed."""

    A: LinearOperator
    y: Array  # (n, c)
    ridges: list[float]
    num_matvecs: int
    penalty: bool
    p: int  # columns that are fixed

    @classmethod
    def of(cls, A: Any, y: Any, ridges: Any, num_matvecs: Any, penalty: bool, fixed: Any) -> _Model:
        A, m = square(A, "function"), checked_budget(num_matvecs)
        c = checked_numbers("ridges", ridges)
        y = _columns(A, y, "y")
        if fixed is None:
            return cls(A, y, c, m, penalty, 0)
        Q, R = orthonormalise(_columns(A, fixed, "fixed"))
        if not is_traced(R) and not _is_regular(R):
            raise ValueError("columns of `fixed` must be linearly independent; leave some out")

        def without(X: Array) -> Array:
            return X - Q @ inner(Q, X)

        M = A._like(A.shape, without, without, dims=A.dims)
        A = gram(M @ A.factor) if A.factor is not None else M @ A @ M
        return cls(A, without(y), c, m, penalty, Q.shape[1])

    def family(self, g: Part) -> Function:
        """``g(r, u)`` for all ridges, r an eigenvalue of R, u that of K over the ridge or so."""

        def several(x: Array) -> Array:
            u = [x * c if self.penalty else x / c for c in self.ridges]
            return namespace(x).stack(
                [g(v / (1 + v) if self.penalty else 1 / (1 + v), v) for v in u]
            )

        return semidefinite(several)


class _Form(NamedTuple):
    """The sum of ``y^H g(A) y`` over the columns of y, for all ridges, and its error."""

    value: Array
    error: Array
    reason: str = ""  # where that is not known


def _read(
    model: _Model, of_trace: Part, of_form: Part, rng: Rng, depth: int | None
) -> tuple[Estimate, _Form]:
    """The trace of one function of A, and the form of another in y."""
    A, m = model.A, model.num_matvecs
    f, g = model.family(of_trace), model.family(of_form)
    if is_affordable(A, m):
        run = spectral_run(A, m, observable=gram(as_operator(model.y)))
        exact = run.trace(g)
        return run._read(f, "trace", plain=True), _Form(exact.value, exact.standard_error)
    form, spent = _form(model, g, depth)
    trace = spectral_run(A, m - spent, rng=rng, depth=depth).trace(f)
    return replace(trace, num_matvecs=trace.num_matvecs + spent), form


def _form(model: _Model, g: Function, depth: int | None) -> tuple[_Form, int]:
    """By Lanczos started at y, as deep as it takes or a part of the products allows."""
    A, m, n, c = model.A, model.num_matvecs, model.A.shape[0], model.y.shape[1]
    K, traced, fine = lanczos.begin(A, model.y), is_traced(model.y), False
    steps = LEAST_DEPTH if depth is None else checked_budget(depth, "depth")
    if depth is None and traced:
        steps = max(LEAST_DEPTH, round(BREADTH * math.sqrt(m)))
    while depth is None and steps > 1 and 2 * c * K.cost(steps) > m:
        steps -= 1
    steps = min(steps, n)
    if c * K.cost(steps) >= m:
        raise ValueError(
            f"num_matvecs={m} does not pay for {steps} steps from {c} columns of y, which take "
            f"{c * K.cost(steps)}, and a probe; pass more, or a smaller depth"
        )
    while True:
        K = K.advance(steps)
        batch = evaluate(g, ControlVariate(A), K, None, steps)
        value = A.xp.sum(batch.residuals, axis=-1)
        error = c * quadrature_error([batch], complete=steps >= n)
        if traced or depth is not None:
            break
        before, fine = fine, bool(A.xp.all(error <= SETTLED * A.xp.abs(value)))
        further = min(steps + max(1, steps // 6), n)
        if (before and fine) or further == steps or c * K.cost(further) > PART * m:
            break
        steps = further
    unknown = error > SHARE * A.xp.abs(value)
    if traced or not bool(A.xp.any(unknown)):
        return _Form(value, error), c * K.cost(steps)
    error = A.xp.where(unknown, A.xp.hypot(error, value), error)
    return _Form(value, error, f"y to depth {steps}: {NOT_SETTLED}"), c * K.cost(steps)


def _by_delta(
    trace: Estimate, form: _Form, value: Array, slope: Array, of_form: Array, method: str
) -> Estimate:
    """The estimate of a function of a trace and a form, whose derivatives by these are given."""
    xp, samples, size = namespace(value), None, namespace(value).abs(slope)
    monte_carlo, quadrature = size * trace.standard_error, xp.abs(of_form) * form.error
    if trace.samples is not None:
        centred = trace.samples - trace.value[..., None]
        samples = value[..., None] + slope[..., None] * centred
        monte_carlo = size * trace.kept.monte_carlo
        quadrature = quadrature + size * trace.kept.quadrature
    return replace(
        trace,
        value=value,
        standard_error=xp.hypot(monte_carlo, quadrature),
        samples=samples,
        method=method,
        converged=trace.converged and not form.reason,
        reason="; ".join(x for x in (trace.reason, form.reason) if x),
        skewness=None,
        slope=None,
        slope_error=None,
        kept=ErrorParts(monte_carlo, quadrature),
    )


def _where_curved(found: Estimate, error: Array, trace: Array) -> Estimate:
    """No error where the trace in the denominator may as well be 0."""
    xp, lost = namespace(trace), CURVED * error > trace
    infinite = xp.full_like(trace, math.inf)
    found = replace(found, standard_error=xp.where(lost, infinite, found.standard_error))
    if is_traced(trace) or not bool(xp.any(lost & xp.isfinite(error))):
        return found
    reason = f"{found.reason}; traces of some residuals may be 0 within their error; pass more"
    return replace(found, converged=False, reason=reason)


def _columns(A: LinearOperator, X: Any, name: str) -> Array:
    """An array of n rows as columns of A's dtype, if it is one."""
    n = A.shape[0]
    if not is_array(X) or namespace(X) is not A.xp or X.ndim not in (1, 2) or X.shape[0] != n:
        raise ValueError(
            f"`{name}` must be an array of the operator's library of shape ({n},) or ({n}, k), "
            f"got {type(X).__name__} of shape {tuple(getattr(X, 'shape', ()))}"
        )
    if A.xp.isdtype(X.dtype, "complex floating") and not is_complex(A):
        raise TypeError(f"a real operator takes no complex `{name}`; pass one that is complex")
    return A.xp.astype(X[:, None] if X.ndim == 1 else X, A.dtype, copy=False)


def _is_regular(R: Array) -> bool:
    """Whether a triangle has an inverse."""
    s = to_host(namespace(R).linalg.svdvals(R))
    return bool(s[-1] > R.shape[0] * 10 * eps_of(R) * s[0])
