"""Traces of functions of Hermitian operators, and the functions themselves as operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._arrays import Array, Probes, Rng, conj
from .._estimates import (
    Estimate,
    checked_budget,
    with_origin,
)
from .._operators import LinearOperator, square
from .._runs import Callback, resumable
from .._sketches import Krylov, Quadrature, gauss, lanczos, rules
from ..functions import Function, values
from ..probes import distributions
from ..quadrature import Chebyshev
from .slq import trace_estimate


@with_origin
@resumable()
def trace_function(
    A: Any,
    f: Function,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    depth: int | None = None,
    block: int = 1,
    deflate: int | None = None,
    quadrature: Quadrature | None = None,
    shift: float | None = None,
    bounds: tuple[float, float] | None = None,
    hermitian: bool = True,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The trace of f(A), A Hermitian, by stochastic Lanczos quadrature with deflation.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n; any square one, if `hermitian` is False. For the singular values
        of any matrix pass ``gram(A)``, with f of their squares.
    f : callable
        A function of a real array of A's library, which returns one of the same shape: its values
        at eigenvalues. `tracekit.functions` has some, and says how to declare where yours is
        defined. Of a complex array, if `hermitian` is False, and analytic everywhere: `exp`, sine
        and cosine, polynomials.
    num_matvecs : int, optional
        Products m to spend at most: `depth` for each probe (``2 depth - 1`` if A was made by
        `gram`), and those of the sketch. What does not fill a probe is left unspent. From n
        products on (the lesser dimension of L, if A is ``L L^H``), where n^2 numbers fit in a
        gigabyte, all eigenvalues are computed and the trace is exact. With a tolerance the most
        that may be spent; none is needed where these fit.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        A distribution of `tracekit.probes`.
    depth : int, optional
        Lanczos steps. Chosen if not given: until the quadrature of f(A) itself, sketch or not, has
        settled (Notes), 6 at least; where values are not known (under `jax.jit`), so that there are
        about eight probes, and 30 at most.
    block : int, optional
        Probes that share a Krylov space: where a few eigenvalues far from the others matter, the
        quadrature converges in fewer steps.
    deflate : int, optional
        Columns of a sketch whose part of the trace is computed, so that only the rest is left to
        the probes; 0 for no deflation of any kind. One product each (two if A was made by `gram`)
        for a function that is declared for positive semidefinite operators, otherwise three (five).
        Chosen, by the spectrum that the first probes or columns see, if not given; none under
        `jax.jit` or with less than 100 products, except for operator monotone functions (Notes).
    quadrature : Lanczos or Chebyshev, optional
        How f is integrated, from `tracekit.quadrature`; Lanczos, with bases where these fit, if
        not given.
    shift : float, optional
        A number c known to be in A: ``A - c I`` is positive semidefinite, as the noise level of a
        covariance is. Of operator monotone functions (`log`, `log1p`, `sqrt`, `ridge`; see
        `tracekit.functions`) one sketch knows the trace much better with it (Notes); other
        functions do not use it.
    bounds : (float, float), optional
        Two numbers between which all eigenvalues lie, for ``certified_interval``; of a function
        whose derivatives have known signs (`log`, `log1p`, `sqrt`, `inv`, `exp`, `ridge(c)`,
        `power(p)` with p below 1). The probes are Gaussian then, and not deflated.
    hermitian : bool, optional
        False for a general real or complex operator, by Arnoldi (Notes); without `block`,
        `deflate`, `quadrature`, `shift` and `bounds`. An operator that was made by `gram` is
        Hermitian, whatever is said. The value is real if A is and f of real numbers is.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        In A's library and device, in f's dtype. The standard error holds both the spread of
        the probes and the error of the quadrature, whose parts are ``kept.monte_carlo`` and
        ``kept.quadrature``; infinite for one probe, and for ``depth=1``. ``reason`` tells how the
        products were spent. Where the budget ends before the quadrature has settled, ``converged``
        is False, the reason says so, and the standard error is infinite or as large as the whole
        value.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`; if the products show that A is not Hermitian, or has eigenvalues
        where f is not defined, or below `shift`; if `depth` does not fit in the budget. If not
        `hermitian`: of f that is declared for eigenvalues of 0 or more, under `jax.jit`, and where
        derivatives may be asked for.

    Notes
    -----
    Each probe costs a Krylov basis of `depth` columns, fully orthogonalised twice: 4 n depth^2
    operations; as many probes at a time as fit in 128 MB. The quadrature is exact for polynomials
    of degree below 2 depth. Its error is estimated by the change over the last steps, carried on
    geometrically, and infinite while changes grow. A depth is chosen where that error is at most
    half of what the probes leave and a tenth of :math:`\mathrm{tr}\, |f|(A)`, two depths in a row,
    where the sketch knows of no eigenvalue beyond those that the probes have seen, and no Ritz
    value stands apart for a cluster that f would tell apart; then, if half of what is left pays for
    it, two of them go on to twice the depth and have to change little. An eigenvalue that no probe
    has seen at that depth is not known: f that is not smooth, such as a step, may hide all of its
    trace in one, and the logarithm part of it in some that are many orders below the others.

    For operator monotone functions of positive semidefinite A, of `log` with a `shift` only, a
    quarter of the budget (then, while that pays, half) goes into a sketch first, if `depth`,
    `block` and `deflate` are not given. One sketch of b columns has a lower and an upper value of
    the trace; if the error of their middle promises to be less than that of quadrature, the whole
    budget goes into the sketch, and ``reason`` says so. Its standard error is such that the
    interval of 95 % holds half of the bracket (``kept.quadrature``) besides the spread of the
    leave-one-out values. The value is *not unbiased*: do not average many cheap ones, pass more
    products. If not, the columns serve for deflation. Under `jax.jit`, where nothing can be judged,
    it is used if a shift is given; it is not, where derivatives may be asked for in PyTorch. Costs
    O(n b^2) besides, and b^2 for each of some 200 nodes; memory for about 4 b columns.

    With `bounds`, the Gauss rule and two Gauss-Radau rules of each probe bracket its form, and
    Bernstein's inequality bounds the mean of Gaussian forms: ``certified_interval`` holds for these
    bounds and exact arithmetic. Bounds that a Ritz value contradicts are refused; others are
    believed. Its width falls with the root of the probes and of n, relative to n times the range of
    f. The number of probes may not depend on what they show: give `depth`; if not given, it is such
    that there are about eight, and 30 at most.

    With a tolerance, a callback or a checkpoint the Krylov spaces grow: deeper, until the rule has
    settled, at twice the depth of two of them too, and its error is at most half of the tolerance;
    else in number. No product is repeated, except that spaces whose bases did not fit are left out
    where the others have to go deeper. No sketch is made then, `shift` does not help, `deflate` and
    `bounds` are refused, Chebyshev moments need their interval, and derivatives are not known. What
    has not settled, or is of less than four probes, has an infinite error and is never within a
    tolerance. An absolute tolerance is what suits a logarithm.

    Without a sketch, the probes are dealt into four folds, and each is deflated by the Krylov
    spaces of the other folds, never by its own: unbiased, and no product more. Up to 640 columns or
    64 MB of bases are kept for that; later probes meet all of these. The spread of such samples is
    multiplied by 1.5 (1 + 15/k^2) for k probes, found by experiment; where it is not less than 0.7
    of the plain spread, plain samples are taken.

    With deflation the sketch serves as a control variate, so that its quality matters for the
    spread only, and derivatives take it as constant; `log` and `inv` are taken of
    ``P^-1/2 A P^-1/2``, P made of the sketch, which needs fewer steps too.

    Without `hermitian` Arnoldi takes the place of Lanczos, and knows polynomials of degree `depth`
    only. Its depth is chosen by the same rule, and is at least such that most of the Taylor series
    of f on a disc as large as the matrix is known: for the exponential about the norm of A less its
    mean eigenvalue. f of the small matrices is computed on the host, in double precision: of
    `functions.exp` by squaring, of other functions by eigenvectors, of a slightly moved matrix
    where these are ill-conditioned; what is uncertain by that is part of ``kept.quadrature``. The
    spread of the probes grows with the departure from normality, as :math:`\|f(A)\|_F`.

    References
    ----------
    Ubaru, Chen, Saad (2017), SIMAX 38, doi:10.1137/16M1104974; Chen, Hallman (2023),
    arXiv:2205.01736; Persson, Kressner (2023), arXiv:2209.11023; Wenger, Pleiss, Hennig,
    Cunningham, Gardner (2022), arXiv:2107.00243; Madhavan, Alexanderian, Saibaba (2026),
    arXiv:2603.05721; for Arnoldi Saad (1992), doi:10.1137/0729014, and Davies (2007),
    doi:10.1137/060659909.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(1.0, 3.0, 400))
    >>> estimate = tk.trace_function(A, tk.functions.sqrt, 100, rng=0)
    >>> low, high = estimate.confidence_interval(0.999)
    >>> bool(low < np.sum(np.sqrt(np.linspace(1.0, 3.0, 400))) < high)
    True

    A known shift:

    >>> x = np.arange(1.0, 401) ** -2 + 0.1
    >>> A = tk.testing.known_spectrum(x)
    >>> estimate = tk.trace_function(A, tk.functions.log1p, 60, rng=0, shift=0.1)
    >>> bool(abs(estimate.value - np.sum(np.log1p(x))) < 0.01)
    True

    A directed cycle, whose Estrada index is its number of nodes:

    >>> A = np.roll(np.eye(500), 1, axis=0)
    >>> estimate = tk.trace_function(A, tk.functions.exp, 200, rng=0, hermitian=False)
    >>> low, high = estimate.confidence_interval(0.999)
    >>> bool(low < 500 < high)
    True
    """
    return trace_estimate(
        A, f, num_matvecs, "trace_function", rng=rng, probes=probes, depth=depth, block=block,
        deflate=deflate, quadrature=quadrature, shift=shift, bounds=bounds, hermitian=hermitian,
        rtol=rtol, atol=atol, callback=callback, checkpoint=checkpoint,
    )  # fmt: skip


