r"""Functions of small matrices that are not Hermitian, and how far rounding may have moved them.

By eigenvectors, :math:`f(H) = V f(\theta) V^{-1}`, which loses the condition of V in digits. Where
that is more than half of them, as for Jordan blocks, H is moved by the root of the rounding in
random directions, which makes its eigenvalues distinct: two such directions agree to the digits
that are right (Davies, 2007, doi:10.1137/060659909). The exponential is had by squaring instead
(Al-Mohy, Higham, 2009, doi:10.1137/09074721X). All of it on the host, in double precision.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._arrays import (
    Array,
    beside,
    is_complex,
    is_differentiated,
    namespace,
    real_dtype,
    to_host,
)
from .._operators import LinearOperator
from ..functions import Function, exp, values
from .arnoldi import Arnoldi, hessenberg, require_known

SLACK = 10  # of rounding
POINTS = 64  # on the circle where a Taylor series is read, or four for each step
NEGATIVE = 0.1  # of that series, the part of powers that no analytic function has
ILL = "its eigenvalues are so ill-conditioned that f of them is not known"


class Forms(NamedTuple):
    """What the spaces of so many steps say of each probe."""

    values: Array  # x^H f(A) x
    sizes: Array  # |x| |f(A) x|
    rounding: Array  # by which the values may be off


def forms(f: Function, K: Arnoldi, depth: int) -> Forms:
    """``x^H f(A) x`` of every probe by so many steps."""
    H = hessenberg(K, depth)
    C, off = _first_columns(f, H, K.operator)
    square = to_host(K.below[0])[:, 0, 0].real ** 2
    size = np.linalg.norm(C, axis=-1) * square
    return Forms(*(_placed(x, K.rest) for x in (C[..., 0] * square, size, off * square)))


def samples(f: Function, K: Arnoldi, depth: int) -> Array:
    """The values alone."""
    return forms(f, K, depth).values


def trace(f: Function, D: Array, A: LinearOperator) -> tuple[Array, bool]:
    """Of f of a dense matrix, all columns of A; and whether its eigenvalues say what it is.

    Eigenvalues of a matrix and of its transpose differ by what rounding does to them.
    """
    require_known(D)
    H = to_host(D).astype(complex if is_complex(D) else float)
    if f is exp:
        return _placed(_exponential(H).trace(), D), True
    y, other = (_at(f, np.linalg.eigvals(X), A) for X in (H, H.T))
    y, other = (_real_if(f, H, x, A) for x in (y, other))
    size, off = np.abs(y).sum(axis=-1), np.abs(y.sum(axis=-1) - other.sum(axis=-1))
    return _placed(y.sum(axis=-1), D), bool(np.all(off <= _precision(f, A) ** 0.5 * size))


def degree_is_seen(f: Function, K: Arnoldi, depth: int) -> np.ndarray:
    """For each probe, whether most of the Taylor series of f is of degrees that the rule knows.

    On the disc about the mean eigenvalue whose radius is the norm of what is left of H: for the
    exponential that takes about as many steps as this norm is large. False too where f is not
    analytic there.
    """
    H, eye = hessenberg(K, depth), np.eye(depth)
    center = np.trace(H, axis1=-2, axis2=-1)[:, None] / depth
    radius = np.linalg.norm(H - center[..., None] * eye, 2, axis=(-2, -1))[:, None]
    count = max(POINTS, 4 * depth)
    circle = np.exp(2j * np.pi * np.arange(count) / count)
    with np.errstate(all="ignore"):
        y = _host(f(_array(center + radius * circle, K.operator)))
        terms = np.abs(np.fft.fft(y, axis=-1)) / count
        slack = SLACK * _precision(f, K.operator) * count * np.abs(y).max(axis=-1)
        whole = terms[..., 1:].sum(axis=-1)
        further = terms[..., depth + 1 :].sum(axis=-1) <= whole / 2 + slack
        negative = terms[..., count // 2 :].sum(axis=-1) <= NEGATIVE * whole + slack
    seen: np.ndarray = further & negative & np.isfinite(whole)
    return seen


def _first_columns(f: Function, H: np.ndarray, A: LinearOperator) -> tuple[np.ndarray, np.ndarray]:
    """First columns (k, d) of f(H), and how far rounding may have moved their first entries."""
    if f is exp:
        C = _exponential(H)[..., 0]
        norm = np.linalg.norm(H, axis=(-2, -1))
        return C, SLACK * np.finfo(float).eps * (1 + norm) * np.linalg.norm(C, axis=-1)
    eps = _precision(f, A)
    C, condition, level = _by_eigenvectors(f, H, A)
    off = SLACK * eps * condition * level
    ill = condition > eps**-0.5
    if np.any(ill):
        rng, size = np.random.default_rng(0), np.linalg.norm(H, axis=(-2, -1))
        by = (eps / H.shape[-1]) ** 0.5 * np.where(size > 0, size, 1)[:, None, None]
        moved = (H + by * rng.normal(size=H.shape) for _ in range(2))
        (one, worse, _), (two, bad, _) = (_by_eigenvectors(f, X, A) for X in moved)
        C = np.where(ill[:, None], (one + two) / 2, C)
        apart = SLACK * np.linalg.norm(one - two, axis=-1)
        apart = np.where(np.isfinite(worse + bad), apart, np.inf)
        off = np.where(ill, apart, off)
    return _real_if(f, H, C, A), off


def _by_eigenvectors(
    f: Function, H: np.ndarray, A: LinearOperator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First columns of f(H), the condition of the eigenvectors, and the size of f and its slope."""
    theta, V = np.linalg.eig(H)
    s = np.linalg.svd(V, compute_uv=False)
    singular = s[..., -1] <= np.finfo(float).eps * s[..., 0]  # of no use, not to be inverted
    condition = np.where(singular, np.inf, s[..., 0] / np.where(singular, 1, s[..., -1]))
    V = np.where(singular[..., None, None], np.eye(V.shape[-1]), V)
    y = _at(f, theta, A)
    size = np.linalg.norm(H, axis=(-2, -1))
    step = _precision(f, A) ** 0.5
    near = _at(f, theta + step * size[..., None], A)
    level = np.abs(y).max(axis=-1) + (np.abs(near - y) / step).max(axis=-1)
    first = np.linalg.inv(V)[..., :, 0]
    return np.einsum("...ij,...j->...i", V, y * first), condition, level


