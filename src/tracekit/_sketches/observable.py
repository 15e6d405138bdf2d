"""An observable O on Krylov spaces, for tr(O f(A)) without further products."""

from __future__ import annotations

from typing import Any

from .._arrays import (
    Array,
    adjoint,
    coldot,
    conj,
    device_of,
    inner,
    is_traced,
    namespace,
    real,
    require_hermitian,
)
from .._estimates import require_finite
from .._operators import LinearOperator, as_operator, dense
from ..functions import Function, values
from . import gauss, lanczos

REMEDY = "an observable must be Hermitian: pass (O + O.H) / 2"


class Observed:
    """The compressions of an observable to the Krylov spaces of a run."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self._stacks: list[Array] = []  # (k, d, d)
        self._deep: Array | None = None
        self.on_eigenvectors: Any = None

    @classmethod
    def of(cls, observable: Any, A: LinearOperator) -> Observed:
        """An observable of a run with A, not yet compressed."""
        operator = as_operator(observable)
        if operator.shape != A.shape:
            raise ValueError(
                f"`observable` must have the shape {A.shape} of the operator, got {operator.shape}"
            )
        return cls(operator)

    def add(self, K: Any) -> None:
        """Take further spaces, with their bases."""
        self._stacks.append(self._compression(K))

    def renew(self, spaces: list[Any], deep: Any) -> None:
        """Take the spaces as they are now."""
        self._stacks = [self._compression(K) for K in spaces]
        self.set_deep(deep)

    def set_deep(self, deep: Any) -> None:
        """Take the spaces that go on to twice the depth."""
        self._deep = None if deep is None else self._compression(deep)

    @property
    def norm(self) -> Array:
        """No less than the norm of every compression."""
        xp = self.operator.xp
        return xp.max(xp.sum(xp.abs(xp.concat(self._stacks)), axis=-1))

    def forms(self, f: Function, K: Any, depth: int) -> Array:
        """``x^H O f(A) x`` of every probe, by a rule of so many steps; K all spaces."""
        return self._forms(f, K, self.operator.xp.concat(self._stacks), depth)

    def at_twice(self, f: Function, deep: Any, depth: int) -> tuple[Array, Array] | None:
        """The same of the first probes, by all their steps and by fewer."""
        if self._deep is None or deep is None:
            return None
        G = self._deep
        return self._forms(f, deep, G, deep.depth), self._forms(f, deep, G, depth)

    def eigenvalues(self, A: LinearOperator) -> Array:
        """All eigenvalues of A, and what the observable is on their eigenvectors."""
        xp, n, L = A.xp, A.shape[0], A.factor
        D = dense(A if L is None else L if L.shape[1] <= n else L.H)
        require_finite(D)
        if L is None:
            require_hermitian(D, lanczos.REMEDY)
            x, U = xp.linalg.eigh((D + adjoint(D)) / 2)
        else:
            U, s, _ = xp.linalg.svd(D if L.shape[1] <= n else adjoint(D), full_matrices=True)
            x = xp.concat([s * s, xp.zeros((n - s.shape[0],), dtype=s.dtype, device=device_of(s))])
        self.on_eigenvectors = real(coldot(U, self.operator.matmat(U)))
        return x

    def _compression(self, K: Any) -> Array:
        xp = namespace(K.rest)
        B = xp.concat(list(K.panels), axis=-1)
        k, n, d = B.shape
        Y = self.operator.matmat(xp.reshape(xp.permute_dims(B, (1, 0, 2)), (n, k * d)))
        require_finite(Y)
        G = inner(B, xp.permute_dims(xp.reshape(Y, (n, k, d)), (1, 0, 2)))
        require_hermitian(xp.reshape(G, (k, d, d)), REMEDY)
        return (G + adjoint(G)) / 2

    def _forms(self, f: Function, K: Any, G: Array, depth: int) -> Array:
        """``x^H O f(A) x``, with half of a positive f on each side of O."""
        xp, squared = namespace(G), K.operator.factor is not None

        def at(x: Array) -> Array:
            return values(f, x, squared=squared)

        nodes, _ = gauss.rule(K, depth)
        several = at(nodes)
        if several.ndim > nodes.ndim:
            each = [lambda x, i=i: f(x)[i, ...] for i in range(several.shape[0])]
            return xp.stack([self._forms(g, K, G, depth) for g in each])
        G = G[:, :depth, :depth]
        if not is_traced(nodes) and bool(xp.all(at(nodes) > 0)):
            c = gauss.coordinates(K, depth, lambda x: at(x) ** 0.5)[..., 0]
            left = c
        else:
            c = gauss.coordinates(K, depth, at)[..., 0]
            left = gauss.coordinates(K, depth, lambda x: xp.ones_like(x))[..., 0]
        return xp.sum(real(conj(left) * (G @ c[..., None])[..., 0]), axis=-1)
