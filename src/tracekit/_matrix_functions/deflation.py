r"""Takes out of tr f(A) what a low-rank sketch of A knows, so that probes estimate only the rest.

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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    abs2,
    adjoint,
    cholesky,
    colnorm2,
    constant,
    eps_of,
    eye_like,
    householder_qr,
    is_traced,
    magnitude,
    namespace,
)
from .._estimates import require_finite
from .._operators import LinearOperator, gram, matvecs_per_column
from .._sketches import factor_sketch, lanczos, nystrom_sketch
from ..functions import Function, inv, is_semidefinite, log, values
from ..probes import Source, distributions

STEPS = 3  # of the block Krylov space that sketches an indefinite operator


class Pairs(NamedTuple):
    """Approximate eigenpairs, and one value for the rest of the spectrum."""

    V: Array
    theta: Array
    mu: Array


@dataclass(frozen=True)
class Deflated:
    """What is left to probes: ``known + E [z^H f(A) z - form(omega)]``, z made of omega."""

    A: LinearOperator
    root: Callable[[Array], Array] | None = None  # z = root(omega)
    known: Array | None = None
    form: Callable[[Array], Array] | None = None
    scaled: Callable[[Array], Array] | None = None  # P^{-1/2}, where A stands for B
    V: Array | None = None
    level: Array | float = 0.0  # of what is left, in the range of V
    clipped: Callable[[Array, Array, Array], Array] | None = None  # form, theta within bounds

    def start(self, Omega: Array) -> Array:
        """What the Krylov spaces start from."""
        return Omega if self.root is None else self.root(Omega)

    def rest(self, x: Array, Omega: Array) -> Array:
        """Of the forms of f(A), what is to be averaged."""
        return x if self.form is None else x - self.form(Omega)

    def unseen(self, Omega: Array, low: Array, high: Array) -> Array | None:
        """What the form owes to eigenvalues beyond what a probe's Krylov space has seen."""
        if self.form is None or self.clipped is None:
            return None
        change = self.form(Omega) - self.clipped(Omega, low, high)
        return namespace(change).abs(change)

    def inside(self, Omega: Array) -> Array | None:
        """How much of each probe lies in the range of V."""
        return None if self.V is None else colnorm2(adjoint(self.V) @ Omega)

    def levelled(self, samples: Array, inside: Array) -> Array:
        """Samples of what is left, relieved of the spread that a constant outside of V causes.

        For each sample the constant is read from all others, so that their mean keeps its
        expectation.
        """
        xp, count, n = namespace(samples), samples.shape[-1], self.A.shape[0]
        if self.V is None or count < 2:
            return samples
        dimension = xp.sum(colnorm2(self.V))
        others = (xp.sum(samples, axis=-1)[..., None] - samples) / (count - 1)
        level = self.level if isinstance(self.level, float) else self.level[..., None]
        return samples + (others - n * level) / (n - dimension) * (inside - dimension)


def cost(A: LinearOperator, f: Function) -> int:
    """Products that a column of the sketch costs."""
    return matvecs_per_column(A) if is_semidefinite(f) else lanczos.cost(A, STEPS)


def dimension(f: Function, columns: int) -> int:
    """What a sketch of so many columns spans."""
    return columns if is_semidefinite(f) else columns * STEPS


def is_preconditioned(f: Function) -> bool:
    """Whether its value at a product follows from those at the factors."""
    return f in (log, inv)


def deflated(A: LinearOperator, f: Function, b: int, source: Source) -> tuple[Deflated, int]:
    """What a sketch of b columns leaves, and the products that it costs."""
    Omega = distributions.orthogonal(source, A.shape[0], b) / A.shape[0] ** 0.5
    pairs = nystrom_pairs(A, Omega, source) if is_semidefinite(f) else krylov_pairs(A, Omega)
    pairs = Pairs(*(constant(x) for x in pairs))  # any will do: derivatives need not see them
    spent = b * cost(A, f)
    if is_preconditioned(f):
        return _preconditioned(A, f, pairs), spent
    both = A.xp.concat([pairs.theta, pairs.mu[None]])
    at = values(f, both, squared=True)
    gain = at[..., :-1] - at[..., -1:]

    def form(Omega: Array) -> Array:
        shares = abs2(adjoint(pairs.V) @ Omega)
        return A.xp.sum(gain[..., None] * shares, axis=-2)

    def clipped(Omega: Array, low: Array, high: Array) -> Array:
        shares = abs2(adjoint(pairs.V) @ Omega)
        theta = A.xp.minimum(A.xp.maximum(pairs.theta[:, None], low), high)
        return A.xp.sum((f(theta) - at[..., -1:][..., None]) * shares, axis=-2)

    known = A.xp.sum(gain * colnorm2(pairs.V), axis=-1)  # directions that vanished are zero
    rest = Deflated(A, known=known, form=form, V=pairs.V, level=at[..., -1], clipped=clipped)
    return rest, spent


