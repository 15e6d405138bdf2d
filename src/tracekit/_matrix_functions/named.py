"""Traces of functions that have a name of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from .. import functions
from .._arrays import Probes, Rng
from .._estimates import (
    Estimate,
    checked_budget,
    finalize,
    with_origin,
)
from .._operators import square
from .._runs import Callback, Run, resumable
from .._sketches import Quadrature
from ..probes import distributions
from .families import numbers, ridges
from .preconditioned import inverse_trace
from .request import is_affordable
from .slq import choose_depth, trace_estimate
from .sparse import trace_of_inverse, with_advice


@with_origin
@resumable()
def trace_inverse(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    depth: int | None = None,
    deflate: int | None = None,
    quadrature: Quadrature | None = None,
    bounds: tuple[float, float] | None = None,
    preconditioner: Any = None,
    exact: bool = False,
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
        As for `trace_function`; not needed if `exact`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        A distribution of `tracekit.probes`; of a sparse matrix `probes.coloured`.
    depth : int, optional
        As for `trace_function`.
    deflate : int, optional
        As for `trace_function`; the sketch serves as a preconditioner.
    quadrature : Lanczos or Chebyshev, optional
        As for `trace_function`.
    bounds : (float, float), optional
        As for `trace_function`.
    preconditioner : Preconditioner or operator, optional
        A positive definite approximation P of A: a record that knows its inverse and the trace of
        that, or P itself, of which all entries are taken then (n products with it, and a Cholesky
        factorisation). Without `deflate`, `quadrature` and `bounds`.
    exact : bool, optional
        True to solve for the columns of the identity by a factorisation of a sparse matrix of
        SciPy: exact, without products, and in one array of its fill. Otherwise ``reason`` says
        where that would have been cheaper.
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
        As for `trace_function`; where the products show that A is singular or indefinite. If
        `exact`: of what is no sparse matrix, or not positive definite.

    Notes
    -----
    The smallest eigenvalues dominate this trace, and a sketch does not know them: the better A is
    conditioned, the better the estimate. Of a sparse matrix, `probes.coloured` makes much better
    use of the same products, unless its inverse falls off slowly.

    With a `preconditioner` the probes are solved for by conjugate gradients with P, and the
    inverse of P is a control variate: the value is :math:`c\, \mathrm{tr} P^{-1} + E\, \omega^H
    (A^{-1} - c P^{-1})\, \omega`, c fitted for each of eight folds of the probes to all others,
    and 0 where that does not promise to save a tenth of the variance, or for fewer than six probes.
    ``reason`` says c and the gain; the standard error holds that of the solves
    (``kept.quadrature``). Solves with P are taken to be cheap: they are not counted. A P that is
    good for the large eigenvalues of A saves steps, not variance. Memory for two bases of `depth`
    columns for each of the first probes.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(1.0, 2.0, 400))
    >>> estimate = tk.trace_inverse(A, 100, rng=0)
    >>> bool(abs(estimate.value - np.sum(1 / np.linspace(1.0, 2.0, 400))) < 3)
    True
    """
    if exact:
        return trace_of_inverse(A)
    if preconditioner is not None:
        signs = probes is distributions.rademacher
        if deflate or quadrature is not None or bounds is not None or not signs:
            raise ValueError(
                "`probes`, `deflate`, `quadrature` and `bounds` are not of a preconditioned "
                "inverse; leave these out, or the preconditioner"
            )
        A = square(A, "inverse")
        run = Run.of(A, num_matvecs, rng, rtol, atol, callback, checkpoint)
        run.refuse_looks("a trace of the inverse with a preconditioner")
        if not is_affordable(A, checked_budget(num_matvecs)):
            found = inverse_trace(A, num_matvecs, rng, preconditioner, depth, choose_depth)
            return finalize(found, quantity="trace of the inverse")
    found = trace_estimate(
        A,
        functions.inv,
        num_matvecs,
        "trace_inverse",
        rng=rng,
        probes=probes,
        depth=depth,
        deflate=deflate,
        quadrature=quadrature,
        rtol=rtol,
        atol=atol,
        callback=callback,
        checkpoint=checkpoint,
        bounds=bounds,
    )
    return with_advice(found, A, solves=True)


@with_origin
@resumable()
def effective_dimension(
    A: Any,
    ridge: float | Sequence[float],
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
    ridge : float, or sequence of T floats
        The positive number c, in the unit of A's eigenvalues; or several, for all of which the
        products are spent once.
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
        As of `trace_function`; of shape (T,) for several ridges, with ``band(level)`` for all of
        them at once.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`; if `ridge` is not positive.

    See Also
    --------
    SpectralRun.effective_dimension : Of a run that other functions are read from, too.

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
    >>> tk.effective_dimension(np.diag([1.0, 3.0, 0.0]), [1.0, 3.0], 3).value.tolist()
    [1.25, 0.75]
    """
    f = functions.ridge(ridge) if _is_one(ridge) else ridges(numbers("ridge", ridge))
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


def _is_one(ridge: Any) -> TypeGuard[float]:
    return not hasattr(ridge, "__len__") or not getattr(ridge, "ndim", 1)
