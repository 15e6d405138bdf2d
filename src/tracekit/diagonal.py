"""Diagonals, and their sums over tensor axes: exact, by random probes, and leave-one-out."""

from __future__ import annotations

from typing import Any

from . import _xp
from . import probes as _probes
from ._axes import read_axes
from ._budget import checked_budget
from ._columns import (
    add,
    adjoint_sketch,
    drawn,
    exact_cost,
    exact_diagonal,
    fitted,
    outer_products,
    width,
)
from ._estimate import Estimate, exact, require_finite
from ._face import blocked, done, leave_one_out_estimate, maker_price, renamed, square
from ._operator import LinearOperator
from ._random import Source
from ._typing import Array, Probes, Rng


def diagonal(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = _probes.rademacher,
    block_size: int | None = None,
) -> Estimate:
    r"""The diagonal of an operator, exactly or by random probes.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int, optional
        Products m to spend. If not given, or where m suffices for it, the diagonal is exact. For
        ``A = L L^H``, made by `gram`: columns through L below 32; from there on ``m // 3`` through
        L.H and as many through L for the leading part, the others through L for the rest.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`; for ``A = L L^H`` of the length of L's rows.
    block_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given. The probes do not depend on it.

    Returns
    -------
    Estimate
        Unbiased, with a value and a standard error of shape (n,), in A's library, dtype and device.
        The standard error is entry by entry, 0 where the diagonal is exact; nonnegative where
        ``A = L L^H``, as is the diagonal.

    Raises
    ------
    ValueError, TypeError
        If A is not square, the budget is no positive int, or A returns something unusable;
        NotFiniteError if that is NaN or infinity.

    Notes
    -----
    Exactly: n products, or the P columns of L if P < n, or none where the operator's maker knows
    the diagonal. At random: :math:`\sum_k \bar\omega_k \circ A \omega_k / \sum_k |\omega_k|^2`
    entry by entry, whose variance is that of the off-diagonal entries of a row,
    :math:`\sum_{j \ne i} |a_{ij}|^2 / m` for phases and nonsymmetric or complex A. For
    ``A = L L^H``: the mean of :math:`|L p_k|^2`, of relative standard error at most
    :math:`\sqrt{2/m}` in every entry; and, with V an orthonormal basis of the range of
    :math:`L^H \Omega`, the row norms of L V plus the mean of :math:`|L (I - V V^H) p_k|^2`.
    Memory is one block of probes and one of products, and m / 3 columns of L.H with the latter.
    `xdiag` makes better use of the same products where the spectrum decays.

    References
    ----------
    Bekas, Kokiopoulou, Saad (2007), Appl. Numer. Math. 57, doi:10.1016/j.apnum.2007.01.003.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag([1.0, 2.0, 3.0]) + 0.1
    >>> bool(np.allclose(tk.diagonal(A).value, [1.1, 2.1, 3.1]))
    True
    >>> estimate = tk.diagonal(A, 2, rng=0)
    >>> bool(np.all(np.abs(estimate.value - [1.1, 2.1, 3.1]) < 0.3))
    True
    """
    A = square(A, "diagonal")
    m = None if num_matvecs is None else checked_budget(num_matvecs)
    size = width(A, block_size)
    if m is None or m >= _cost(A):
        value, spent = exact_diagonal(A, block_size)
        return done(exact(value, spent, "diagonal"), A)
    source = Source(rng, A)
    if A.factor is not None:
        return done(outer_products(A, m, _xp.abs2, source, probes, size, "diagonal"), A)
    running = None
    for Omega in drawn(probes, source, A.shape[0], m, size):
        running = add(running, A.matmat(Omega), Omega)
    assert running is not None
    correction = _probes.finite_population(probes, m, A.shape[0])
    return done(fitted(running, m, "diagonal", correction=correction), A)


