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
from .._operators import matvecs_per_column
from .._sketches import lanczos, leave_one_out, nystrom_factor
from ..functions import Resolvents
from ..probes import Source, distributions
from .deflation import Pairs
from .request import Request

FEWEST = 16  # columns: with fewer, a sketch for a first look leaves too little
FIRST = 8  # columns of the first look, or a quarter of all
STEPS = 7  # products of a probe of the quadrature that the sketch competes with
LEVEL = 0.95
MEGABYTES = 128
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
    """The lower value of each probe, and the two upper ones, of which J has no spread of its own."""

    low: Array  # tr f without each probe
    lower: Array
    klein: Array
    jensen: Array


def sketched(Omega: Array, Y: Array, shift: float) -> Sketch:
    """What is read from ``Y = A Omega``, for orthogonal probes of squared length n."""
    xp, (n, b) = namespace(Y), Omega.shape
    require_finite(Y)
    unit = magnitude(Y)
    Y, by = Y / unit, shift / unit
    _require_semidefinite(inner(Omega, Y) / n, by, shift)
    rounding = 30 * eps_of(Y) * by  # what is left of a multiple of the identity
    left, _, D, nu = nystrom_factor(
        Omega, Y - Omega * (by - rounding), eye_like(Y, b) * n, REMEDY
    )
    Q, R = householder_qr(left)
    U, s, Vh = xp.linalg.svd(R, full_matrices=False)
    theta = s * s - nu - rounding
    theta = xp.where(theta > 0, theta, xp.zeros_like(theta)) * unit
    V, T = Q @ U, Vh @ (D / xp.sqrt(colnorm2(D))[None, :])
    samples, replicates = leave_one_out.nystrom(inner(R, R), D, n, eye_like(Y, b) / n)
    spread = standard_error(samples)
    grown = combined_error(samples, replicates, spread, few=0) / positive(spread)
    inflation = xp.maximum(grown, xp.ones_like(grown))
    return Sketch(V, theta, T, adjoint(V) @ Omega, inflation, b, n)


def bracket(sketch: Sketch, resolvents: Resolvents, shift: float) -> Bracket:
    """The values of ``f(x + shift) - f(shift)``, at the cost of 3 b^2 operations a node."""
    xp, x = namespace(sketch.V), sketch.values
    rest = sketch.n - sketch.num_probes + 1
    scale, size = rest / sketch.n, abs2(sketch.T)
    c, weights = resolvents(positive(xp.max(x)), shift)
    h = 1 / (x[None, :] + c[:, None])  # the resolvent of each node
    cross = conj(sketch.W) * (xp.astype(xp.sqrt(x), sketch.T.dtype)[:, None] * sketch.T)
    whole = coldot(sketch.W, xp.astype(xp.sqrt(x), cross.dtype)[:, None] * sketch.T)
    hidden = h @ size  # (1 - z^H h z) / c, without cancellation
    less = ((x[None, :] * h) * h) @ size / hidden
    once, twice = (xp.astype(y, cross.dtype) @ cross for y in (h, h * h))
    gain = abs2(once) / hidden
    slope = (twice + once * (less / c[:, None])) / hidden
    low = xp.sum(weights[:, None] * (xp.sum(x * h, axis=-1)[:, None] - less), axis=0)
    lower = low + xp.sum(weights[:, None] * gain, axis=0) * scale
    klein = xp.sum(weights[:, None] * real(slope * conj(whole)[None, :]), axis=0) * scale
    left = xp.mean(abs2(whole)) * (scale / rest)
    jensen = low + rest * xp.sum(weights * (left / (left + c)))
    return Bracket(low, lower, low + klein, jensen)


