"""Products spent on probes and kept, so that more can be added and several numbers read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from .._arrays import (
    LOOSE,
    Array,
    Product,
    abs2,
    check_adjoint,
    coldot,
    colnorm2,
    device_of,
    eps_of,
    inner,
    is_hermitian,
    magnitude,
    matrix_trace,
    namespace,
    orthonormalise,
    real,
    require_hermitian,
    skew,
)
from .._estimates import require_finite
from .._operators import LinearOperator
from . import leave_one_out
from .nystrom import nystrom_factor

Samples = tuple[Array, Array | None]
S = TypeVar("S", bound="RangeSketch")


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

    name: ClassVar[str] = "range"
    method: ClassVar[str] = "xtrace"
    semidefinite: ClassVar[bool] = False
    matvecs_per_probe: ClassVar[int] = 2

    @property
    def num_probes(self) -> int:
        """Probes that are sketched."""
        return int(self.Q.shape[1])

    @property
    def num_matvecs(self) -> int:
        """Products spent."""
        return 2 * self.num_probes

    @property
    def unit(self) -> Array:
        """What samples are in units of."""
        return self.scale

    @staticmethod
    def forms(Omega: Array, Y: Array) -> Array:
        """``x^H A x`` of every probe, from its product."""
        return coldot(Omega, Y)

    def samples(self, *, resphere: bool) -> Samples:
        """Leave-one-out samples of the trace, and jackknife replicates."""
        return leave_one_out.xtrace(self.Omega, self.Q, self.R, self.Z, resphere=resphere)

    def tested_by(self, Omega: Array, Y: Array) -> Array:
        """Samples of the trace by other probes on the sphere and their products."""
        n, W = Omega.shape[0], inner(self.Q, Omega)
        rest = Omega - self.Q @ W
        form = coldot(rest, Y - self.Z @ W) * ((n - self.num_probes) / colnorm2(rest))
        return matrix_trace(inner(self.Q, self.Z)) + form


@dataclass(frozen=True)
class FactorSketch(RangeSketch):
    """``Q R = L^H Omega`` and ``Z = L Q``: ``Z Z^H`` is the Nystrom approximation of ``L L^H``.

    Samples are in units of the square of `scale`.
    """

    name = "factor"
    method = "xnystrace"
    semidefinite = True

    @property
    def unit(self) -> Array:
        """What samples are in units of."""
        return self.scale * self.scale

    @staticmethod
    def forms(Omega: Array, Y: Array) -> Array:
        """``x^H A x`` of every probe, from its product with ``L^H``."""
        return colnorm2(Y)

    def samples(self, *, resphere: bool) -> Samples:
        """Leave-one-out samples of the trace, and jackknife replicates."""
        return leave_one_out.factored(self.Omega, self.R, self.Z, resphere=resphere)

    def diagonal_samples(self) -> Samples:
        """Leave-one-out samples of the diagonal, and jackknife replicates."""
        check_adjoint(inner(self.Z, self.Omega), self.R)
        return leave_one_out.xdiag(self.Omega, self.Z, self.R, self.Z)

    def tested_by(self, Omega: Array, Y: Array) -> Array:
        """Samples of the trace by other probes on the sphere and their products."""
        rest = Y - self.Q @ inner(self.Q, Y)
        form = colnorm2(rest) * _growth(self.Omega, Omega)
        return namespace(Y).sum(abs2(self.Z)) + form


@dataclass(frozen=True)
class NystromSketch:
    """``Y = A Omega`` of a positive semidefinite A, in units of `scale`: 1 product a probe.

    Memory: two arrays of shape (n, k).
    """

    Omega: Array
    Y: Array
    scale: Array

    name: ClassVar[str] = "nystrom"
    method: ClassVar[str] = "xnystrace"
    semidefinite: ClassVar[bool] = True
    matvecs_per_probe: ClassVar[int] = 1
    forms = staticmethod(coldot)

    @property
    def num_probes(self) -> int:
        """Probes that are sketched."""
        return int(self.Y.shape[1])

    @property
    def num_matvecs(self) -> int:
        """Products spent, if A has no factor."""
        return self.num_probes

    @property
    def unit(self) -> Array:
        """What samples are in units of."""
        return self.scale

    def samples(self, *, resphere: bool) -> Samples:
        """Leave-one-out samples of the trace, and jackknife replicates."""
        return leave_one_out.xnystrace(self.Omega, self.Y, resphere=resphere)

    def diagonal_samples(self) -> Samples:
        """Leave-one-out samples of the diagonal, and jackknife replicates."""
        return leave_one_out.xnysdiag(self.Omega, self.Y)

    def tested_by(self, Omega: Array, Y: Array) -> Array:
        """Samples of the trace by other probes on the sphere and their products."""
        xp, n, gram = namespace(Y), Omega.shape[0], inner(self.Omega, self.Omega)
        B, _, _, nu = nystrom_factor(self.Omega, self.Y, gram, "call xtrace, or trace without psd")
        form = real(coldot(Omega, Y)) + colnorm2(Omega) * nu
        form = form - colnorm2(inner(B, Omega))
        form = form * _growth(self.Omega, Omega)
        return xp.astype(xp.sum(abs2(B)) - n * nu + form, Y.dtype)


@dataclass(frozen=True)
class AdjointSketch:
    """``Q R = A Omega`` and ``Z = A^H Q``, in units of `scale`; whether A is known as Hermitian."""

    Omega: Array
    Q: Array
    R: Array
    Z: Array
    scale: Array
    hermitian: bool

    @property
    def unit(self) -> Array:
        """What samples are in units of."""
        return self.scale

    def diagonal_samples(self) -> Samples:
        """Leave-one-out samples of the diagonal, and jackknife replicates."""
        return leave_one_out.xdiag(self.Omega, self.Q, self.R, self.Z)


def range_sketch(A: LinearOperator, Omega: Array, sketch: RangeSketch | None = None) -> RangeSketch:
    """Sketch the range of A, or extend a sketch by block Gram-Schmidt."""
    Y = A.matmat(Omega)
    scale = magnitude(Y) if sketch is None else sketch.scale
    return sketch_of_products(RangeSketch, A.matmat, Omega, Y / scale, scale, sketch, Omega, Y)


def factor_sketch(
    L: LinearOperator,
    Omega: Array,
    jitter: Array | None = None,
    sketch: FactorSketch | None = None,
) -> FactorSketch:
    """Sketch ``L L^H`` from ``L^H Omega``, or extend a sketch.

    `jitter` holds probes with as many rows as L has columns; without it, columns that depend on
    others are completed by arbitrary ones.
    """
    Y = L.H.matmat(Omega)
    scale = magnitude(Y) if sketch is None else sketch.scale
    return sketch_of_products(FactorSketch, L.matmat, Omega, Y / scale, scale, sketch, jitter, Y)


def sketch_of_products(
    kind: type[S],
    product: Product,
    Omega: Array,
    Y: Array,
    scale: Array,
    sketch: S | None,
    jitter: Array | None,
    columns: Array | None = None,
) -> S:
    """A sketch from products `Y` that were spent on Omega before, and ``Z = product(Q)``.

    `columns` are the products as they came, which an error may name one of.
    """
    Q, R, upper = orthonormal_extension(Y, jitter, sketch.Q if sketch else None)
    require_finite(R, columns=columns)
    Z = product(Q) / scale
    require_finite(Z)
    if sketch is None:
        return kind(Omega, Q, R, Z, scale)
    low = namespace(R).zeros((R.shape[0], sketch.R.shape[1]), dtype=R.dtype, device=device_of(R))
    return kind(
        _beside(sketch.Omega, Omega),
        _beside(sketch.Q, Q),
        _corners(sketch.R, upper, low, R),
        _beside(sketch.Z, Z),
        scale,
    )


def _beside(X: Array, Y: Array) -> Array:
    return namespace(X).concat([X, Y], axis=1)


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
    Y: Array, Omega: Array | None, before: Array | None = None, *, jitter: float | None = None
) -> tuple[Array, Array, Array | None]:
    """``Y = before @ upper + Q R`` with Q orthonormal and orthogonal to `before`.

    A multiple of the probes, of relative size `jitter` (rounding level by default), is added to Y:
    it makes Y of full rank where the range is exhausted, and changes next to nothing otherwise.
    """
    if Omega is not None:
        relative = eps_of(Y) if jitter is None else jitter
        tiny = namespace(Y).max(namespace(Y).abs(Y)) * (relative / math.sqrt(Y.shape[0]))
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


def adjoint_sketch(
    A: LinearOperator, Omega: Array, sketch: AdjointSketch | None = None
) -> AdjointSketch:
    """Sketch A and its adjoint, or extend a sketch.

    Where A has no product with its adjoint, A has to be Hermitian, which the sketch shows. What
    eager code refuses is NaN in compiled code.
    """
    xp = A.xp
    Y = A.matmat(Omega)
    require_finite(Y, columns=Y)
    scale = magnitude(Y) if sketch is None else sketch.scale
    Q, R, upper = orthonormal_extension(Y / scale, Omega, None if sketch is None else sketch.Q)
    G = inner(Omega, Y / scale)
    if sketch is not None:  # as the new probes see those before, so do those the new ones
        G = _corners(inner(sketch.Omega, sketch.Q @ sketch.R), inner(sketch.Omega, Y / scale),
                     inner(Omega, sketch.Q @ sketch.R), G)  # fmt: skip
    if A.rmatmat is not None:
        Z, hermitian = A.rmatmat(Q) / scale, is_hermitian(G)
        check_adjoint(inner(Z, Omega), R)
    else:
        require_hermitian(
            G,
            "pass its product with the adjoint, rmatmat=, X -> A.H @ X, to LinearOperator",
            TypeError,
        )
        wrong = skew(G) > eps_of(G) ** LOOSE
        Z, hermitian = A.matmat(Q) / scale, True
        Z = xp.where(wrong, xp.ones_like(Z) * math.nan, Z)
    require_finite(Z)
    if sketch is None:
        return AdjointSketch(Omega, Q, R, Z, scale, hermitian)
    low = xp.zeros((R.shape[0], sketch.R.shape[1]), dtype=R.dtype, device=device_of(R))
    return AdjointSketch(
        _beside(sketch.Omega, Omega),
        _beside(sketch.Q, Q),
        _corners(sketch.R, upper, low, R),
        _beside(sketch.Z, Z),
        scale,
        hermitian,
    )


def _corners(a: Array, b: Array, c: Array, d: Array) -> Array:
    """``[[a, b], [c, d]]``."""
    return namespace(a).concat([_beside(a, b), _beside(c, d)], axis=0)


def _growth(sketched: Array, Omega: Array) -> Array:
    """From the remainders of probes outside the span of `sketched` to the sphere of that space."""
    xp, (n, b) = namespace(Omega), sketched.shape
    gram, W = inner(sketched, sketched), inner(sketched, Omega)
    inside = real(coldot(W, xp.linalg.solve(gram, W)))
    return (n - b) / (colnorm2(Omega) - inside)
