"""Distributions of test vectors, and how blocks of them are drawn as one stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._arrays import (
    Array,
    Probes,
    colnorm2,
    householder_qr,
    inner,
    matrix_diagonal,
    orthonormalise,
    unit_columns,
)
from .hadamard_columns import columns_of, hadamard_stream
from .plans import Plan
from .source import Source, whole_only


def _marked(*, spherical: bool = False, joint: bool = False) -> Callable[[Probes], Probes]:
    def mark(probes: Probes) -> Probes:
        probes.spherical, probes.joint = spherical, joint  # type: ignore[attr-defined]
        probes.itself = probes  # type: ignore[attr-defined]  # what is wrapped is another one
        return probes

    return mark


@_marked()
def rademacher(source: Source, n: int, m: int) -> Array:
    """Random signs; uniform phases (Steinhaus) if the operator is complex.

    Variance of the trace of a symmetric A: ``2 (|A|_F^2 - sum a_ii^2) / m``, the least of all
    independent entries; half of that for phases and Hermitian A.

    Parameters
    ----------
    source : Source
        What random numbers come from; estimators make it of `rng` and the operator.
    n, m : int
        Length and number of the vectors.

    Returns
    -------
    (n, m) array
        Entries of modulus one, in the library, dtype and device of the source.

    References
    ----------
    Hutchinson (1989), Commun. Stat. Simul. Comput. 18, doi:10.1080/03610918908812806.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(10.0))
    >>> tk.hutchinson(A, 8, rng=0, probes=tk.probes.rademacher)  # what is diagonal, is exact
    Estimate(45.0 +- 0.0, 8 matvecs, hutchinson)
    """
    return source.signs((n, m))


@_marked(spherical=True)
def normal(source: Source, n: int, m: int) -> Array:
    """Standard normal entries; circularly symmetric if the operator is complex.

    Variance of the trace of a symmetric A: ``2 |A|_F^2 / m``.

    Parameters
    ----------
    source : Source
        What random numbers come from; estimators make it of `rng` and the operator.
    n, m : int
        Length and number of the vectors.

    Returns
    -------
    (n, m) array
        Entries of mean 0 and variance 1, in the library, dtype and device of the source.

    References
    ----------
    Girard (1989), Numer. Math. 56, doi:10.1007/BF01395775.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> estimate = tk.hutchpp(np.ones((40, 40)), 12, rng=0, probes=tk.probes.normal)
    >>> round(float(estimate), 9)
    40.0
    """
    return source.normal((n, m))


@_marked(spherical=True)
def sphere(source: Source, n: int, m: int) -> Array:
    """Columns uniform on the sphere of radius sqrt(n).

    Variance of the trace of a symmetric A: ``2 n / ((n + 2) m) (|A|_F^2 - tr(A)^2 / n)``.

    Parameters
    ----------
    source : Source
        What random numbers come from; estimators make it of `rng` and the operator.
    n, m : int
        Length and number of the vectors.

    Returns
    -------
    (n, m) array
        Columns of norm sqrt(n), in the library, dtype and device of the source.

    References
    ----------
    Epperly, Tropp, Webber (2024), SIAM J. Matrix Anal. Appl. 45, arXiv:2301.07825.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> estimate = tk.hutchinson(5 * np.eye(40), 2, rng=0, probes=tk.probes.sphere)
    >>> round(float(estimate), 9)
    200.0
    """
    whole_only(source, n, "sphere")
    X = source.normal((n, m))
    return X * (math.sqrt(n) / source.xp.sqrt(colnorm2(X))[None, :])


@_marked(spherical=True, joint=True)
def orthogonal(source: Source, n: int, m: int) -> Array:
    """Haar-distributed orthogonal columns of norm sqrt(n), at most n of them.

    Variance of the trace of a symmetric A:
    ``2 n (n - m) / (m (n - 1) (n + 2)) (|A|_F^2 - tr(A)^2 / n)``; exact at m = n. Costs a QR
    factorisation of an n by m array.

    Parameters
    ----------
    source : Source
        What random numbers come from; estimators make it of `rng` and the operator.
    n, m : int
        Length and number of the vectors; m is at most n.

    Returns
    -------
    (n, m) array
        Orthogonal columns of norm sqrt(n), in the library, dtype and device of the source.

    Raises
    ------
    ValueError
        If m is above n.

    References
    ----------
    Mezzadri (2007), Notices Amer. Math. Soc. 54, arXiv:math-ph/0609050.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.ones((30, 30))
    >>> plain = tk.hutchinson(A, 25, rng=0)
    >>> estimate = tk.hutchinson(A, 25, rng=0, probes=tk.probes.orthogonal)
    >>> bool(estimate.standard_error < plain.standard_error)
    True
    """
    return _orthogonal_stream(source, n, m)(m)


@_marked(joint=True)
def hadamard(source: Source, n: int, m: int) -> Array:
    """Distinct random columns of a Hadamard matrix, rows given random signs (phases if complex).

    Variance of the trace of a symmetric A, with N the least power of two >= n:
    ``2 (N - m) / (m (N - 1)) (|A|_F^2 - sum a_ii^2)``. Entries are generated from n signs and m
    column numbers, without a factorisation: the one to take for huge n.

    Parameters
    ----------
    source : Source
        What random numbers come from; estimators make it of `rng` and the operator.
    n, m : int
        Length and number of the vectors; m is at most N.

    Returns
    -------
    (n, m) array
        Entries of modulus one, in the library, dtype and device of the source; the columns are
        orthogonal to each other where n = N.

    Raises
    ------
    ValueError
        If m is above N.

    References
    ----------
    Ailon, Chazelle (2009), SIAM J. Comput. 39, doi:10.1137/060673096.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(10.0))
    >>> tk.hutchinson(A, 8, rng=0, probes=tk.probes.hadamard)  # what is diagonal, is exact
    Estimate(45.0 +- 0.0, 8 matvecs, hutchinson)
    """
    return hadamard_stream(source, n, m)(m)


@_marked(joint=True)
def basis(source: Source, n: int, m: int) -> Array:
    """All n coordinate vectors times sqrt(n): the trace becomes exact.

    Parameters
    ----------
    source : Source
        What random numbers come from; estimators make it of `rng` and the operator.
    n, m : int
        Length and number of the vectors; m must be n.

    Returns
    -------
    (n, m) array
        The identity times sqrt(n), in the library, dtype and device of the source.

    Raises
    ------
    ValueError
        If m is not n.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.hutchinson(np.diag([1.0, 2.0, 3.0]), 3, probes=tk.probes.basis))
    6.0
    """
    if m != n:
        raise ValueError(f"the basis of dimension {n} has {n} vectors, not {m}; spend {n} products")
    return unit_columns(source, n, n) * math.sqrt(n)


def tiled(probes: Probes, tiles: Any) -> Probes:
    """Vectors in equal tiles, each tile of rows drawn from a distribution of its own dimension.

    For operators that are block-diagonal, or nearly so, with blocks of the tiles' size n / tiles,
    such as the samples' own kernels of a network: orthogonal columns are then exact at
    m = n / tiles.

    Parameters
    ----------
    probes : callable
        The distribution of a tile; tiles are independent of one another.
    tiles : int
        Their number; it has to divide the dimension.

    Returns
    -------
    callable
        A distribution ``(source, n, m) -> (n, m) array``; of `orthogonal` and `basis` at most
        n / tiles columns can be drawn.

    Raises
    ------
    ValueError
        If `tiles` is no positive int; when probes are drawn, if it does not divide n.

    Notes
    -----
    With `orthogonal`, the variance of the trace is the sum of the blocks' own. Tiles of `basis` are
    given random signs, without which those of different blocks would not be uncorrelated.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.kron(np.eye(10), np.ones((3, 3)))
    >>> tiles = tk.probes.tiled(tk.probes.orthogonal, 10)
    >>> round(float(tk.hutchinson(A, 3, rng=0, probes=tiles)), 9)
    30.0
    """
    if not isinstance(tiles, int) or tiles < 1:
        raise ValueError(f"`tiles` must be a positive integer, got {tiles!r}; pass 1 or more")

    def size(n: int) -> int:
        if n % tiles:
            raise ValueError(f"{tiles} tiles do not divide dimension {n}; pass a divisor of it")
        return n // tiles

    def tiled_probes(source: Source, n: int, m: int) -> Array:
        return start(source, n, m)(m)

    def start(source: Source, n: int, m: int) -> Callable[[int], Array]:
        rows = size(n)
        whole_only(source, n, "tiled")
        if probes is orthogonal:
            return _orthogonal_stream(source, rows, m, tiles)
        if probes is basis:
            tile = source.xp.tile(basis(source, rows, m), (tiles, 1))
            return columns_of(tile * source.signs((n, 1)))
        takes = [stream(probes, source, rows, m) for _ in range(tiles)]
        return lambda k: source.xp.concat([take(k) for take in takes], axis=0)

    tiled_probes.__name__ = f"tiled_{getattr(probes, '__name__', 'probes')}"
    tiled_probes.joint = getattr(probes, "joint", False)  # type: ignore[attr-defined]
    tiled_probes.population = lambda n: population(probes, size(n))  # type: ignore[attr-defined]
    tiled_probes.tiles = probes  # type: ignore[attr-defined]
    tiled_probes.stream = start  # type: ignore[attr-defined]
    return tiled_probes


def stream(probes: Any, source: Source, n: int, m: int) -> Callable[[int], Array]:
    """A function ``take(k)`` that hands out the next k of at most m columns of one block."""
    known = callable(probes) or hasattr(probes, "draws")  # a plan of these
    make = _STREAMS.get(probes, getattr(probes, "stream", None)) if known else None
    return make(source, n, m) if make else lambda k: draw(probes, source, n, k)


def plan(probes: Any, source: Source, n: int, m: int) -> Plan | None:
    """What m products are spent on, where probes come in whole draws of several columns."""
    make = getattr(probes, "plan", None)
    return None if make is None else make(n, m, source)


def population(probes: Probes, n: int) -> float:
    """How many columns of such a block would make the estimate exact; infinite if none would."""
    if not getattr(probes, "joint", False):
        return math.inf
    if own := getattr(probes, "population", None):  # of tiles
        return float(own(n))
    return 2 ** (n - 1).bit_length() if probes is hadamard else n


def finite_population(probes: Probes, m: int, n: int) -> float:
    """What the standard error is multiplied by where m probes are drawn without replacement."""
    return math.sqrt(max(1 - m / population(probes, n), 0.0))


def few_valued(probes: Probes, *, complex_: bool) -> bool:
    """Whether entries take so few values that quadratic forms of them tie by chance."""
    if probes is rademacher:
        return not complex_
    return not getattr(getattr(probes, "tiles", probes), "spherical", False)


def draw(probes: Any, source: Source, n: int, m: int) -> Array:
    """A block of the distribution that the caller chose, if that is one and the shape is right."""
    if not callable(probes):
        raise TypeError(
            f"probes= got a {type(probes).__name__}; pass a function (source, n, m) -> (n, m) "
            "array, such as tracekit.probes.rademacher"
        )
    if hasattr(probes, "plan"):
        raise TypeError(
            f"{getattr(probes, '__name__', 'these')} probes come in whole draws, which this "
            "estimator does not know; pass them to hutchinson, diagonal, trace_function or "
            "trace_inverse"
        )
    Omega = probes(source, n, m)
    Omega, shape = source.whole(Omega, n), source.shape(n, m)
    if getattr(Omega, "shape", None) != shape:
        raise ValueError(
            f"probes returned {getattr(Omega, 'shape', type(Omega).__name__)} where an array of "
            f"shape {shape} is needed; pass a function (source, n, m) -> (n, m) array"
        )
    return Omega


def _orthogonal_stream(source: Source, n: int, m: int, tiles: int = 1) -> Callable[[int], Array]:
    if m > n:
        raise ValueError(f"{m} orthogonal vectors do not fit in dimension {n}; pass at most {n}")
    whole_only(source, n * tiles, "orthogonal")
    xp, before = source.xp, list[Array]()

    def take(k: int) -> Array:
        X = xp.reshape(source.normal((tiles * n, k)), (n, k) if tiles == 1 else (tiles, n, k))
        for _ in range(2 if before else 0):
            for Q in before:
                X = X - Q @ inner(Q, X)
        Q, R = orthonormalise(X) if tiles == 1 else householder_qr(X)
        d = matrix_diagonal(R)[..., None, :]
        Q = Q * (d / xp.abs(d))  # makes the factor unique, hence Haar and the same in every library
        before.append(Q)
        return xp.reshape(Q, (tiles * n, k)) * math.sqrt(n)

    return take


_STREAMS: dict[Probes, Callable[[Source, int, int], Callable[[int], Array]]] = {
    orthogonal: _orthogonal_stream,
    hadamard: hadamard_stream,
}
