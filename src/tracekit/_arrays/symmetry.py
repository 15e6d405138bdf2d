"""Whether products belong together: those of a Hermitian operator, those of A and its adjoint."""

from __future__ import annotations

import math

from .formulas import abs2, adjoint, magnitude, norm2, positive
from .libraries import Array, eps_of, is_traced, namespace, to_number

# Powers of the rounding unit. Skewer than the first is refused; what is less skew than the second
# is taken for Hermitian where nobody asked.
LOOSE, TIGHT = 1 / 3, 1 / 2


def skew(G: Array) -> Array:
    """``|G - G^H| / |G|`` in Frobenius norms, for each matrix of a stack; 0 where G is zero."""
    xp, G = namespace(G), G / magnitude(G)
    apart, size = (xp.sum(abs2(X), axis=(-2, -1)) for X in (G - adjoint(G), G))
    return xp.sqrt(apart / positive(size))


def is_hermitian(G: Array) -> bool:
    """Whether ``G = X^H A X`` shows that A is Hermitian; False where values are not known."""
    apart = skew(G)
    return not is_traced(apart) and bool(apart <= eps_of(apart) ** TIGHT)


def require_hermitian(G: Array, remedy: str, error: type[Exception] = ValueError) -> None:
    """Refuse A if ``G = X^H A X``, or one of a stack, shows that it is not Hermitian."""
    if is_traced(G):
        return
    apart, eps = to_number(namespace(G).max(skew(G))).real, eps_of(G)
    if apart > eps**LOOSE:
        raise error(
            "the products of this operator show that it is not Hermitian; "
            f"{remedy}{_if_inexact(apart, eps)}"
        )


def check_adjoint(found: Array, expected: Array, size: Array | None = None) -> None:
    """Raise ValueError if ``(A^H Y)^H X`` and ``Y^H (A X)``, from products spent anyway, differ.

    `size` is what they would be if nothing cancelled: less than rounding of that is no difference.
    """
    if is_traced(found):
        return
    eps = eps_of(found)
    apart = _relative(found - expected, expected)
    if size is not None and _relative(found - expected, size[None, None]) < 10 * eps:
        return
    if apart > eps**LOOSE:
        raise ValueError(
            f"<y, A x> and <A^H y, x> differ by {apart:.1g} of their size: this operator is not "
            "linear, or its products matmat and rmatmat do not belong together; check them with "
            f"tracekit.testing.linearity_test and adjoint_test{_if_inexact(apart, eps)}"
        )


def inexactness(G: Array) -> str:
    """What else than its cause a small skewness of G may mean."""
    return _if_inexact(to_number(skew(G)).real, eps_of(G))


def _relative(apart: Array, of: Array) -> float:
    """Of Frobenius norms."""
    unit = magnitude(of)
    return math.sqrt(
        to_number(norm2(apart / unit)).real / to_number(positive(norm2(of / unit))).real
    )


def _if_inexact(apart: float, eps: float) -> str:
    if not 1e3 * eps < apart < 1e-2:
        return ""
    return (
        f"; they are off by {apart:.1g}, as inexact products, such as an iterative solver's, are: "
        f"then tighten the solver's tolerance below {eps**LOOSE:.0g}"
    )