def attempt(
    request: Request, source: Source, method: str
) -> tuple[Estimate | None, Pairs | None, int]:
    """The estimate, if the first columns promise one that is better than by quadrature.

    If not, the eigenpairs that these columns show, for a control variate, and how many they are.
    """
    columns = _affordable_columns(request)
    if not columns:
        return None, None, 0
    A, shift, first = request.A, request.shift or 0.0, max(FIRST, columns // 4)
    Omega = distributions.orthogonal(source, A.shape[0], columns)
    Y = A.matmat(Omega[:, :first])
    traced, known = is_traced(Y), constant(Y)
    few = sketched(Omega[:, :first], known, shift)
    wanted = request.shift is not None if traced else _promises(request, few, Omega, known, columns)
    if not wanted or (is_differentiated(Y) and (request.gradient or not traced)):
        least = few.values[-1]
        return None, Pairs(few.V, few.values + shift, least + shift), first
    Y = A.xp.concat([Y, A.matmat(Omega[:, first:])], axis=1)
    whole = sketched(Omega, Y, shift)
    return _estimate(request, whole, method), None, columns


def _affordable_columns(request: Request) -> int:
    """Columns of a sketch that the whole budget allows; 0 where no sketch is to be tried."""
    A, f = request.A, request.f
    chosen = request.deflate is not None or request.depth is not None or request.block > 1
    singular = getattr(f, "positive", False) and not request.shift
    if chosen or singular or getattr(f, "resolvents", None) is None:
        return 0
    fitting = MEGABYTES * 2**20 // (A.shape[0] * request.itemsize)
    columns = min(request.budget // matvecs_per_column(A), A.shape[0] // 2, fitting)
    return columns if columns >= FEWEST else 0


def _promises(request: Request, few: Sketch, Omega: Array, Y: Array, columns: int) -> bool:
    """Whether all columns are to give a lesser error than quadrature with the rest of the budget.

    The error goes on to fall with each doubling of the columns as it did with the last one; that of
    the quadrature follows from what the probes of the sketch find in what the others leave.
    """
    f, shift, b = request.f.resolvents, request.shift or 0.0, few.num_probes
    half = b // 2
    found = bracket(few, f, shift)
    before = sketched(Omega[:, :half], Y[:, :half], shift)
    now, then = (
        to_number(_error(s, x, 1.0)[0]).real
        for s, x in ((few, found), (before, bracket(before, f, shift)))
    )
    spent = b * matvecs_per_column(request.A)
    probes = (request.budget - spent) // request.cost(STEPS)
    spread = to_number(standard_error(found.lower - found.low)).real * math.sqrt(b)
    other = spread / math.sqrt(probes) if probes > 1 else math.inf
    ratio = min(now / then, 1.0) if then > 0 else 0.0
    return now * ratio ** math.log2(columns / b) < other


def _error(sketch: Sketch, found: Bracket, unit: float) -> tuple[Array, Array, Array]:
    """The error, and its parts: the spread of the values, and half of the bracket over a unit."""
    xp = namespace(found.lower)
    upper = xp.minimum(xp.mean(found.klein), xp.mean(found.jensen))
    half = xp.abs(upper - xp.mean(found.lower)) / 2
    spread = standard_error(found.lower) * sketch.inflation
    return xp.hypot(spread, half / unit), spread, half / unit


def _estimate(request: Request, sketch: Sketch, method: str) -> Estimate:
    """The middle of the bracket, with an interval of 95 % that allows for half of its width."""
    shift, b = request.shift or 0.0, sketch.num_probes
    found = bracket(sketch, request.f.resolvents, shift)
    xp = namespace(found.lower)
    upper = xp.minimum(xp.mean(found.klein), xp.mean(found.jensen))
    lower = xp.mean(found.lower)
    at_zero = request.f(xp.zeros_like(sketch.values[:1]) + shift)[0] * sketch.n if shift else 0.0
    samples = found.lower + ((upper - lower) / 2 + at_zero)
    error, spread, half = _error(sketch, found, t_quantile(LEVEL, b - 1))
    spent = b * matvecs_per_column(request.A)
    estimate = mean(samples, spent, method, independent=False)
    reason = f"the middle of a lower and an upper value from one sketch of {b} columns"
    return replace(
        estimate, standard_error=error, reason=reason, kept=ErrorParts(spread, half)
    )


def _require_semidefinite(H: Array, shift: Array, given: float) -> None:
    """Refuse a shift that the compression of A to the probes shows to be too large."""
    require_hermitian(H, lanczos.REMEDY)
    if is_traced(H) or not given:
        return
    ritz = namespace(H).linalg.eigvalsh((H + adjoint(H)) / 2)
    least, size = (to_number(x).real for x in (ritz[0], ritz[-1]))
    below = to_number(shift).real
    if least < below - 1e3 * eps_of(H) * max(abs(size), below):
        raise ValueError(
            f"`shift` must be no more than the least eigenvalue of A, got {given!r}, and the "
            f"products show one of {given * least / below:.6g} or less; pass a lesser shift"
        )
