"""The probes of a tracker, and compressions of operators to their span."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import (
    Array,
    Rng,
    device_of,
    dtype_name,
    householder_qr,
    inner,
    is_complex,
    magnitude,
    namespace,
    refuse_traced,
    require_hermitian,
    to_host,
    to_number,
    unit_columns,
)
from .._estimates import require_finite
from .._operators import LinearOperator, blocked, checked_basis, columns_at_once
from ..probes import Source
from . import control_variates


class ProbeBasis:
    """Orthonormal W = [Q, V], None until the first operator; `spent` counts products.

    All compressions are in one unit, the square of `root`. Holds arrays and numbers alone, so that
    it can be pickled.
    """

    def __init__(self, m: int, u: int, basis: Array | None, rng: Rng) -> None:
        self.spent, self.root, self.sizes = 0, 0.0, control_variates.Sizes(0, 0, 0, False)
        self.W: Array = None
        self._m, self._u, self._basis, self._rng, self._seed = m, u, basis, rng, 0

    def start(self, A: LinearOperator) -> None:
        """Make the probes, and a seed for those of calibrations, at the first operator."""
        n, source = A.shape[0], Source(self._rng, A)
        m = min(self._m, n)
        bits = _on_host(source.signs((64, 1)))[:, 0].real > 0
        self._seed = sum(1 << i for i, bit in enumerate(bits.tolist()) if bit)
        if m == n:
            W, k = unit_columns(A, n, n), n
        else:
            given = self._basis is not None
            Q = checked_basis(A, self._basis, m, 4) if given else self._leading(A, source, m // 2)
            k = Q.shape[1]
            W = _with(A.xp.astype(Q, A.dtype, copy=False), source.normal((n, m - k)))
        self.W, self.sizes = W, control_variates.Sizes(n - k, k, m - k, is_complex(A))

    def check(self, A: LinearOperator) -> None:
        """Refuse an operator of another kind than the probes."""
        W = self.W
        here, there = (namespace(W), W.dtype, W.shape[0]), (A.xp, A.dtype, A.shape[0])
        device = device_of(A.xp.empty(0, device=A.device))
        if here != there or device_of(W) != device:
            raise ValueError(
                f"{A!r} is incompatible with the operators before, of dimension {W.shape[0]} and "
                f"dtype {dtype_name(W.dtype)} of {namespace(W).__name__}; make a new Tracker for it"
            )

    def products(self, A: LinearOperator, X: Array) -> tuple[Array, Array]:
        """Two arrays with ``left^H right = X^H A X``, for one product a column."""
        L = A.factor
        product = A.matmat if L is None else L.H.matmat
        Y = blocked(product, columns_at_once(A if L is None else L, None))(X)
        self.spent += X.shape[1]
        refuse_traced(Y)
        require_finite(Y)
        if not self.root:
            size = to_number(magnitude(Y)).real
            self.root = size if L is not None else math.sqrt(size)
        Y = Y / self.root
        return (X, Y / self.root) if L is None else (Y, Y)

    def calibrate(
        self,
        A: LinearOperator,
        left: Array,
        right: Array,
        now: control_variates.Readings,
        number: int,
    ) -> control_variates.Calibration:
        """Readings by fresh probes beyond Q, beside those by the probes that stay."""
        k, u, xp = self.sizes.k, min(self._u, self.sizes.n), A.xp
        source = Source(np.random.SeedSequence([self._seed, number]), A)
        U = _with(self.W[:, :k], source.normal((A.shape[0], u)))[:, k:]
        left_u, right_u = self.products(A, U)
        K = compression(
            xp.concat([left[:, :k], left_u], axis=1), xp.concat([right[:, :k], right_u], axis=1)
        )
        return control_variates.calibration(self.sizes, now, self.sizes._replace(s=u), K)

    def _leading(self, A: LinearOperator, source: Source, k: int) -> Array:
        """The k leading Ritz vectors of a block Krylov space of 2 k probes."""
        n, xp, L = A.shape[0], A.xp, A.factor
        b = min(2 * k, n // 2)
        X0 = householder_qr(source.normal((n, b)))[0]
        left0, right0 = self.products(A, X0)
        Z = right0
        if L is not None:
            Z = L.matmat(right0)
            self.spent += b
            require_finite(Z)
        X1 = _with(X0, Z / magnitude(Z))[:, b:]
        left1, right1 = self.products(A, X1)
        H = compression(xp.concat([left0, left1], axis=1), xp.concat([right0, right1], axis=1))
        values, vectors = np.linalg.eigh(H)
        leading = vectors[:, np.argsort(-np.abs(values))[:k]].copy()
        U = xp.asarray(leading, dtype=A.dtype, device=A.device)
        return xp.concat([X0, X1], axis=1) @ U


def _with(Q: Array, Y: Array) -> Array:
    """Orthonormal columns: those of Q up to signs, then what Y adds."""
    return householder_qr(namespace(Q).concat([Q, Y], axis=1))[0]


def compression(left: Array, right: Array) -> NDArray[Any]:
    """``left^H right`` on the host in double precision, if it is finite and Hermitian."""
    product = inner(left, right)
    require_finite(product)
    require_hermitian(
        product, "pass gram(L), or half the sum of A and A.H, which has the real part of its trace"
    )
    K = _on_host(product)
    symmetric: NDArray[Any] = (K + K.conj().T) / 2
    return symmetric


def _on_host(X: Array) -> NDArray[Any]:
    """A small matrix in double precision."""
    try:
        K = to_host(X)
    except RuntimeError:  # a device that NumPy cannot reach
        K = np.array([[to_number(X[i, j]) for j in range(X.shape[1])] for i in range(X.shape[0])])
    return K.astype(np.complex128) if is_complex(X) else K.real.astype(np.float64)
