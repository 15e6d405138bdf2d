"""The logarithm of a determinant, with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._arrays import (
    Rng,
    constant,
    is_traced,
    namespace,
    once_differentiable,
    real,
    to_number,
)
from .._controls import Preconditioner, known_value, read_preconditioner
from .._estimates import (
    Estimate,
    checked_budget,
    finalize,
    with_origin,
)
from .._operators import LinearOperator, gram, square
from .._runs import Callback, Run, resumable
from .._sketches import Quadrature
from ..functions import log
from .growing import as_it_is, grown
from .preconditioned import beside_known, has_root, logdet_without_root, whitened
from .quadrature import SHARE, read
from .request import exactly, is_affordable, requested
from .slq import choose_depth, within_bounds
from .sparse import log_determinant, with_advice


@with_origin
@resumable()
def logdet(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    depth: int | None = None,
    deflate: int | None = None,
    quadrature: Quadrature | None = None,
    shift: float | None = None,
    hermitian: bool = True,
    bounds: tuple[float, float] | None = None,
    preconditioner: Any = None,
    exact: bool = False,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The logarithm of the determinant of an operator, with its gradient.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian positive definite, of dimension n; any square operator with a product with its
        adjoint, if `hermitian` is False.
    num_matvecs : int, optional
        As for `trace_function`. Where gradients may be asked for, each probe costs one product
        more (two if A was made by `gram`). Needed unless `exact`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    depth : int, optional
        As for `trace_function`.
    deflate : int, optional
        As for `trace_function`; the sketch serves as a preconditioner.
    quadrature : Lanczos or Chebyshev, optional
        As for `trace_function`.
    shift : float, optional
        As for `trace_function`: the noise level c of a covariance ``K + c I``; with a
        `preconditioner` P a number c for which A - c P is positive semidefinite, 1 for that of
        `pivoted_cholesky`.
    hermitian : bool, optional
        False for a general real or complex operator: the value is :math:`\log |\det A|`, half of
        the log-determinant of :math:`A^H A`; the sign or phase of the determinant is not known.
        Products with A and with its adjoint are counted alike.
    bounds : (float, float), optional
        As for `trace_function`; with a `preconditioner` of the eigenvalues of :math:`P^{-1} A`.
    preconditioner : Preconditioner or operator, optional
        A positive definite approximation P of A: a record that knows its inverse and
        log-determinant, or P itself, of which all entries are taken then (n products with it, and a
        Cholesky factorisation). For Hermitian A.
    exact : bool, optional
        True to read it from a factorisation of a sparse matrix of SciPy: exact, without products
        and gradients, in the memory of its fill. Otherwise ``reason`` says where that would have
        been cheaper, by a bound from the pattern.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        As of `trace_function`. Gradients of its value with respect to what A depends on, in torch
        and JAX, are those of :math:`\mathrm{tr}(A^{-1}\, dA)`, estimated with the same probes. They
        have two errors of their own: the spread of the gradients of ``samples``, whose mean they
        are, and ``kept.solves``, the relative error of the solves (None without a gradient). If
        this is above a tenth, ``converged`` is False.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`; where the products show that A is singular or indefinite; of an
        operator without an adjoint product, if not `hermitian`. If `exact`: of what is no sparse
        matrix; of one that is singular, or not positive definite unless `hermitian` is False.

    Notes
    -----
    Without `hermitian` Golub-Kahan takes the place of Lanczos, so that small singular values keep
    their digits; the number of steps goes with the condition of A, not its root, and ``reason``
    says what that is at least, by the Ritz values. A singular value that is far below the others,
    as triangular matrices with small diagonals and Jordan blocks have, shows in a probe after a
    number of steps that follows from n and the condition of the others. One probe goes on as far as
    that, where half of what is left pays for it; where not, ``reason`` says so, and the standard
    error allows for a singular value as small as rounding. Several such values, or smaller ones,
    may be more than that.

    The gradient comes from :math:`E\, y^H A\, \omega` with :math:`y = A^{-1} \omega` held constant:
    the solve is read from the Krylov space of the probe, and no derivative of the Lanczos process
    is taken. It is as accurate as `depth` steps of conjugate gradients, which converge half as fast
    as the value: where a gradient may be asked for, the depth that is chosen settles the solves
    too, to half of the spread that the probes leave of :math:`\mathrm{tr}\, A^{-1}`, or to 1 %.
    Costs and memory as for `trace_function`. Where no gradient may be asked for, a `shift` allows
    the middle of a lower and an upper value from one sketch, which is not unbiased.

    With a `preconditioner` :math:`P = L L^H`, the value is :math:`\log\det P + \mathrm{tr}
    \log(L^{-1} A L^{-H})`, unbiased for any P, by all that is said of `trace_function`; one
    product with A is one solve with L and one with its adjoint, which are not counted. The
    derivatives of P itself are part of the gradient, if it has any. Where the inverse has no root,
    Lanczos runs in the inner product of P, with solves by P, from probes that a root found by
    products with the inverse alone makes: without deflation and without a gradient. A bad P makes
    the error larger than none: ``reason`` tells the depth, compare the standard errors.

    References
    ----------
    Gardner, Pleiss, Bindel, Weinberger, Wilson (2018), arXiv:1809.11165; Wenger, Pleiss, Hennig,
    Cunningham, Gardner (2022), arXiv:2107.00243.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.arange(1.0, 501) ** -2 + 1e-3)
    >>> estimate = tk.logdet(A, 200, rng=0)
    >>> bool(abs(estimate.value - np.linalg.slogdet(A)[1]) < 3)
    True
    >>> estimate = tk.logdet(A, 100, rng=0, shift=1e-3)
    >>> bool(abs(estimate.value - np.linalg.slogdet(A)[1]) < 1)
    True
    """
    if exact:
        return log_determinant(A, hermitian=hermitian)
    given, A = A, square(A, "determinant")
    run = Run.of(A, num_matvecs, rng, rtol, atol, callback, checkpoint)
    if preconditioner is not None:
        if not hermitian:
            raise ValueError(
                "a `preconditioner` is of Hermitian operators; leave it out, or hermitian=False"
            )
        P, options = read_preconditioner(preconditioner, A), (depth, deflate, quadrature)
        return _preconditioned(run, A, num_matvecs, rng, P, *options, shift, bounds)
    if not hermitian:
        if shift is not None or bounds is not None:
            raise ValueError(
                "`shift` and `bounds` are of Hermitian operators; leave them out, or "
                "hermitian=False"
            )
        found = _of_modulus(run, A, num_matvecs, rng, depth, deflate, quadrature)
    else:
        found = _definite(run, A, num_matvecs, rng, depth, deflate, quadrature, shift, bounds)
    return with_advice(found, given)