def xdiag(
    A: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    probes: Probes = _probes.rademacher,
    block_size: int | None = None,
) -> Estimate:
    r"""XDiag estimate of the diagonal: every probe sketches the range and tests that of the others.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; with a product with its adjoint, unless it is Hermitian.
    num_matvecs : int
        Products m to spend: ``m // 2`` probes, one product with A and one with its adjoint each; an
        odd one is left unspent. For ``A = L L^H``, made by `gram`, these are columns through L.H
        and L. Below 3 probes there is nothing to leave out: `diagonal` is used. Where m suffices
        for the exact diagonal, that is the result.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        A law of independent columns whose entries have modulus one; others are refused, since they
        would bias the estimate.
    block_size : int, optional
        Columns in a block of products; chosen to fit 128 MB if not given.

    Returns
    -------
    Estimate
        Unbiased, with a value and a standard error of shape (n,), in A's library, dtype and device.
        The standard error is, entry by entry, the geometric mean of the leave-one-out spread and
        the jackknife: calibrated by experiment. `samples` has one column a probe.

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
    O(n m^2) operations besides the products, and memory for about 4 m columns. Use it where the
    spectrum decays within m / 2 terms; `diagonal` is better for flat spectra and tiny budgets.
    Intervals of 95 % cover 95 to 100 % of the entries.

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
    n, k = A.shape[0], checked_budget(num_matvecs) // 2
    law = _unimodular(probes)
    if num_matvecs >= _cost(A) or k < 3:
        estimate = diagonal(A, num_matvecs, rng=rng, probes=law, block_size=block_size)
        return renamed(estimate, "xdiag")
    Omega = law(Source(rng, A), n, k)
    size = width(A, block_size)
    if A.factor is not None:
        Q, R, Z, scale = _factor_sketch(A.factor, Omega, size)
    else:
        Q, R, Z, scale, _ = adjoint_sketch(A, Omega, size)
    samples, left_out = leave_one_out(Omega, Q, R, Z)
    return leave_one_out_estimate(samples, left_out, scale, 2 * k, "xdiag", A)


def block_traces(
    A: Any,
    dims: Any,
    axis: Any,
    num_probes: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = _probes.rademacher,
    block_size: int | None = None,
) -> Estimate:
    r"""The traces over some axes of every diagonal block of the others.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.
    dims : tuple of int or None
        As for `partial_trace`.
    axis : int or tuple of int
        What to trace over. The other axes are kept, of K entries together, as batch axes are whose
        samples' own traces are wanted.
    num_probes : int, optional
        Exact if not given, or where that is no dearer. Otherwise the products to spend, one a
        probe; for ``A = L L^H``, made by `gram`, the total of columns as for `diagonal`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`, of length n; for ``A = L L^H`` of the length of L's rows.
    block_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given. The probes do not depend on it.

    Returns
    -------
    Estimate
        Unbiased, with a value and a standard error of shape (K,), in A's library, dtype and device:
        the diagonal of the partial trace.

    Raises
    ------
    ValueError, TypeError
        As for `partial_trace`.

    Notes
    -----
    :math:`\sum_t A_{(k,t),(k,t)}` for every k. Exactly: n products, or the P columns of L if
    P < n, or none where the operator's maker knows the diagonal. At random: the sums over t of
    :math:`\bar\omega \circ A \omega`, or of :math:`|L p|^2`, deflated from 32 columns on as
    `diagonal` is. One product gives a sample of all K of them, with noise from all other blocks.

    References
    ----------
    Bekas, Kokiopoulou, Saad (2007), Appl. Numer. Math. 57, doi:10.1016/j.apnum.2007.01.003.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(6.0))
    >>> tk.block_traces(A, (2, 3), 1).value.tolist()
    [3.0, 12.0]
    """
    A = square(A, "diagonal")
    axes = read_axes(A, dims, axis)
    m = None if num_probes is None else checked_budget(num_probes, "num_probes")
    size = width(A, block_size)
    if m is None or m >= _cost(A):
        entries, spent = exact_diagonal(A, block_size)
        value = axes.summed(entries[:, None])[:, 0]
        return done(exact(value, spent, "block_traces"), A)
    source = Source(rng, A)
    if A.factor is not None:

        def norms(X: Array) -> Array:
            return axes.summed(_xp.abs2(X))

        return done(outer_products(A, m, norms, source, probes, size, "block_traces"), A)
    running = None
    for Omega in drawn(probes, source, A.shape[0], m, size):
        running = add(running, axes.summed(_xp.conj(Omega) * A.matmat(Omega)))
    assert running is not None
    correction = _probes.finite_population(probes, m, A.shape[0])
    return done(fitted(running, m, "block_traces", correction=correction), A)


def leave_one_out(Omega: Array, Q: Array, R: Array, Z: Array) -> tuple[Array, Array | None]:
    r"""XDiag from ``Q R = A Omega`` and ``Z = A^H Q``: samples, and jackknife replicates.

    Both have one column a probe. Of the range of all probes but two, i and j, the projector loses
    that on the plane of s_i and s_j, whose Gram matrix has the off-diagonal entry
    :math:`\gamma_{ij} = s_i^H s_j`, and what it leaves of probe j is
    :math:`(s_j - \gamma_{ij} s_i) / (\rho_j (1 - |\gamma_{ij}|^2))`. Costs O(n b^2) with b probes.
    """
    xp, b = _xp.namespace(Q), Omega.shape[1]
    D = _xp.triangular_dual(R)
    rho = xp.sqrt(_xp.colnorm2(D))
    S = D / rho
    B, C = Q @ S, _xp.conj(Z @ S)
    alive = xp.astype(xp.max(xp.abs(R)) > 0, rho.dtype)  # zero has no range to leave anything of
    own, tests = B * C, _xp.conj(Omega) * (alive / rho)
    within = xp.sum(Q * _xp.conj(Z), axis=-1)[:, None]
    samples = within - own + tests * B
    if b < 4:
        return samples, None
    # row i of E is left out of the sketch, column j is the probe that tests the rest
    G, eye = _xp.adjoint(S) @ S, _xp.eye_like(rho, b)
    det = 1 - _xp.abs2(G)
    det = xp.where(det < 1e-14, xp.ones_like(det) * 1e-14, det)
    E = (1 - eye) / ((det + eye) * (b - 1))
    Et, EGt = xp.astype(xp.matrix_transpose(E), G.dtype), xp.matrix_transpose(E * G)
    lost = own * xp.sum(E, axis=-1) - B * (C @ EGt) - C * (B @ _xp.conj(EGt)) + own @ Et
    tested = (tests * B) @ Et - B * (tests @ EGt)
    return samples, within - lost + tested


def _factor_sketch(L: LinearOperator, Omega: Array, size: int) -> tuple[Array, Array, Array, Array]:
    """``V R = L^H Omega`` and ``F = L V``, which stands for both sides, and their unit."""
    G = blocked(L.H.matmat, size)(Omega)
    require_finite(G)
    scale = _xp.magnitude(G)
    V, R = _xp.orthonormalise(G / scale)
    F = blocked(L.matmat, size)(V) / scale
    return F, R, F, scale * scale


def _unimodular(probes: Probes) -> Probes:
    """The same law, if its columns are independent and its entries have modulus one."""
    name = getattr(probes, "__name__", probes)
    if getattr(probes, "joint", False):
        raise ValueError(
            f"{name} draws columns that depend on each other, which biases this estimator; pass "
            "probes.rademacher"
        )

    def law(source: Source, n: int, m: int) -> Array:
        Omega = _probes.draw(probes, source, n, m)
        uneven = source.xp.max(source.xp.abs(_xp.abs2(Omega) - 1)) > 1e-3
        if getattr(probes, "spherical", False) or (not _xp.is_traced(uneven) and bool(uneven)):
            raise ValueError(
                f"{name} draws entries that are not of modulus one, which biases this estimator; "
                "pass probes.rademacher"
            )
        return Omega

    return law


def _cost(A: LinearOperator) -> int:
    """Products from which the exact diagonal is no dearer."""
    known = A.exact and "diagonal" in A.exact
    return max(1, maker_price(A, "diagonal")) if known else exact_cost(A)