def nystrom_pairs(A: LinearOperator, Omega: Array, source: Source) -> Pairs:
    """Of a positive semidefinite A, from its products with orthonormal Omega.

    The least eigenvalue of the sketch, which is no less than that of A, stands for the rest.
    """
    xp, b = A.xp, Omega.shape[1]
    if A.factor is None:
        sketch = nystrom_sketch(A, Omega)
        norm = namespace(Omega).max(colnorm2(sketch.Y)) ** 0.5
        shift, C = _shifted_cholesky(adjoint(Omega) @ sketch.Y, norm)
        D = xp.linalg.solve(C, eye_like(C, b))
        left, unit = (sketch.Y + Omega * shift) @ adjoint(D), sketch.scale
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


def _shifted_cholesky(G: Array, norm: Array) -> tuple[Array, Array]:
    """A multiple of the identity at rounding level, and the factor of what it makes definite.

    `norm` is what is known of A's, of which G may hold nothing but rounding.
    """
    require_finite(G)
    eps, traced = eps_of(G), is_traced(G)
    lanczos.require_hermitian(G, G, norm)
    unit, eye = magnitude(G), eye_like(G, G.shape[0])
    shift = (100 if traced else 1) * eps * G.shape[0]
    while True:
        C = cholesky((G + adjoint(G)) / 2 + eye * (unit * shift))
        if C is not None:
            return unit * shift, C
        shift *= 10
        if shift > max(1e-6, 1e3 * eps * G.shape[0]):
            raise ValueError(
                "this function of a matrix needs eigenvalues of 0 or more, and the products show "
                "that there are negative ones; add a multiple of the identity, A + c I"
            )


def krylov_pairs(A: LinearOperator, Omega: Array) -> Pairs:
    """Of any Hermitian A, the Ritz pairs of a block Krylov space."""
    xp, n = A.xp, A.shape[0]
    K = lanczos.begin(Omega, Omega.shape[1])
    for _ in range(STEPS):
        K = lanczos.advance(A, K)
    theta, V = (x[0, ...] for x in lanczos.ritz(A, K))
    nodes, M = lanczos.rule(A, K, 1)
    whole = xp.mean(lanczos.forms(nodes, M, nodes)) * n  # mu: the mean eigenvalue outside
    mu = (whole - xp.sum(theta * colnorm2(V))) / max(n - theta.shape[0], 1)
    return Pairs(V, theta, xp.clip(mu, xp.min(theta), xp.max(theta)))


def _preconditioned(A: LinearOperator, f: Any, pairs: Pairs) -> Deflated:
    """Log and inverse, whose value at a product follows from those at its factors."""
    xp, n, V = A.xp, A.shape[0], pairs.V
    mu = pairs.mu
    values(f, mu[None])  # refused if A is zero
    theta = pairs.theta
    down = mu**-0.5
    change = (theta**-0.5 - down)[:, None]

    def root(X: Array) -> Array:
        return X * down + V @ (change * (adjoint(V) @ X))

    M = A._like(A.shape, root, root)
    B = gram(M @ A.factor) if A.factor is not None else M @ A @ M
    if f is log:
        known = xp.sum(xp.log(theta / mu)) + n * xp.log(mu)
        return Deflated(B, known=known, scaled=root, V=V)
    known = xp.sum(1 / theta - 1 / mu) + n / mu
    return Deflated(B, root, known, lambda X: colnorm2(root(X)), scaled=root, V=V)