def _definite(
    run: Run,
    A: LinearOperator,
    num_matvecs: int | None,
    rng: Rng,
    depth: int | None,
    deflate: int | None,
    quadrature: Quadrature | None,
    shift: float | None = None,
    bounds: tuple[float, float] | None = None,
    *,
    general: bool = False,
    into: Callable[[Estimate], Estimate] = as_it_is,
) -> Estimate:
    """Of a positive definite operator."""
    options: dict[str, Any] = {"depth": depth, "deflate": deflate, "quadrature": quadrature}
    options |= {"shift": shift, "bounds": bounds, "general": general}
    quantity = "log-determinant"
    if run.looks or run.begun:
        return grown(run, A, log, read, "logdet", quantity, into=into, **options)
    request = requested(A, log, num_matvecs, gradient=True, **options)
    if request.is_affordable:
        return into(finalize(exactly(request, "logdet"), quantity=quantity))
    estimate, terms = within_bounds(request, rng, "logdet")
    if terms is not None:
        zeros = real(terms) - constant(real(terms))  # with the derivatives of the terms
        value = once_differentiable(estimate.value + namespace(zeros).mean(zeros))
        estimate = replace(estimate, value=value, samples=estimate.samples + zeros)
        estimate = _with_its_solves(estimate)
    return into(finalize(estimate, quantity=quantity))


def _preconditioned(
    run: Run,
    A: LinearOperator,
    num_matvecs: int | None,
    rng: Rng,
    P: Preconditioner,
    *options: Any,
) -> Estimate:
    """That of P, and what it leaves."""
    known = known_value(P.logdet, A, "the log-determinant")

    def with_known(found: Estimate) -> Estimate:
        return beside_known(found, known)

    if has_root(P.inverse):
        rest = whitened(A, P.inverse.factor)
        return _definite(run, rest, num_matvecs, rng, *options, into=with_known)
    run.refuse_looks("a log-determinant by a preconditioner whose inverse has no root")
    depth, *others = options
    if any(x is not None for x in others):
        raise ValueError(
            "a `preconditioner` whose inverse has no root takes none of `deflate`, `quadrature`, "
            "`shift` and `bounds`; leave these out, or make the inverse by gram(F)"
        )
    if is_affordable(A, checked_budget(num_matvecs)):
        return _definite(run, A, num_matvecs, rng, None, None, None)
    return with_known(logdet_without_root(A, num_matvecs, rng, P, depth, choose_depth))


def _of_modulus(run: Run, A: LinearOperator, *given: Any) -> Estimate:
    """The logarithm of the modulus of the determinant of any square operator."""
    if A.rmatmat is None:
        raise TypeError(
            "the determinant of a general operator needs products with its adjoint, and this one "
            "has none; pass LinearOperator(shape, matmat, rmatmat)"
        )
    return _definite(run, gram(A.H), *given, general=True, into=_halved)


def _halved(found: Estimate) -> Estimate:
    """Half of the log-determinant of ``A^H A``."""
    parts, half = found.kept, 0.5
    if parts is not None:
        parts = parts._replace(
            monte_carlo=half * parts.monte_carlo, quadrature=half * parts.quadrature
        )
    told = "log |det A|, sign or phase unknown"
    return replace(
        found,
        value=half * found.value,
        standard_error=half * found.standard_error,
        samples=None if found.samples is None else half * found.samples,
        kept=parts,
        reason=f"{told}; {found.reason}" if found.reason else told,
    )


def _with_its_solves(estimate: Estimate) -> Estimate:
    """The estimate, not converged if its gradient is not."""
    off = estimate.kept.solves
    if is_traced(off) or to_number(off).real <= SHARE:
        return estimate
    reason = f"{estimate.reason}; the gradient has not settled at this depth, pass more products"
    return replace(estimate, converged=False, reason=reason)
