r"""Reads tr f(A) out of one sketch, f operator monotone: a lower and an upper value.

With :math:`A = S + \text{shift}\, I` and S positive semidefinite, :math:`f(x + \text{shift}) -
f(\text{shift})` is an integral of :math:`x / (x + c)` over c: a sum over nodes. Of probes that are
orthogonal, with squared length n, the Nystrom approximation of S is :math:`U \Lambda U^H`, and that
without probe i :math:`U M_i U^H` with :math:`M_i = \Lambda - z_i z_i^H`,
:math:`z_i = \Lambda^{1/2} t_i`, t_i a unit vector, so that every function of M_i that is needed is
a product of small matrices. Let :math:`w_i = U^H \omega_i`. Then

* :math:`L_i = \mathrm{tr} f(M_i) + \gamma\, w_i^H (f(\Lambda) - f(M_i)) w_i` is too low on average,
  the block Radau rule with a node at 0;
* :math:`K_i = \mathrm{tr} f(M_i) + \gamma\, w_i^H f'(M_i) z_i z_i^H w_i` is too high, by Klein;
* so is :math:`J_i = \mathrm{tr} f(M_i) + (n - b + 1) f(E / (n - b + 1))`, by Rotfel'd and Jensen,
  with E the mean of :math:`\gamma |z_i^H w_i|^2`, unbiased for the trace that is left.

Here :math:`\gamma = (n - b + 1) / n`. Madhavan, Alexanderian, Saibaba (2026), arXiv:2603.05721, has
the lower value.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from .._arrays import (
    Array,
    abs2,
    adjoint,
    coldot,
    colnorm2,
    conj,
    constant,
    eps_of,
    eye_like,
    householder_qr,
    inner,
    is_differentiated,
    is_traced,
    magnitude,
    namespace,
    positive,
    real,
    require_hermitian,
    to_number,
)
from .._estimates import (
    ErrorParts,
    Estimate,
    combined_error,
    mean,
    require_finite,
    standard_error,
    t_quantile,
)
from .._operators import LinearOperator, matvecs_per_column
from .._sketches import Pairs, lanczos, leave_one_out, nystrom_factor
from ..functions import Function, Resolvents
from ..probes import Source, distributions

FEWEST = 16  # columns: with fewer, a sketch for a first look leaves too little
FIRST = 8  # columns of the first look, or a quarter of all
FALLS = 0.7  # the error is to fall to, when columns double, for a second look
STEPS = 6  # of the quadrature that the sketch competes with
LEVEL = 0.95
ROUNDING = 1e3  # in units of eps: what eigenvalues may be below the shift
REMEDY = "this function is not defined at negative eigenvalues: pass A + c I"


class Sketch(NamedTuple):
    """The Nystrom approximation of ``A - shift I``, and what leaving out a probe takes from it."""

    V: Array
    values: Array
    T: Array  # unit vectors
    W: Array  # the probes in the basis V
    inflation: Array  # of the spread of leave-one-out samples, as the trace itself shows it
    num_probes: int
    n: int


class Bracket(NamedTuple):
    """For each probe the lower value, and the two upper ones."""

    low: Array  # tr f without each probe
    lower: Array
    klein: Array
    jensen: Array
    unknown: Array  # what eigenvalues that are lost in rounding may add


def sketched(Omega: Array, Y: Array, shift: float) -> Sketch:
    """What is read from ``Y = A Omega``, for orthogonal probes of squared length n."""
    xp, (n, b) = namespace(Y), Omega.shape
    require_finite(Y)
    unit = magnitude(Y)
    Y, by = Y / unit, shift / unit
    _require_semidefinite(inner(Omega, Y) / n, by, shift)
    rounding = 30 * eps_of(Y) * by
    Y = Y - Omega * (by - rounding)
    H = inner(Omega, Y) / n
    Y = Y + Omega @ ((adjoint(H) - H) / 2)  # of a multiple of the identity only rounding is left
    left, _, D, nu = nystrom_factor(Omega, Y, eye_like(Y, b) * n, REMEDY)
    Q, R = householder_qr(left)
    U, s, Vh = xp.linalg.svd(R, full_matrices=False)
    theta = s * s - nu - rounding
    known = theta > 10 * eps_of(s) * xp.max(s * s)
    theta = xp.where(known, theta, xp.zeros_like(theta)) * unit
    V, T = Q @ U, Vh @ (D / xp.sqrt(colnorm2(D))[None, :])
    samples, replicates = leave_one_out.nystrom(inner(R, R), D, n, eye_like(Y, b) / n)
    spread = standard_error(samples)
    grown = combined_error(samples, replicates, spread, few=0) / positive(spread)
    inflation = xp.maximum(grown, xp.ones_like(grown))
    return Sketch(V, theta, T, inner(V, Omega), inflation, b, n)


def bracket(sketch: Sketch, resolvents: Resolvents, shift: float) -> Bracket:
    """The values of ``f(x + shift) - f(shift)``, at the cost of 3 b^2 operations a node."""
    xp, x = namespace(sketch.V), sketch.values
    rest = sketch.n - sketch.num_probes + 1
    scale, size = rest / sketch.n, abs2(sketch.T)
    unit = positive(xp.max(x))
    c, weights = resolvents(unit, shift)
    x = x / unit
    h = 1 / (x[None, :] + c[:, None])  # the resolvent of each node, as a multiple of its largest
    most = xp.max(h, axis=-1, keepdims=True)
    h = h / most
    rooted = xp.astype(xp.sqrt(x), sketch.T.dtype)[:, None] * sketch.T
    cross, whole = conj(sketch.W) * rooted, coldot(sketch.W, rooted)
    hidden = h @ size  # (1 - z^H h z) / c, without cancellation
    less = most * ((x * h * h) @ size) / hidden
    once, twice = (xp.astype(y, cross.dtype) @ cross for y in (h, h * h))
    gain = most * abs2(once) / hidden
    slope = (most * twice + once * (less / c[:, None])) / hidden
    low = xp.sum(weights[:, None] * (xp.sum(x * most * h, axis=-1)[:, None] - less), axis=0)
    lower = low + xp.sum(weights[:, None] * gain, axis=0) * scale
    klein = xp.sum(weights[:, None] * real(slope * conj(whole)[None, :]), axis=0) * scale
    left = xp.mean(abs2(whole)) * (scale / rest)
    jensen = low + rest * xp.sum(weights * (left / (left + c)))
    eps = eps_of(x) * xp.max(x)  # below it nothing is known of eigenvalues
    unknown = rest * xp.sum(weights * (eps / (eps + c)))
    return Bracket(low, lower, low + klein, jensen, unknown)


def attempt(
    A: LinearOperator,
    f: Function,
    budget: int,
    columns: int,
    source: Source,
    *,
    shift: float | None,
    gradient: bool,
) -> tuple[Estimate | None, Pairs | None, int]:
    """The estimate from so many columns, if the first ones promise one better than by quadrature.

    If not, the eigenpairs that the first columns show, for a control variate, and how many columns
    that took. Of values that are not known the columns are a quarter, and all if a shift is given.
    """
    resolvents, by = getattr(f, "resolvents", None), shift or 0.0
    columns = min(columns, budget // matvecs_per_column(A))
    singular = getattr(f, "positive", False) and not by
    if resolvents is None or singular or columns < FEWEST:
        return None, None, 0
    Omega = distributions.orthogonal(source, A.shape[0], columns)
    looks = [max(FIRST, columns // 4), columns // 2]
    Y = A.matmat(Omega[:, : looks[0]])
    if is_traced(Y):
        wanted, looks = shift is not None and not gradient, looks[:1]
    elif is_differentiated(Y):
        wanted, looks = False, looks[:1]
    else:
        Y, wanted = _looked(A, resolvents, by, budget, Omega, Y, looks)
    count = Y.shape[1]
    if not wanted:
        few = sketched(Omega[:, :count], constant(Y), by)
        return None, Pairs(few.V, few.values + by, few.values[-1] + by), count
    whole = sketched(Omega, A.xp.concat([Y, A.matmat(Omega[:, count:])], axis=1), by)
    return _estimate(A, f, whole, by), None, columns


def _looked(
    A: LinearOperator,
    resolvents: Resolvents,
    shift: float,
    budget: int,
    Omega: Array,
    Y: Array,
    looks: list[int],
) -> tuple[Array, bool]:
    """The products of the first columns, and whether all are to beat quadrature with the rest.

    The error goes on to fall with each doubling of the columns as it did with the last one; that of
    quadrature follows from what each probe of the sketch finds of what the others leave. Where the
    error falls, but not enough, half of the columns are looked at.
    """
    for count in looks:
        if count > Y.shape[1]:
            Y = A.xp.concat([Y, A.matmat(Omega[:, Y.shape[1] : count])], axis=1)
        before, _ = _promised(Omega[:, : count // 2], Y[:, : count // 2], resolvents, shift)
        now, spread = _promised(Omega[:, :count], Y, resolvents, shift)
        probes = (budget - count * matvecs_per_column(A)) // lanczos.cost(A, STEPS)
        ratio = min(now / before, 1.0) if before > 0 else 0.0
        if now * ratio ** math.log2(Omega.shape[1] / count) <= spread / max(probes, 1) ** 0.5:
            return Y, True
        if ratio > FALLS:
            break
    return Y, False


def _promised(Omega: Array, Y: Array, resolvents: Resolvents, shift: float) -> tuple[float, float]:
    """The error of these columns, and the spread of a probe in what the others leave."""
    sketch = sketched(Omega, Y, shift)
    found = bracket(sketch, resolvents, shift)
    spread = standard_error(found.lower - found.low) * math.sqrt(sketch.num_probes)
    _, *parts, _ = _error(sketch, found)
    return math.hypot(*(to_number(x).real for x in parts)), to_number(spread).real


def _error(sketch: Sketch, found: Bracket) -> tuple[Array, Array, Array, Array]:
    """The standard error; its parts, of the spread and of the bracket; and half of the bracket.

    The parts add up: the trace may lie at either end of the bracket, as a whole within 95 %.
    """
    xp = namespace(found.lower)
    upper = xp.minimum(xp.mean(found.klein), xp.mean(found.jensen))
    half = (upper - xp.mean(found.lower)) / 2
    spread = standard_error(found.lower) * sketch.inflation
    systematic = (xp.abs(half) + found.unknown) / t_quantile(LEVEL, sketch.num_probes - 1)
    return spread + systematic, spread, systematic, half


def _estimate(A: LinearOperator, f: Function, sketch: Sketch, shift: float) -> Estimate:
    """The middle of the bracket."""
    b = sketch.num_probes
    found = bracket(sketch, f.resolvents, shift)  # type: ignore[attr-defined]
    error, spread, systematic, half = _error(sketch, found)
    at_shift = f(namespace(half).zeros_like(sketch.values[:1]) + shift)[0, ...] if shift else 0.0
    samples = found.lower + (half + at_shift * sketch.n)
    estimate = mean(samples, b * matvecs_per_column(A), "", independent=False)
    return replace(
        estimate,
        standard_error=error,
        reason=f"the middle of a lower and an upper value from one sketch of {b} columns",
        kept=ErrorParts(spread, systematic),
    )


def _require_semidefinite(H: Array, shift: Array, given: float) -> None:
    """Refuse A, or a shift, if the compression of A to the probes shows eigenvalues below it."""
    require_hermitian(H, lanczos.REMEDY)
    if is_traced(H):
        return
    ritz = namespace(H).linalg.eigvalsh((H + adjoint(H)) / 2)
    least, size, by = (to_number(x).real for x in (ritz[0], ritz[-1], shift))
    if least >= by - ROUNDING * eps_of(H) * max(abs(size), by):
        return
    if not given:
        raise ValueError(
            "this function of a matrix needs eigenvalues of 0 or more, and the products show a "
            "negative one; add a multiple of the identity, A + c I"
        )
    raise ValueError(
        f"`shift` must be no more than the least eigenvalue of A, got {given!r}, and the products "
        f"show one of {given * least / by:.6g} or less; pass a lesser shift"
    )
