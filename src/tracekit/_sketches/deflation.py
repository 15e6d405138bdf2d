r"""Computes the trace of a low-rank sketch of A, so that probes estimate only the remainder.

The sketch gives orthonormal V and eigenvalues :math:`\theta`, so that A is close to
:math:`P = V \theta V^H + \mu (I - V V^H)`. It is Nystrom's for positive semidefinite A, and the
Ritz pairs of a block Krylov space for any other: all that was multiplied is used. Then, whatever
the quality of P and without bias,

* :math:`\mathrm{tr} f(A) = \mathrm{tr} f(P) + E\, \omega^H (f(A) - f(P)) \omega` for any f;
* with :math:`B = P^{-1/2} A P^{-1/2}`, whose spectrum is close to 1, so that few steps suffice,
  :math:`\log\det A = \log\det P + E\, \omega^H \log(B) \omega` and
  :math:`\mathrm{tr} A^{-1} = \mathrm{tr} P^{-1} + E\, z^H (B^{-1} - I) z` with
  :math:`z = P^{-1/2} \omega`.

Saibaba, Alexanderian, Ipsen (2017), arXiv:1605.04893; Wenger, Pleiss, Hennig, Cunningham, Gardner
(2022), arXiv:2107.00243; Persson, Kressner (2023), arXiv:2209.11023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .._arrays import (
    Array,
    abs2,
    colnorm2,
    device_of,
    eps_of,
    eye_like,
    householder_qr,
    inner,
    namespace,
    require_hermitian,
)
from .._estimates import standard_error
from .._operators import LinearOperator, gram, matvecs_per_column
from ..functions import Function, inv, is_semidefinite, log, values
from ..probes import Source, distributions
from . import gauss, lanczos
from .cross_fitting import Fold
from .nystrom import nystrom_factor
from .range_sketch import factor_sketch, nystrom_sketch

REMEDY = "this function is not defined at negative eigenvalues: pass A + c I"
PAYS = 0.7  # of the spread of plain samples, that of deflated ones has to be
SHARED, FEW = 1.5, 15  # times the spread of samples whose folds share spaces; more if these are few
STEPS = 3  # of the block Krylov space that sketches an indefinite operator


class Pairs(NamedTuple):
    """Approximate eigenpairs, and one value for the rest of the spectrum."""

    V: Array
    theta: Array
    mu: Array


@dataclass(frozen=True)
class ControlVariate:
    r"""The trace of f(A) as that of f(P), P close to A, and a mean over probes.

    It is ``exact_part + E [z^H f(operator) z - surrogate(omega)]`` for probes omega, where z is
    omega, or the preconditioner's product with it.
    """

    operator: LinearOperator
    exact_part: Array | None = None
    surrogate: Callable[[Array], Array] | None = None  # quadratic forms of f(P)
    clipped_surrogate: Callable[[Array, Array, Array], Array] | None = None  # P within bounds
    precondition: Callable[[Array], Array] | None = None  # P^{-1/2}: the operator is not A then
    preconditions_probes: bool = False
    V: Array | None = None  # orthonormal: where P is more than a multiple of the identity
    level: Array | float = 0.0  # residual on the range of V

    def start(self, Omega: Array) -> Array:
        """What the Krylov spaces start from."""
        return self.applied(Omega) if self.preconditions_probes else Omega

    def applied(self, X: Array) -> Array:
        """The preconditioner's product with X."""
        return X if self.precondition is None else self.precondition(X)

    def residuals(self, forms: Array, Omega: Array) -> Array:
        """What is averaged over the probes, from their forms of f(operator)."""
        return forms if self.surrogate is None else forms - self.surrogate(Omega)

    def beyond(self, Omega: Array, low: Array, high: Array) -> Array | None:
        """Part of the surrogate that comes from eigenvalues outside of the bounds of each probe."""
        if self.surrogate is None or self.clipped_surrogate is None:
            return None
        change = self.surrogate(Omega) - self.clipped_surrogate(Omega, low, high)
        return namespace(change).abs(change)

    def energy(self, Omega: Array) -> Array | None:
        """The part of each probe's squared length that lies in the range of V."""
        return None if self.V is None else colnorm2(inner(self.V, Omega))

    def samples(self, residuals: Array, energy: Array | None) -> Array:
        """Samples of the trace, without the spread of a residual that is constant outside of V.

        For each sample the constant comes from all others, so that the mean stays unbiased.
        """
        if self.exact_part is None or self.V is None:
            return residuals
        xp, count, n = namespace(residuals), residuals.shape[-1], self.operator.shape[0]
        if count > 1:
            dimension = xp.sum(colnorm2(self.V))
            others = (xp.sum(residuals, axis=-1)[..., None] - residuals) / (count - 1)
            level = self.level if isinstance(self.level, float) else self.level[..., None]
            slope = (others - n * level) / (n - dimension)
            residuals = residuals + slope * (energy - dimension)
        return residuals + self.exact_part[..., None]


