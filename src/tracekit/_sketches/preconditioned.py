r"""Krylov bases of :math:`P^{-1} A` in the inner product of P, from products with :math:`P^{-1}`.

:math:`P^{-1} A` is self-adjoint in :math:`\langle x, y \rangle = x^H P y`. Of each block q of the
basis the dual z = P q is kept beside it, and a new dual is what A gives less earlier duals: no
product with P is needed. The coefficients are those of Lanczos with :math:`P^{-1/2} A P^{-1/2}`
from :math:`P^{1/2} q_1`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .._arrays import (
    Array,
    coldot,
    colnorm2,
    constant,
    eps_of,
    inner,
    is_traced,
    magnitude,
    namespace,
    positive,
    real,
    to_number,
)
from .._operators import LinearOperator
from . import lanczos
from .lanczos import PANEL, Krylov


@dataclass(frozen=True)
class PreconditionedKrylov(Krylov):
    """Krylov spaces of single probes; `rest` is dual, what the next dual is made of."""

    inverse: LinearOperator | None = None
    duals: tuple[Array, ...] = ()  # P times the panels
    dual_probes: bool = False  # whether probes are the duals of what the spaces start from

    def cost(self, depth: int) -> int:
        """Products that so many steps cost for each column."""
        return depth

    def held(self, depth: int) -> int:
        """Columns that each column keeps in memory at a depth."""
        return 2 * depth + 2

    def advance(self, depth: int) -> PreconditionedKrylov:
        """The spaces after so many steps; themselves where they are as deep."""
        found = self
        while found.depth < depth:
            found = _step(found)
        return found

    def select(self, groups: slice) -> PreconditionedKrylov:
        """The spaces of some of the groups."""
        plain = Krylov.select(_plain(self), groups)
        return _with(plain, self, tuple(Z[groups, ...] for Z in self.duals))

    def constant(self) -> PreconditionedKrylov:
        """The spaces without derivatives, nor those of further steps."""
        plain = Krylov.constant(_plain(self))
        return _with(plain, self, tuple(constant(Z) for Z in self.duals))

    def without_basis(self) -> Krylov:
        """What A is on the spaces, without their bases."""
        return Krylov.without_basis(_plain(self))

    @staticmethod
    def joined(spaces: list[Krylov]) -> Krylov:
        """Spaces of the same depth as one stack."""
        plain = Krylov.joined([_plain(K) for K in spaces])
        duals = [getattr(K, "duals", ()) for K in spaces]
        if not all(duals):
            return plain
        concat = namespace(spaces[0].rest).concat
        stacks = [concat([concat(list(Z), axis=-1) for Z in duals], axis=0)]
        made = replace(plain, panels=(concat(list(plain.panels), axis=-1),))
        return _with(made, spaces[0], tuple(stacks))


def begin(
    A: LinearOperator, inverse: LinearOperator, dual: Array, *, dual_probes: bool
) -> PreconditionedKrylov:
    """Spaces that start from ``P^-1 dual``, one for each column, before the first product with A.

    A's factor is no use here: products with A itself are taken.
    """
    if A.factor is not None:
        A = A._like(A.shape, A.matmat, A.rmatmat)
    rest = lanczos.stacked(dual, 1)
    unseen = lanczos.unseen(rest)
    return PreconditionedKrylov(A, rest, unseen, inverse=inverse, dual_probes=dual_probes)


def start_norms(K: Krylov) -> Array:
    """The squared norms, in P, of what the spaces start from."""
    b = K.below[0][:, 0, 0]
    return real(b) * real(b)


def _step(K: PreconditionedKrylov) -> PreconditionedKrylov:
    """A product of A, and one of the inverse, with every column."""
    assert K.inverse is not None
    xp, R = namespace(K.rest), K.rest
    for Q, Z in (*zip(K.panels, K.duals, strict=True),) * 2:  # twice is enough
        R = R - Z @ inner(Q, R)
    unit = magnitude(R)
    R = R / unit
    S = lanczos.product(K.inverse, R)
    square = real(coldot(R, S))
    _require_positive(square, xp.sqrt(colnorm2(R) * colnorm2(S)))
    s = xp.sqrt(positive(square)) * unit
    floor = lanczos.rounding(K.size) if K.depth else xp.zeros_like(s)
    alive = xp.where((square > 0) & (s > floor), xp.ones_like(s), xp.zeros_like(s))
    share = xp.astype(alive / xp.sqrt(positive(square)), R.dtype, copy=False)[:, None, :]
    Q, Z = S * share, R * share
    B = xp.astype((s * alive)[..., None], R.dtype, copy=False)
    Y = lanczos.product(K.operator, Q)
    D = coldot(Q, Y)[..., None]
    if K.depth == 1:
        lanczos.require_hermitian_start(K, B, inner(K.panels[-1][:, :, -1:], Y), D)
    D = xp.astype(real(D), R.dtype, copy=False)
    rest = Y - Z * D
    size = xp.maximum(K.size, xp.abs(real(D[..., 0])))
    panels, duals = _appended(K.panels, Q), _appended(K.duals, Z)
    return replace(
        K,
        rest=rest,
        size=xp.maximum(size, real(B[..., 0]) if K.depth else size),
        panels=panels,
        duals=duals,
        diagonal=(*K.diagonal, D),
        below=(*K.below, B),
        alive=(*K.alive, xp.astype(alive, R.dtype, copy=False)),
    )


def _require_positive(square: Array, size: Array) -> None:
    """Refuse a preconditioner that a residual shows to be indefinite."""
    if is_traced(square):
        return
    floor = eps_of(square) ** 0.75 * size
    if to_number(namespace(square).min(square + floor)).real < 0:
        raise ValueError(
            "`preconditioner` is not positive definite: r^H P^-1 r is negative for a residual r; "
            "pass one that is"
        )


def _appended(panels: tuple[Array, ...], Q: Array) -> tuple[Array, ...]:
    if panels and panels[-1].shape[-1] < PANEL:
        panels, Q = panels[:-1], namespace(Q).concat([panels[-1], Q], axis=-1)
    return (*panels, Q)


_FIELDS = ("operator", "rest", "size", "panels", "diagonal", "below", "alive", "right")


def _plain(K: Krylov) -> Krylov:
    return Krylov(**{name: getattr(K, name) for name in _FIELDS})


def _with(K: Krylov, like: Krylov, duals: tuple[Array, ...]) -> PreconditionedKrylov:
    """The spaces beside the same preconditioner."""
    held = {name: getattr(K, name) for name in _FIELDS}
    more = {name: getattr(like, name) for name in ("inverse", "dual_probes")}
    return PreconditionedKrylov(**held, **more, duals=duals)
