"""Nystrom approximations of positive semidefinite operators, from their products with probes."""

from __future__ import annotations

from .._arrays import (
    Array,
    adjoint,
    cholesky,
    eps_of,
    eye_like,
    inexactness,
    inner,
    is_traced,
    namespace,
    norm2,
    positive,
    require_hermitian,
)
from .._estimates import require_finite


def nystrom_factor(
    Omega: Array, Y: Array, ridge: Array, remedy: str
) -> tuple[Array, Array, Array, Array]:
    """B, R, ``D = R^{-H}`` and nu: ``B B^H`` is the Nystrom approximation of ``A + nu I``.

    It is made of ``Y = A Omega`` by ``R^H R = Omega^H Y + nu ridge`` and
    ``B = (Y + nu Omega) R^{-1}``. The ridge is the Gram matrix of the probes; equal sign vectors,
    which small dimensions bring, need a multiple of the identity besides. Raises ValueError, which
    ends with the `remedy`, if the sketch shows that A is not Hermitian or not positive
    semidefinite.
    """
    require_finite(Y)
    H = inner(Omega, Y)
    require_hermitian(H, remedy)
    size = positive(namespace(Y).sqrt(norm2(Y) * H.shape[0] / norm2(Omega)))
    nu, C = shifted_cholesky(H, ridge, size, remedy)
    D = namespace(C).linalg.solve(C, eye_like(C, C.shape[0]))
    return (Y + Omega * nu) @ adjoint(D), adjoint(C), D, nu


def shifted_cholesky(G: Array, ridge: Array, unit: Array, remedy: str) -> tuple[Array, Array]:
    """A shift nu, in eager code the least that suffices, and C with ``C C^H = G + nu ridge``."""
    eps, traced = eps_of(G), is_traced(G)
    shift = (100 if traced else 1) * eps
    while shift <= max(1e-6, 1e3 * eps):
        nu = unit * shift
        shifted = G + ridge * nu
        C = cholesky((shifted + adjoint(shifted)) / 2)
        if C is not None:
            return nu, C
        shift *= 10
    raise ValueError(
        "the products of this operator show that it is not positive semidefinite; "
        f"{remedy}{inexactness(G)}"
    )