def function_operator(
    A: Any, f: Function, depth: int, *, quadrature: Quadrature | None = None
) -> LinearOperator:
    """The operator f(A), by Lanczos: for every estimator, for diagonals and partial traces.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n.
    f : callable
        As for `trace_function`.
    depth : int
        Lanczos steps for each column.
    quadrature : Lanczos, optional
        Whether bases are kept, from `tracekit.quadrature.lanczos`: without them a product runs the
        recurrence twice, for `depth` products (or ``2 depth - 1``) more, in the memory of six
        columns for each that is multiplied. A quadratic form costs the same as with them.

    Returns
    -------
    LinearOperator
        Of A's shape, library, dtype and device. A product with a column costs `depth` products of A
        (``2 depth - 1`` columns through its factor), and so does a quadratic form, which is
        as exact as a product of twice the depth. Estimators count columns of f(A), not of A.

    Raises
    ------
    ValueError, TypeError
        If A is not square or `depth` no positive int; at the products, as for `trace_function`.

    Notes
    -----
    Exact where f is a polynomial of degree below `depth`, or A has no more than `depth` different
    eigenvalues. Memory for `depth` + 2 blocks of the size of the block that is multiplied, with
    bases.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag([1.0, 4.0, 9.0])
    >>> root = tk.function_operator(A, tk.functions.sqrt, 3)
    >>> (root @ np.ones(3)).round(6).tolist()
    [1.0, 2.0, 3.0]
    """
    A, depth = square(A, "function"), checked_budget(depth, "depth")
    depth, way = min(depth, A.shape[0]), rules.checked(quadrature, A)
    if isinstance(way, Chebyshev):
        raise TypeError(
            "a function as an operator is applied by Lanczos; pass quadrature.lanczos()"
        )

    def krylov(X: Array) -> tuple[Krylov, Array]:
        X = A.xp.astype(X, A.xp.result_type(A.dtype, X.dtype), copy=False)
        whole = bool(way.reorthogonalise)
        return lanczos.begin(A, X, reorthogonalise=whole).advance(depth), X

    def at(x: Array) -> Array:
        return values(f, x, squared=A.factor is not None)

    def applied(X: Array, g: Function) -> Array:
        K, X = krylov(X)
        return gauss.applied(K, g) if K.reorthogonalise else gauss.applied_twice(K, X, g)

    def matmat(X: Array) -> Array:
        return applied(X, at)

    def rmatmat(X: Array) -> Array:
        return applied(X, lambda x: conj(at(x)))

    def quad(X: Array) -> Array:
        nodes, M = gauss.rule(krylov(X)[0])
        return A.xp.astype(gauss.forms(nodes, M, at(nodes)), A.dtype, copy=False)

    made: LinearOperator = A._like(A.shape, matmat, rmatmat, quad, dims=A.dims)
    return made
