r"""Log-determinants and traces of inverses with a preconditioner P from the caller.

:math:`\log\det A = \log\det P + E\, \omega^H \log(L^{-1} A L^{-H})\, \omega` for
:math:`P = L L^H`, and :math:`\mathrm{tr} A^{-1} = c\, \mathrm{tr} P^{-1} + E\, \omega^H (A^{-1} - c
P^{-1})\, \omega`. The forms of the inverse are Gauss rules of :math:`P^{-1} A` in the inner product
of P, which start from :math:`P^{-1} \omega`: so :math:`\omega^H P^{-1} \omega` is the squared norm
of the start, and the error is that of conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .._arrays import Array, Rng, abs2, eps_of, is_traced, namespace, to_number
from .._controls import Preconditioner, fitted, read_preconditioner, told, trace_of_inverse
from .._estimates import Estimate, checked_budget, mean, standard_error
from .._operators import LinearOperator, gram, matvecs_per_column
from .._sketches import (
    ControlVariate,
    Fold,
    Krylov,
    Spaces,
    cross_fit,
    gauss,
    lanczos,
    most_columns,
    preconditioned,
)
from ..functions import Function, inv, log, semidefinite, values
from ..probes import Source, distributions
from ..quadrature import Lanczos
from .batch import Batch, evaluate
from .quadrature import NOT_SETTLED, Depth, combined, judged_by_error
from .request import LEAST_DEPTH, PILOT, Request, Start, requested

Settle = Callable[[Request, Start], tuple[Start, Depth]]  # `choose_depth` of all such traces
FEWEST = 3  # first probes: two may agree by chance
ROOT_DEPTH = 16, 1024  # steps, first and last, in which the root of a preconditioner may settle


@dataclass(frozen=True)
class Fitted(ControlVariate):
    """Forms of f(A) less those of the inverse of a preconditioner, times what they are fitted by.

    Of the first probes, by which the depth is judged, the coefficient is that of themselves.
    """

    control: Array = None
    value: Array = None
    variance: Array | float = 0.0
    first: bool = False

    def coefficients(self, forms: Array) -> Array:
        """For each probe, from others."""
        return fitted(forms, self.control, self.variance)

    def residuals(self, forms: Array, Omega: Array) -> Array:
        """What is averaged over the probes."""
        if forms.ndim > 1:
            return forms
        if not self.first:
            return forms - self.coefficients(forms) * (self.control - self.value)
        xp, k = namespace(forms), forms.shape[0]
        if k <= FEWEST:
            return forms
        y, p = (x - xp.mean(x) for x in (forms, self.control))
        square = xp.sum(p * p)
        c = xp.sum(p * y) / xp.where(square > 0, square, xp.ones_like(square))
        return xp.mean(forms) + (y - c * p) * ((k - 1) / (k - 2)) ** 0.5


def whitened(A: LinearOperator, F: LinearOperator) -> LinearOperator:
    """``F^H A F``, with a factor where A has one."""
    if A.factor is not None:
        return gram(F.H @ A.factor)

    def product(X: Array) -> Array:
        Y: Array = F.H.matmat(A.matmat(F.matmat(X)))
        return Y

    made: LinearOperator = A._like(A.shape, product, product)
    return made


def has_root(M: LinearOperator) -> bool:
    """Whether a square root of the inverse is at hand."""
    return M.factor is not None and M.factor.shape == M.shape


def beside_known(found: Estimate, known: Array) -> Estimate:
    """The estimate of a sum, one part of which is known."""
    samples = None if found.samples is None else found.samples + known
    reason = f"preconditioned; {found.reason}" if found.reason else "preconditioned"
    return replace(found, value=found.value + known, samples=samples, reason=reason)


def logdet_without_root(
    A: LinearOperator,
    num_matvecs: int | None,
    rng: Rng,
    P: Preconditioner,
    depth: int | None,
    settle: Settle,
) -> Estimate:
    """The trace of log(P^-1 A), by its own inner product."""
    spent = run(A, P, log, num_matvecs, rng, depth, settle, None)
    found = spent.estimate(log, spent.cv, spent.folds, "logdet")
    slope = A.xp.full_like(found.value, A.shape[0])
    return replace(found, slope=slope, slope_error=A.xp.zeros_like(found.standard_error))


def inverse_trace(
    A: LinearOperator,
    num_matvecs: int | None,
    rng: Rng,
    preconditioner: Any,
    depth: int | None,
    settle: Settle,
) -> Estimate:
    """The trace of the inverse, with that of P as a control variate."""
    P = read_preconditioner(preconditioner, A)
    value, error = trace_of_inverse(P, A)
    variance = error * error

    def control(K: Krylov, first: bool) -> Fitted:
        norms = preconditioned.start_norms(K)
        return Fitted(K.operator, None, control=norms, value=value, variance=variance, first=first)

    spent = run(A, P, inv, num_matvecs, rng, depth, settle, control)
    cv, batch = spent.cv, spent.batch
    assert isinstance(cv, Fitted)
    found = spent.estimate(inv, cv, [], "trace_inverse")
    xp, c = A.xp, A.xp.mean(cv.coefficients(batch.forms))
    samples, wider = cross_fit(
        inv, batch.forms, spent.folds,
        squared=False, control=(cv.control, value), instead=batch.residuals,
    )  # fmt: skip
    again = mean(samples, found.num_matvecs, found.method, independent=not spent.folds)
    parts = found.kept
    monte_carlo = xp.hypot(again.standard_error * wider, xp.abs(c) * error)
    whole = xp.hypot(monte_carlo, parts.quadrature)
    worth = told(c, monte_carlo, standard_error(batch.forms), samples.shape[0])
    return replace(
        found,
        value=again.value,
        standard_error=whole,
        samples=samples,
        skewness=again.skewness,
        kept=parts._replace(monte_carlo=monte_carlo),
        slope=-again.value,
        slope_error=whole,
        reason=f"{found.reason}; {worth}",
    )


class Spent(NamedTuple):
    """What a budget gave: forms of all probes, and what they are deflated by."""

    cv: ControlVariate
    batch: Batch
    folds: list[Fold]
    depth: Depth
    num_matvecs: int

    def estimate(self, f: Function, cv: ControlVariate, folds: list[Fold], method: str) -> Estimate:
        """The mean of the samples, with both errors."""
        probes, count = distributions.rademacher, self.batch.forms.shape[-1]
        found = combined(f, cv, [self.batch], folds, self.depth, probes, self.num_matvecs, method)
        found = judged_by_error(found)
        reason = f"{count} probes, depth {self.depth.steps}, and as many solves, not counted"
        reason += "" if found.converged else f"; {NOT_SETTLED}"
        return replace(found, reason=reason)


def run(
    A: LinearOperator,
    P: Preconditioner,
    f: Function,
    num_matvecs: int | None,
    rng: Rng,
    depth: int | None,
    settle: Settle,
    control: Callable[[Krylov, bool], Fitted] | None,
) -> Spent:
    """Spend a budget on spaces of P^-1 A: on a depth first, then on probes.

    With a control the probes are duals of what the spaces start from, so that their forms are those
    of f(P^-1 A) P^-1; without, what they start from is made of probes by a root of P^-1.
    """
    per, M, dual_probes = matvecs_per_column(A), P.inverse, control is not None
    if A.factor is not None:
        A = A._like(A.shape, A.matmat, A.rmatmat)
    way = Lanczos(reorthogonalise=True)
    budget = checked_budget(num_matvecs) // per
    request = requested(A, f, max(budget, 1), depth=depth, deflate=0, quadrature=way)
    budget, source = request.budget, Source(rng, A)
    take = distributions.stream(request.probes, source, A.shape[0], min(budget, A.shape[0]))

    def draw(count: int) -> Array:
        return take(count) if dual_probes else root_applied(M, take(count))

    def begin(duals: Array) -> Krylov:
        return preconditioned.begin(A, M, duals, dual_probes=dual_probes)

    def surrogate(K: Krylov, first: bool) -> ControlVariate:
        return ControlVariate(A) if control is None else control(K, first)

    X = draw(_first_probes(request))
    K = begin(X).advance(1)
    begun, chosen = settle(request, Start(surrogate(K, True), K, X, 0, 0))
    spent = begun.groups * chosen.steps + chosen.num_matvecs
    more = (budget - spent) // chosen.steps
    spaces = Spaces(begun.K, most_columns(A))
    room = max(most_columns(A) // chosen.steps - begun.groups, 0)  # whose bases are kept
    for count in (min(more, room), max(more - room, 0)):
        spaces.grow(count, draw, begin)
    every: Any = spaces.read()
    cv = surrogate(every, False)
    batch = evaluate(f, cv, every, None, chosen.steps)
    return Spent(cv, batch, spaces.folds(), chosen, per * (spent + more * chosen.steps))


def _first_probes(request: Request) -> int:
    """As many as have a spread, if that many are affordable."""
    budget = request.budget
    least = FEWEST if budget >= FEWEST * LEAST_DEPTH else 2
    few = max(min(PILOT, budget // 40), least)
    return max(1, min(few, budget // (request.depth or 1)))


def root_applied(M: LinearOperator, X: Array) -> Array:
    """``M^-1/2 X`` by Lanczos with M alone, until it rests."""

    def at(x: Array) -> Array:
        return values(semidefinite(lambda x: x**-0.5), x)

    if is_traced(X):
        raise TypeError(
            "the root of `preconditioner` is not found in compiled code; pass one whose inverse is "
            "gram(F)"
        )
    xp, (steps, last) = M.xp, ROOT_DEPTH
    plain = M if M.factor is None else M._like(M.shape, M.matmat, M.rmatmat)
    K, before = lanczos.begin(plain, X, reorthogonalise=False), None
    while steps <= last:
        K = K.advance(steps)
        C = gauss.coordinates(K, steps, at)
        if before is not None:
            same = before.shape[1]
            change = xp.sum(abs2(C[:, :same, :] - before)) + xp.sum(abs2(C[:, same:, :]))
            if to_number(change).real <= eps_of(change) * to_number(xp.sum(abs2(C))).real:
                return gauss.applied_twice(K, X, at)
        before, steps = C, 2 * steps
    raise ValueError(
        f"the root of `preconditioner` has not settled in {last} steps; pass one whose inverse is "
        "gram(F), which knows its root"
    )
