"""Traces of functions that have a name of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import functions
from .._arrays import Rng
from .._estimates import (
    Estimate,
    with_origin,
)
from .._runs import Callback, resumable
from .._sketches import Quadrature
from .slq import trace_estimate


@with_origin
@resumable()
def trace_inverse(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    depth: int | None = None,
    deflate: int | None = None,
    quadrature: Quadrature | None = None,
    bounds: tuple[float, float] | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The trace of the inverse of a positive definite operator.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian positive definite, of dimension n.
    num_matvecs : int, optional
        As for `trace_function`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        As for `trace_function`.
    deflate : int, optional
        As for `trace_function`; the sketch serves as a preconditioner.
    quadrature : Lanczos or Chebyshev, optional
        As for `trace_function`.
    bounds : (float, float), optional
        As for `trace_function`.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        As of `trace_function`.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`; where the products show that A is singular or indefinite.

    Notes
    -----
    The smallest eigenvalues dominate this trace, and a sketch does not know them: the better A is
    conditioned, the better the estimate.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(1.0, 2.0, 400))
    >>> estimate = tk.trace_inverse(A, 100, rng=0)
    >>> bool(abs(estimate.value - np.sum(1 / np.linspace(1.0, 2.0, 400))) < 3)
    True
    """
    return trace_estimate(
        A,
        functions.inv,
        num_matvecs,
        "trace_inverse",
        rng=rng,
        depth=depth,
        deflate=deflate,
        quadrature=quadrature,
        rtol=rtol,
        atol=atol,
        callback=callback,
        checkpoint=checkpoint,
        bounds=bounds,
    )


@with_origin
@resumable()
def effective_dimension(
    A: Any,
    ridge: float,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    depth: int | None = None,
    deflate: int | None = None,
    quadrature: Quadrature | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The degrees of freedom of ridge regression, :math:`\mathrm{tr}\, A (A + c I)^{-1}`.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian positive semidefinite, of dimension n: a kernel matrix.
    ridge : float
        The positive number c, in the unit of A's eigenvalues.
    num_matvecs : int, optional
        As for `trace_function`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        As for `trace_function`.
    deflate : int, optional
        As for `trace_function`.
    quadrature : Lanczos or Chebyshev, optional
        As for `trace_function`.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        As of `trace_function`.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`; if `ridge` is not positive.

    Notes
    -----
    The function is operator monotone: where the eigenvalues fall quickly, the value is the middle
    of a lower and an upper one from one sketch, which is not unbiased (`trace_function`, Notes).
    For ``K + s I`` pass `functions.ridge` and ``shift=s`` to `trace_function`.

    References
    ----------
    Zhang (2005), Neural Comput. 17, doi:10.1162/0899766054323008.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> float(tk.effective_dimension(np.diag([1.0, 3.0, 0.0]), 1.0, 3))
    1.25
    """
    f = functions.ridge(ridge)
    return trace_estimate(
        A,
        f,
        num_matvecs,
        "effective_dimension",
        rng=rng,
        depth=depth,
        deflate=deflate,
        quadrature=quadrature,
        rtol=rtol,
        atol=atol,
        callback=callback,
        checkpoint=checkpoint,
    )


@with_origin
@resumable()
def estrada_index(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    depth: int | None = None,
    deflate: int | None = None,
    quadrature: Quadrature | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The Estrada index of a graph, :math:`\mathrm{tr}\, e^A`.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        The adjacency matrix, or any other Hermitian operator.
    num_matvecs : int, optional
        As for `trace_function`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        As for `trace_function`.
    deflate : int, optional
        As for `trace_function`.
    quadrature : Lanczos or Chebyshev, optional
        As for `trace_function`.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        As of `trace_function`.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`; where the largest eigenvalue makes the exponential overflow.

    Notes
    -----
    The subgraph centralities of the nodes are ``diagonal(function_operator(A, functions.exp,
    depth), m)``; a heat trace is that of ``(-t) * L``, L the Laplacian. For a directed graph call
    ``trace_function(A, functions.exp, m, hermitian=False)``.

    References
    ----------
    Estrada, Rodriguez-Velazquez (2005), Phys. Rev. E 71, arXiv:cond-mat/0504730.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> triangle = np.ones((3, 3)) - np.eye(3)
    >>> round(float(tk.estrada_index(triangle, 3)), 6)
    8.124815
    """
    return trace_estimate(
        A,
        functions.exp,
        num_matvecs,
        "estrada_index",
        rng=rng,
        depth=depth,
        deflate=deflate,
        quadrature=quadrature,
        rtol=rtol,
        atol=atol,
        callback=callback,
        checkpoint=checkpoint,
    )