def _exponential(H: np.ndarray) -> np.ndarray:
    from scipy.linalg import expm

    with np.errstate(all="ignore"):
        found = np.asarray(expm(H))
    if not np.isfinite(found).all():
        raise ValueError(
            "f is not finite on the spectrum; scale or shift the operator, or pass another f"
        )
    return found


def _at(f: Function, x: np.ndarray, A: LinearOperator) -> np.ndarray:
    """F at numbers of the host, as complex ones of A's library."""
    return _host(values(f, _array(x, A)))


def _array(x: np.ndarray, A: LinearOperator) -> Array:
    """Numbers of the host as complex ones of A's library, in double precision where it has that."""
    kinds = A.xp.__array_namespace_info__().dtypes(device=A.device, kind="complex floating")
    widest = "complex128" if "complex128" in kinds else "complex64"
    return A.xp.asarray(x.astype(widest), device=A.device)


def _host(y: Array) -> np.ndarray:
    if is_differentiated(y):
        require_known(y)
    return to_host(y).astype(complex)


def _precision(f: Function, A: LinearOperator) -> float:
    """Distance from one to the next number that f returns."""
    with np.errstate(all="ignore"):
        y = f(_array(np.ones(1), A))
    return float(namespace(y).finfo(y.dtype).eps)


def _real_if(f: Function, H: np.ndarray, y: np.ndarray, A: LinearOperator) -> np.ndarray:
    """The real part, where H is real and f of real numbers is."""
    if np.iscomplexobj(H):
        return y
    with np.errstate(all="ignore"):
        real = not is_complex(f(A.xp.real(_array(np.ones(1), A))))
    return y.real if real else y


def _placed(y: np.ndarray, like: Array) -> Array:
    """Numbers of the host beside an array, in its precision."""
    xp = namespace(like)
    dtype = real_dtype(like.dtype, xp)
    return beside(like, y, xp.result_type(dtype, xp.complex64) if np.iscomplexobj(y) else dtype)
