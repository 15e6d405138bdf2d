"""Products spent on probes and kept, so that more can be added and several numbers read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._arrays import (
    Array,
    Product,
    abs2,
    adjoint,
    device_of,
    eps_of,
    inner,
    is_traced,
    magnitude,
    namespace,
    orthonormalise,
)
from .._estimates import require_finite
from .._operators import LinearOperator
from .leave_one_out import check_adjoint, inexactness


@dataclass(frozen=True)
class RangeSketch:
    """``Q R = Y = A Omega`` and ``Z = A Q``, in units of `scale`: 2 products a probe.

    Memory: three arrays of shape (n, k).
    """

    Omega: Array
    Q: Array
    R: Array
    Z: Array
    scale: Array

    @property
    def num_matvecs(self) -> int:
        """Products spent."""
        return 2 * int(self.Q.shape[1])


@dataclass(frozen=True)
class NystromSketch:
    """``Y = A Omega`` of a positive semidefinite A, in units of `scale`: 1 product a probe.

    Memory: two arrays of shape (n, k).
    """

    Omega: Array
    Y: Array
    scale: Array

    @property
    def num_matvecs(self) -> int:
        """Products spent, if A has no factor."""
        return int(self.Y.shape[1])


def range_sketch(A: LinearOperator, Omega: Array, sketch: RangeSketch | None = None) -> RangeSketch:
    """Sketch the range of A, or widen a sketch by block Gram-Schmidt; no product is spent twice."""
    Y = A.matmat(Omega)
    scale = magnitude(Y) if sketch is None else sketch.scale
    return sketch_of_products(A.matmat, Omega, Y / scale, scale, sketch)


def factor_sketch(
    L: LinearOperator, Omega: Array, jitter: Array, sketch: RangeSketch | None = None
) -> RangeSketch:
    """``Q R = L^H Omega`` and ``Z = L Q``: ``Z Z^H`` is the Nystrom approximation of ``L L^H``.

    `jitter` holds probes with as many rows as L has columns.
    """
    Y = L.H.matmat(Omega)
    scale = magnitude(Y) if sketch is None else sketch.scale
    return sketch_of_products(L.matmat, Omega, Y / scale, scale, sketch, jitter)


def sketch_of_products(
    product: Product,
    Omega: Array,
    Y: Array,
    scale: Array,
    sketch: RangeSketch | None = None,
    jitter: Array | None = None,
) -> RangeSketch:
    """A sketch from products `Y` that were spent on Omega before, and ``Z = product(Q)``."""
    jitter = Omega if jitter is None else jitter
    Q, R, upper = orthonormal_extension(Y, jitter, sketch.Q if sketch else None)
    require_finite(R)
    Z = product(Q) / scale
    require_finite(Z)
    if sketch is None:
        return RangeSketch(Omega, Q, R, Z, scale)
    concat = namespace(Q).concat
    low = namespace(Q).zeros((R.shape[0], sketch.R.shape[1]), dtype=R.dtype, device=device_of(R))
    return RangeSketch(
        concat([sketch.Omega, Omega], axis=1),
        concat([sketch.Q, Q], axis=1),
        concat([concat([sketch.R, upper], axis=1), concat([low, R], axis=1)], axis=0),
        concat([sketch.Z, Z], axis=1),
        scale,
    )


def nystrom_sketch(
    A: LinearOperator, Omega: Array, sketch: NystromSketch | None = None
) -> NystromSketch:
    """Sketch A by its products with probes, or add probes to a sketch."""
    Y = A.matmat(Omega)
    if sketch is None:
        scale = magnitude(Y)
        return NystromSketch(Omega, Y / scale, scale)
    concat = A.xp.concat
    return NystromSketch(
        concat([sketch.Omega, Omega], axis=1),
        concat([sketch.Y, Y / sketch.scale], axis=1),
        sketch.scale,
    )


def orthonormal_extension(
    Y: Array, Omega: Array, before: Array | None = None, *, jitter: float | None = None
) -> tuple[Array, Array, Array | None]:
    """``Y = before @ upper + Q R`` with Q orthonormal and orthogonal to `before`.

    A multiple of the probes, of relative size `jitter` (rounding level by default), is added to Y:
    it makes Y of full rank where the range is exhausted, and changes next to nothing otherwise.
    """
    xp = namespace(Y)
    relative = eps_of(Y) if jitter is None else jitter
    tiny = xp.max(xp.abs(Y)) * (relative / math.sqrt(Y.shape[0]))
    Y = Y + Omega * tiny
    if before is None:
        return *orthonormalise(Y), None
    upper, Q, R = None, Y, None
    for _ in range(2):  # twice is enough
        across = inner(before, Q)
        Q, step = orthonormalise(Q - before @ across)
        upper = across if R is None else upper + across @ R
        R = step if R is None else step @ R
    return Q, R, upper


def adjoint_sketch(A: LinearOperator, Omega: Array) -> tuple[Array, Array, Array, Array, bool]:
    """``Q R = A Omega`` and ``Z = A^H Q``, their unit, and whether A is known to be Hermitian.

    Where A has no product with its adjoint, A has to be Hermitian, which the sketch shows; what
    eager code refuses is not a number in compiled code.
    """
    xp = A.xp
    Y = A.matmat(Omega)
    require_finite(Y)
    scale = magnitude(Y)
    Q, R, _ = orthonormal_extension(Y / scale, Omega)
    G = inner(Omega, Y / scale)
    apart = xp.sum(abs2(G - adjoint(G)))
    skew = apart > eps_of(G) ** (2 / 3) * xp.sum(abs2(G))
    hermitian = not is_traced(skew) and not bool(skew)
    if A.rmatmat is not None:
        Z = A.rmatmat(Q) / scale
        check_adjoint(inner(Z, Omega), R)
        return Q, R, Z, scale, hermitian
    if not is_traced(skew) and not hermitian:
        raise TypeError(
            "this operator is not Hermitian, as its products show, and has no product with its "
            "adjoint, which is needed here; pass rmatmat=, X -> A.H @ X, to LinearOperator"
            + inexactness(G)
        )
    Z = A.matmat(Q) / scale
    return Q, R, xp.where(skew, xp.ones_like(Z) * math.nan, Z), scale, True
