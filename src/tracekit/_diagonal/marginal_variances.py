"""The marginal variances of a Gaussian Markov random field, by solves with random probes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .._arrays import Probes, Rng, abs2, conj, is_complex, real
from .._estimates import (
    ErrorParts,
    Estimate,
    Running,
    add,
    checked_budget,
    exact,
    finalize,
    fitted,
    with_origin,
)
from .._operators import all_columns_cost, square
from ..functions import inv, values
from ..probes import Source, distributions
from .of_functions import NOT_SETTLED, Plan, applied, depth_error, eigenpairs, spaces


@with_origin
def marginal_variances(
    Q: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    depth: int | None = None,
) -> Estimate:
    r"""The variances of all variables of a Gaussian, from products with its precision matrix.

    Parameters
    ----------
    Q : LinearOperator or anything that `as_operator` reads
        The precision matrix, Hermitian positive definite, of dimension n; such as the sparse one of
        a Gaussian Markov random field.
    num_matvecs : int
        Products to spend at most: `depth` for each probe (``2 depth - 1`` if Q was made by `gram`).
        Exact from n products on.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`. Those that are coloured by the graph of Q leave least.
    depth : int, optional
        Lanczos steps, as those of conjugate gradients: about the root of the condition number for
        each digit. One and a half times the root of `num_matvecs`, at least 6, if not given.

    Returns
    -------
    Estimate
        The diagonal of the inverse of Q, of shape (n,), in one over the unit of Q, in Q's library,
        device and real dtype. Unbiased but for what the depth leaves, which is part of the standard
        error of each entry (``kept.quadrature``); where that is not small, ``converged`` is False.

    Raises
    ------
    ValueError, TypeError
        As for `diagonal`; if the products show that Q is not Hermitian or not positive definite, or
        do not pay for a probe.

    Notes
    -----
    :math:`\sum_k \bar\omega_k \circ Q^{-1} \omega_k / \sum_k |\omega_k|^2`: for signs the variance
    of entry i is :math:`\sum_{j \ne i} |\Sigma_{ij}|^2 / m`, half of that where Q is complex, of m
    probes and :math:`\Sigma = Q^{-1}`. Solves are by Lanczos, of all probes at once. Memory for
    `depth` + 2 columns a probe, as many at a time as fit in 128 MB. Where a sparse Cholesky factor
    of Q fits in memory, recursions on its entries are exact and cheaper.

    References
    ----------
    Bekas, Kokiopoulou, Saad (2007), Appl. Numer. Math. 57, doi:10.1016/j.apnum.2007.01.003; Rue,
    Martino (2007), J. Stat. Plan. Inference 137, doi:10.1016/j.jspi.2006.07.016; Siden, Lindgren,
    Bolin, Villani (2018), J. Comput. Graph. Stat. 27, arXiv:1705.08656.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> step = np.roll(np.eye(300), 1, axis=0)
    >>> Q = 1.25 * np.eye(300) - 0.5 * (step + step.T)
    >>> variances = tk.marginal_variances(Q, 200, rng=0)  # 4 / 3 each
    >>> bool(abs(variances.value.mean() - 4 / 3) < 0.03), variances.num_matvecs <= 200
    (True, True)
    """
    Q, m = square(Q, "diagonal"), checked_budget(num_matvecs)
    if m >= all_columns_cost(Q):
        x, U = eigenpairs(Q)
        y = values(inv, x, squared=Q.factor is not None)
        value = Q.xp.sum(abs2(U) * y[None, :], axis=-1)
        return finalize(exact(value, all_columns_cost(Q), "marginal_variances"))
    plan = Plan.of(Q, m, depth)
    running: list[Running] = []
    for X, K in spaces(Q, probes, Source(rng, Q), plan):
        size = Q.xp.abs(X)
        phase = conj(X) / Q.xp.where(size > 0, size, Q.xp.ones_like(size))
        solved = [real(phase * Y) for Y in applied(K, inv, plan.depths)]
        before: list[Running | None] = [*running] or [None] * len(solved)
        running = [add(x, Y, size) for x, Y in zip(before, solved, strict=True)]
    correction = distributions.finite_population(probes, plan.probes, Q.shape[0])
    tie = 0.5 if distributions.few_valued(probes, complex_=is_complex(Q)) else None
    found, *shorter = (
        fitted(x, plan.num_matvecs, "marginal_variances", correction=correction, tie=tie)
        for x in running
    )
    error, settled = depth_error([x.value for x in (found, *shorter)])
    reason = f"{plan.probes} probes, depth {plan.depth}" + ("" if settled else f"; {NOT_SETTLED}")
    return finalize(
        replace(
            found,
            standard_error=Q.xp.hypot(found.standard_error, error),
            converged=settled,
            reason=reason,
            kept=ErrorParts(found.standard_error, error),
        ),
        quantity="marginal variances",
    )
