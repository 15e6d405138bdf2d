"""Diagonals whose every probe both sketches and tests: XDiag and XNysDiag."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .._arrays import Array, Probes, Rng, abs2, is_traced, real
from .._estimates import Estimate, Running, checked_budget, former_name, with_origin
from .._operators import exact_diagonal_cost, in_blocks, matvecs_per_column, square, width
from .._runs import Callback, Run, resumable
from .._sketches import (
    FactorSketch,
    adjoint_sketch,
    factor_sketch,
    leave_one_out_estimate,
    nystrom_sketch,
)
from ..probes import Source, distributions
from .columns import Beside, is_exact
from .diagonal import known_diagonal, probed_diagonal


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def xdiag(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    rtol: float = 0.0,
    atol: float = 0.0,
    entrywise: bool = False,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""XDiag estimate of the diagonal: every probe sketches the range and tests that of the others.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; with a product with its adjoint, unless it is Hermitian.
    num_matvecs : int, optional
        Products m to spend: ``m // 2`` probes, one product with A and one with its adjoint each; an
        odd one is left unspent. For ``A = L L^H``, made by `gram`, these are columns through L.H
        and L. Below 3 probes there is nothing to leave out: `diagonal` is used. Where m suffices
        for the exact diagonal, that is the result.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        A distribution of independent columns whose entries have modulus one; others are refused,
        since they would bias the estimate.
    rtol, atol : float, optional
        As for `diagonal`; the probes are kept and added to.
    entrywise : bool, optional
        As for `diagonal`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the sketch.
    chunk_size : int, optional
        Columns in a block of products; chosen to fit 128 MB if not given.

    Returns
    -------
    Estimate
        Unbiased, with a value and a standard error of shape (n,), in A's library, dtype and device.
        The standard error is, entry by entry, the geometric mean of the leave-one-out spread and
        the jackknife, below 8 probes the larger of them, below 5 infinite: calibrated by
        experiment. `samples` has one column a probe.

    Raises
    ------
    ValueError, TypeError
        As for `diagonal`; if the probes are of another kind; and if A has no product with its
        adjoint and the sketch shows that it is not Hermitian.

    Notes
    -----
    With :math:`Q R = A \Omega`, :math:`Z = A^H Q`, and s_i the normalised columns of
    :math:`R^{-H}`, whose norms are :math:`\rho_i`: the mean over i of

    .. math:: \mathrm{diag}(Q Z^H) - Q s_i \circ \overline{Z s_i}
              + \bar\omega_i \circ Q s_i / \rho_i.

    For ``A = L L^H`` the same with :math:`V R = L^H \Omega` and L V in place of both Q and Z, which
    is the Nystrom form, with twice the probes for the same columns through L and L.H. Costs
    O(n m^2) operations besides the products, and memory for about 5.5 m columns. Use it where the
    spectrum decays within m / 2 terms; `diagonal` is better for flat spectra and tiny budgets.
    Intervals of 95 % cover 90 to 100 % of the entries.

    References
    ----------
    Epperly, Tropp, Webber (2024), SIAM J. Matrix Anal. Appl. 45, arXiv:2301.07825,
    doi:10.1137/23M1548323.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> v = np.arange(50.0)
    >>> estimate = tk.xdiag(np.outer(v, v), 10, rng=0)  # of rank one: exact
    >>> bool(np.allclose(estimate.value, v * v))
    True
    """
    A = square(A, "diagonal")
    A, signs = in_blocks(A, width(A, chunk_size)), _unimodular(probes)
    m = None if num_matvecs is None else checked_budget(num_matvecs)
    if m is not None and is_exact(m, exact_diagonal_cost(A), rng, rtol, atol, callback, checkpoint):
        return known_diagonal(A, "xdiag")
    run = Run.of(A, m, rng, rtol, atol, callback, checkpoint, entrywise=entrywise)
    extend = _factored(run) if A.factor is not None else partial(adjoint_sketch, A)
    return _leave_one_out(run, extend, 2, signs, "xdiag")


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def xnysdiag(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    rtol: float = 0.0,
    atol: float = 0.0,
    entrywise: bool = False,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""XNysDiag estimate of the diagonal of a positive semidefinite operator, one product a probe.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian positive semidefinite, of dimension n.
    num_matvecs : int, optional
        Products m to spend: m probes. For ``A = L L^H``, made by `gram`, ``m // 2``, and the
        result is that of `xdiag`. Below 3 probes there is nothing to leave out: `diagonal` is used.
        Where m suffices for the exact diagonal, that is the result.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `xdiag`.
    rtol, atol : float, optional
        As for `xdiag`.
    entrywise : bool, optional
        As for `xdiag`.
    callback : callable, optional
        As for `xdiag`.
    checkpoint : path, optional
        As for `xdiag`.
    chunk_size : int, optional
        As for `xdiag`.

    Returns
    -------
    Estimate
        Unbiased, as for `xdiag`; without an imaginary part.

    Raises
    ------
    ValueError, TypeError
        As for `xdiag`; and if the products show that A is not Hermitian or not positive
        semidefinite.

    Notes
    -----
    With :math:`F = A \Omega (\Omega^H A \Omega)^{-1}` and h the diagonal of
    :math:`(\Omega^H A \Omega)^{-1}`: the mean over i of the real part of

    .. math:: \mathrm{diag}(F \Omega^H A) - |f_i|^2 / h_i + \bar\omega_i \circ f_i / h_i,

    with a multiple of the identity at rounding level added to A, and taken off the result. Costs
    O(n m^2) operations besides the products, and memory for about 11 m columns. Use it in place of
    `xdiag` wherever A is positive semidefinite: it has twice the probes for the same products;
    `diagonal` is better for flat spectra. Intervals of 95 % cover 93 to 100 % of the entries from 8
    probes on.

    References
    ----------
    Epperly, Tropp, Webber (2024), SIAM J. Matrix Anal. Appl. 45, arXiv:2301.07825,
    doi:10.1137/23M1548323.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> v = np.arange(50.0)
    >>> estimate = tk.xnysdiag(np.outer(v, v), 5, rng=0)  # of rank one: exact
    >>> bool(np.allclose(estimate.value, v * v))
    True
    """
    A = square(A, "diagonal")
    A, signs = in_blocks(A, width(A, chunk_size)), _unimodular(probes)
    m = None if num_matvecs is None else checked_budget(num_matvecs)
    if m is not None and is_exact(m, exact_diagonal_cost(A), rng, rtol, atol, callback, checkpoint):
        return known_diagonal(A, "xnysdiag")
    run = Run.of(A, m, rng, rtol, atol, callback, checkpoint, entrywise=entrywise)
    extend = _factored(run) if A.factor is not None else partial(nystrom_sketch, A)
    return _leave_one_out(run, extend, matvecs_per_column(A), signs, "xnysdiag")


def _factored(run: Run) -> Callable[[Array, FactorSketch | None], FactorSketch]:
    """Sketches of the factor; what is added to one is made of full rank by random signs."""
    L = run.A.factor
    assert L is not None

    def extend(Omega: Array, sketch: FactorSketch | None) -> FactorSketch:
        shape = L.shape[1], Omega.shape[1]
        return factor_sketch(L, Omega, None if sketch is None else run.source.signs(shape), sketch)

    return extend


def _leave_one_out(
    run: Run, extend: Callable[[Array, Any], Any], per_probe: int, probes: Probes, method: str
) -> Estimate:
    """The mean of leave-one-out samples of a sketch, which ``extend(Omega, sketch)`` makes."""
    A, cost, real_valued = run.A, exact_diagonal_cost(run.A), method == "xnysdiag"
    if run.is_short(per_probe, cost) or isinstance(run.state, Running | Beside):
        return probed_diagonal(run, probes, method)

    def grow(sketch: Any, k: int) -> Any:
        return extend(run.draw(probes, k), sketch)

    def read(sketch: Any) -> Estimate:
        samples, left_out = sketch.diagonal_samples()
        if real_valued:
            samples, left_out = real(samples), None if left_out is None else real(left_out)
        spent = per_probe * int(sketch.Omega.shape[1])
        return leave_one_out_estimate(samples, left_out, sketch.unit, spent, method, A)

    exact = partial(known_diagonal, A, method)
    found: Estimate = run.spend(grow, read, per_probe, cost=cost, exact=exact)
    return found


def _unimodular(probes: Probes) -> Probes:
    """The same distribution, if its columns are independent and its entries have modulus one."""
    name = getattr(probes, "__name__", probes)
    if getattr(probes, "joint", False):
        raise ValueError(
            f"{name} draws columns that depend on each other, which biases this estimator; pass "
            "probes.rademacher"
        )

    def signs(source: Source, n: int, m: int) -> Array:
        Omega = distributions.draw(probes, source, n, m)
        uneven = source.xp.max(source.xp.abs(abs2(Omega) - 1)) > 1e-3
        if getattr(probes, "spherical", False) or (not is_traced(uneven) and bool(uneven)):
            raise ValueError(
                f"{name} draws entries that are not of modulus one, which biases this estimator; "
                "pass probes.rademacher"
            )
        return Omega

    return signs
