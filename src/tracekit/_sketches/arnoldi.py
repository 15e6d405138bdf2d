r"""Krylov bases of many probes at once of an operator that is not Hermitian: Arnoldi.

After d steps from a probe x the orthonormal basis Q has :math:`Q^H A Q = H`, upper Hessenberg of
dimension d, and :math:`x^H f(A)\, x` is :math:`\|x\|^2 f(H)_{11}` for polynomials f of degree d:
half of what Lanczos knows. Each new vector is orthogonalised twice against all earlier ones, at
once for all probes; one that vanishes is set to zero, and later steps skip it.

Saad (2003), "Iterative Methods for Sparse Linear Systems", section 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._arrays import (
    Array,
    adjoint,
    is_complex,
    is_differentiated,
    namespace,
    to_host,
)
from .._operators import LinearOperator
from . import lanczos


@dataclass(frozen=True)
class Arnoldi:
    """The bases of k probes, and what A is on them.

    Memory: d columns for each probe, as many as were multiplied.
    """

    operator: LinearOperator
    rest: Array  # (k, n, 1): what the next vector of the basis is made of
    size: Array  # (k, 1): norm of A, as far as it has been seen
    panels: tuple[Array, ...] = ()
    columns: tuple[Array, ...] = ()  # (k, j + 1, 1): those of H, down to the diagonal
    below: tuple[Array, ...] = ()  # (k, 1, 1): beside the diagonal; first: the length of the probe
    alive: tuple[Array, ...] = ()  # (k, 1): 0 where a vector has vanished
    block = 1

    @property
    def depth(self) -> int:
        """Products of A with each probe's space."""
        return len(self.columns)

    @property
    def seen(self) -> Array:
        """What shows whether values are known, and differentiated."""
        return self.columns[0]

    @property
    def groups(self) -> int:
        """Spaces."""
        return int(self.rest.shape[0])

    def cost(self, depth: int) -> int:
        """Products that so many steps cost for each probe."""
        return depth

    def held(self, depth: int) -> int:
        """Columns that each probe keeps in memory at a depth."""
        return depth

    def advance(self, depth: int) -> Arnoldi:
        """The spaces after so many steps; themselves where they are as deep."""
        found = self
        while found.depth < depth:
            found = _step(found)
        return found

    def select(self, groups: slice) -> Arnoldi:
        """The spaces of some of the probes."""
        cut: dict[str, Any] = {
            name: tuple(x[groups, ...] for x in getattr(self, name)) for name in STACKS
        }
        return replace(self, rest=self.rest[groups, ...], size=self.size[groups, ...], **cut)

    def shortened(self, depth: int) -> Arnoldi:
        """What A is on the spaces after so many steps, to be read from, not to be advanced."""
        cut = {name: getattr(self, name)[:depth] for name in ("columns", "below", "alive")}
        return replace(self, panels=(), **cut)

    def without_basis(self) -> Arnoldi:
        """What A is on the spaces, to be read from, not to be advanced."""
        return replace(self, rest=lanczos.without_rows(self.rest), panels=())

    def constant(self) -> Arnoldi:
        """The spaces, which have no derivatives."""
        return self

    @staticmethod
    def joined(spaces: list[Arnoldi]) -> Arnoldi:
        """Spaces of the same depth as one stack."""
        concat = namespace(spaces[0].rest).concat
        if len({tuple(Q.shape[-1] for Q in K.panels) for K in spaces}) > 1:
            spaces = [replace(K, panels=(concat(list(K.panels), axis=-1),)) for K in spaces]

        def stack(name: str) -> Array:
            return concat([getattr(K, name) for K in spaces], axis=0)

        def stacks(name: str) -> tuple[Array, ...]:
            each = zip(*(getattr(K, name) for K in spaces), strict=True)
            return tuple(concat(list(x), axis=0) for x in each)

        many: dict[str, Any] = {name: stacks(name) for name in STACKS}
        return replace(spaces[0], rest=stack("rest"), size=stack("size"), **many)


STACKS = ("panels", "columns", "below", "alive")


def begin(A: LinearOperator, X: Array) -> Arnoldi:
    """Krylov spaces of the columns of X before the first product."""
    rest = lanczos.stacked(X, 1)
    return Arnoldi(A, rest, lanczos.unseen(rest))


def hessenberg(K: Arnoldi, depth: int) -> np.ndarray:
    """H (k, d, d) after so many steps, on the host in double precision.

    A vector that has vanished has the value of the first, and no part in anything.
    """
    H = np.zeros((K.groups, depth, depth), complex if is_complex(K.rest) else float)
    for j in range(depth):
        H[:, : j + 1, j] = to_host(K.columns[j])[..., 0]
        H[:, j, j] += (to_host(K.alive[j])[:, 0] == 0) * H[:, 0, 0]
        if j:
            H[:, j, j - 1] = to_host(K.below[j])[:, 0, 0]
    return H


def require_known(Y: Array) -> None:
    """Refuse products whose values are not known or which are differentiated."""
    if is_differentiated(Y):
        raise TypeError(
            "the trace of a function of a non-Hermitian operator has no derivatives and takes no "
            "part in compiled code; pass an operator with values alone, and call it outside of "
            "jax.jit and jax.grad"
        )


def _step(K: Arnoldi) -> Arnoldi:
    """A product of A with the newest vector of every space."""
    xp, size = namespace(K.rest), K.size
    if not K.depth:
        size = xp.max(lanczos.norms(K.rest), axis=-1)[:, None]
    Q, B, alive = lanczos.orthonormal(K.rest, lanczos.rounding(size))
    rest = lanczos.product(K.operator, Q)
    require_known(rest)
    size, panels = xp.maximum(K.size, lanczos.norms(rest)), K.panels
    if panels and panels[-1].shape[-1] < lanczos.PANEL:
        panels, Q = panels[:-1], xp.concat([panels[-1], Q], axis=-1)
    panels, column = (*panels, Q), None
    for _ in range(2):
        parts = [adjoint(P) @ rest for P in panels]
        for P, part in zip(panels, parts, strict=True):
            rest = rest - P @ part
        more = xp.concat(parts, axis=1)
        column = more if column is None else column + more
    return replace(
        K,
        rest=rest,
        size=size,
        panels=panels,
        columns=(*K.columns, column),
        below=(*K.below, B),
        alive=(*K.alive, alive),
    )