def cross_fit(
    f: Function,
    forms: Array,
    folds: Sequence[Fold],
    *,
    squared: bool,
    control: tuple[Array, Array] | None = None,
    instead: Array | None = None,
) -> tuple[Array, Array | float]:
    """Samples of the trace, deflated by the spaces of other folds, and what widens their error.

    The forms themselves (or what is to be `instead`) where that does not lessen the spread. Folds
    share spaces, so that the spread alone is too small: the factor is calibrated by experiment. The
    `control` are the forms of an inverse beside which the spaces were made, and its trace.
    """
    instead = forms if instead is None else instead
    if not folds:
        return instead, 1.0
    xp, parts = namespace(forms), list[Array]()

    def chosen(of: Array, which: Any) -> Array:
        return xp.take(of, xp.asarray(np.array(which), device=device_of(of)), axis=-1)

    for fold in folds:
        x = xp.concat([fold.theta, fold.mu[None]])
        if is_semidefinite(f):
            x = xp.maximum(x, 100 * eps_of(x) * xp.max(x))
        at = values(f, x, squared=squared)
        gain = at[..., :-1] - at[..., -1:]
        known = xp.sum(gain * fold.share, axis=-1)
        parts.append(chosen(forms, fold.members) + (known[..., None] - gain @ fold.energy))
        if control is not None:
            form, trace = control
            parts[-1] = parts[-1] - at[..., -1:] * (chosen(form, fold.members) - trace)
    order = np.argsort([j for fold in folds for j in fold.members])
    samples = chosen(xp.concat(parts, axis=-1), order)
    plain, error = standard_error(instead), standard_error(samples)
    pays = error <= PAYS * plain
    wider = SHARED * (1 + FEW / samples.shape[-1] ** 2)
    factor = xp.where(pays, xp.full_like(error, wider), xp.ones_like(error))
    return xp.where(pays[..., None], samples, instead), factor


def sketch_cost(A: LinearOperator, f: Function) -> int:
    """Products that a column of the sketch costs."""
    return matvecs_per_column(A) if is_semidefinite(f) else lanczos.cost(A, STEPS)


def dimension(f: Function, columns: int) -> int:
    """What a sketch of so many columns spans."""
    return columns if is_semidefinite(f) else columns * STEPS


def is_preconditioned(f: Function) -> bool:
    """Whether its value at a product follows from those at the factors."""
    return f in (log, inv)


def deflated(A: LinearOperator, f: Function, b: int, source: Source) -> tuple[ControlVariate, int]:
    """The control variate of a sketch of b columns, and its cost; constant to differentiation."""
    Omega = distributions.orthogonal(source, A.shape[0], b) / A.shape[0] ** 0.5
    sketched, spent = lanczos.constant_operator(A), b * sketch_cost(A, f)
    if is_semidefinite(f):
        pairs = nystrom_pairs(sketched, Omega, source)
    else:
        pairs = krylov_pairs(sketched, Omega)
    return control_variate(A, f, pairs), spent


def control_variate(A: LinearOperator, f: Function, pairs: Pairs) -> ControlVariate:
    """The control variate that approximate eigenpairs make."""
    if is_preconditioned(f):
        return _preconditioned(A, f, pairs)
    xp, (V, theta, mu) = A.xp, pairs
    at = values(f, xp.concat([theta, mu[None]]), squared=True)
    gain = at[..., :-1] - at[..., -1:]

    def form(Omega: Array, gain: Array) -> Array:
        return xp.sum(gain * abs2(inner(V, Omega)), axis=-2)

    def clipped(Omega: Array, low: Array, high: Array) -> Array:
        within = xp.minimum(xp.maximum(theta[:, None], low), high)
        return form(Omega, f(within) - at[..., -1:][..., None])

    return ControlVariate(
        A,
        exact_part=xp.sum(gain * colnorm2(V), axis=-1),  # directions that vanished are zero
        surrogate=lambda Omega: form(Omega, gain[..., None]),
        clipped_surrogate=clipped,
        V=V,
        level=at[..., -1],
    )


def nystrom_pairs(A: LinearOperator, Omega: Array, source: Source) -> Pairs:
    """Of a positive semidefinite A, from its products with orthonormal Omega.

    The least eigenvalue of the sketch, which is no less than that of A, is taken for all others.
    """
    xp, b = A.xp, Omega.shape[1]
    if A.factor is None:
        sketch = nystrom_sketch(A, Omega)
        require_hermitian(inner(Omega, sketch.Y), lanczos.REMEDY)
        left, _, _, shift = nystrom_factor(Omega, sketch.Y, eye_like(Omega, b), REMEDY)
        unit = sketch.scale
    else:
        made = factor_sketch(A.factor, Omega, source.signs((A.factor.shape[1], b)))
        left, unit = made.Z, made.scale * made.scale
        shift = xp.zeros_like(made.scale)
    Q, R = householder_qr(left)
    U, s, _ = xp.linalg.svd(R)
    theta = s * s - shift
    rounding = 100 * eps_of(theta) * xp.max(theta)  # a singular A is found to be so by the probes
    return Pairs(
        Q @ U, xp.maximum(theta, rounding) * unit, xp.maximum(xp.min(theta), rounding) * unit
    )


def krylov_pairs(A: LinearOperator, Omega: Array) -> Pairs:
    """Of any Hermitian A, the Ritz pairs of a block Krylov space."""
    xp, n = A.xp, A.shape[0]
    K = lanczos.begin(A, Omega, Omega.shape[1]).advance(STEPS)
    theta, V = (x[0, ...] for x in gauss.ritz(K))
    nodes, M = gauss.rule(K, 1)
    whole = xp.mean(gauss.forms(nodes, M, nodes)) * n  # mu: the mean eigenvalue outside
    mu = (whole - xp.sum(theta * colnorm2(V))) / max(n - theta.shape[0], 1)
    return Pairs(V, theta, xp.clip(mu, xp.min(theta), xp.max(theta)))


def _preconditioned(A: LinearOperator, f: Any, pairs: Pairs) -> ControlVariate:
    """Log and inverse, whose value at a product follows from those at its factors."""
    xp, n, (V, theta, mu) = A.xp, A.shape[0], pairs
    values(f, mu[None])  # refused if A is zero
    down = mu**-0.5
    change = (theta**-0.5 - down)[:, None]

    def root(X: Array) -> Array:
        return X * down + V @ (change * inner(V, X))

    M = A._like(A.shape, root, root)
    B = gram(M @ A.factor) if A.factor is not None else M @ A @ M
    if f is log:
        exact_part = xp.sum(xp.log(theta / mu)) + n * xp.log(mu)
        return ControlVariate(B, exact_part, precondition=root, V=V)
    exact_part = xp.sum(1 / theta - 1 / mu) + n / mu
    return ControlVariate(
        B,
        exact_part,
        lambda X: colnorm2(root(X)),
        precondition=root,
        preconditions_probes=True,
        V=V,
    )
