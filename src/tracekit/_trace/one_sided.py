"""The trace of L L^H from products with L^H alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    ArraySpace,
    Probes,
    Rng,
    abs2,
    colnorm2,
    device_of,
    eps_of,
    eye_like,
    floating,
    householder_qr,
    inner,
    is_complex,
    is_traced,
    magnitude,
    namespace,
)
from .._estimates import (
    Estimate,
    ProbeGram,
    beyond_chance,
    checked_budget,
    exact,
    finalize,
    former_name,
    mean,
    of_probes,
    with_origin,
)
from .._operators import (
    LinearOperator,
    as_operator,
    blocks,
    checked_basis,
    columns_at_once,
    each_column,
    gram,
    in_blocks,
    matvecs_per_column,
    split,
)
from .._runs import Callback, Run, resumable
from ..probes import Source, description, distributions


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def one_sided(
    L: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.orthogonal,
    basis: Array | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The trace of :math:`L L^H`, the squared norm of L, from products with :math:`L^H` alone.

    Parameters
    ----------
    L : LinearOperator or anything that `as_operator` reads
        Of shape (n, P), with a product with its adjoint (``rmatmat``); pass ``L.H`` to use products
        with L alone.
    num_matvecs : int, optional
        Columns through ``L^H``, at least 1. From n on the result is exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        Scaled Haar-orthogonal columns by default; `probes.hadamard` where n is huge and n * m
        numbers do not fit in memory. With `basis`, the distribution of the residual's probes, which
        are orthogonalised against the basis.
    basis : array of shape (n, k), optional
        Orthonormal columns, k < `num_matvecs`, independent of the probes: the trace on their span
        is computed exactly with k products, only the rest is estimated. Unbiased whatever they are;
        the better they span the leading left singular vectors of L, the smaller the error.
        `range_basis` and `difference_basis` make them.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.
    chunk_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given.

    Returns
    -------
    Estimate
        Unbiased. ``kept.gram`` is the Gram matrix ``V^H L L^H V`` of the probes V where they fit in
        one block, so that norms can be read from the same products.

    Raises
    ------
    ValueError, TypeError
        If L has no adjoint product, the budget is no positive int, or the basis is not
        orthonormal or leaves no product for the rest.

    Notes
    -----
    Without a basis this is :math:`(n/m) \|L^H V\|_F^2`, V with m orthonormal columns; its variance
    is that of `probes.orthogonal`. Splitting the budget into a random orthonormal half and its
    complement has about twice that variance, more with sign probes on flat spectra.

    References
    ----------
    Hazelden (2025), arXiv:2511.10796, whose Algorithm 2 is the split form.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> L = np.random.default_rng(0).standard_normal((60, 200))
    >>> estimate = tk.one_sided(L, 30, rng=0)
    >>> low, high = estimate.confidence_interval(0.999)
    >>> bool(low <= np.sum(L * L) <= high)
    True
    """
    L = as_operator(L)
    each, size = matvecs_per_column(L), columns_at_once(L, chunk_size)
    run = Run.of(L, num_matvecs, rng, rtol, atol, callback, checkpoint)
    if run.is_short(each, least=1):
        raise ValueError(
            f"`num_matvecs` must be at least {each} where L was made by gram, got {num_matvecs}; "
            "pass more"
        )
    if basis is None:
        return _plain(run, probes, size, each)
    most = run.budget // each if math.isfinite(run.budget) else L.shape[0]
    return _informed(run, in_blocks(gram(L), size), _orthonormal_basis(L, basis, int(most)), probes)


def range_basis(Y: Array) -> Array:
    """Orthonormal columns that span those of `Y`, for ``one_sided(..., basis=...)``.

    Parameters
    ----------
    Y : array of shape (n, k)
        Whatever is close to ``L @ X`` for some X: a sketch from an earlier step of a training run,
        or one computed in low precision or from part of the data. Columns that depend on the others
        are completed by arbitrary ones.

    Returns
    -------
    array of shape (n, k)
        In the library, dtype (at least single precision) and device of `Y`.

    Notes
    -----
    Costs a QR factorisation. The columns have to be independent of the probes of the estimate.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> Q = tk.range_basis(np.array([[3.0], [4.0]]))
    >>> np.abs(Q).round(3).tolist()
    [[0.6], [0.8]]
    """
    xp = namespace(Y)
    if Y.ndim != 2 or Y.shape[1] > Y.shape[0]:
        raise ValueError(f"no orthonormal basis of {Y.shape} columns; pass an array (n, k), k <= n")
    Y = xp.astype(Y, floating(Y.dtype, xp, device_of(Y)), copy=False)
    return householder_qr(Y / magnitude(Y))[0]


def difference_basis(
    f: Callable[[Array], Array],
    theta: Array,
    k: int,
    *,
    rng: Rng = None,
    step: float | None = None,
) -> Array:
    """A basis for ``one_sided(J, ..., basis=...)`` from forward differences of a function.

    Parameters
    ----------
    f : callable
        The function whose Jacobian at `theta` is J: ``(P,) array -> array of n entries``.
    theta : array of shape (P,)
        Where to differentiate.
    k : int
        Directions; ``k + 1`` evaluations of `f`.
    rng : None, int, or generator, optional
        Of the directions.
    step : float, optional
        Length of a difference relative to the norm of `theta`; the cube root of the rounding unit
        if not given.

    Returns
    -------
    array of shape (n, k)
        Orthonormal columns close to the range of J: neither forward-mode nor reverse-mode
        differentiation is used. An inexact difference costs accuracy, never unbiasedness.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> Q = tk.difference_basis(lambda t: np.array([t[0], 2 * t[0], 0.0]), np.ones(2), 1, rng=0)
    >>> bool(abs(Q[2, 0]) < 1e-6)
    True
    """
    xp, k = namespace(theta), checked_budget(k, "k")
    if theta.ndim != 1 or xp.isdtype(theta.dtype, ("integral", "bool")):
        raise ValueError(
            f"theta has shape {tuple(theta.shape)} and dtype {theta.dtype}; pass the parameters as "
            "one vector of floating-point numbers"
        )
    if step is not None and not step > 0:
        raise ValueError(f"`step` must be a positive number, got {step!r}; pass one, or None")
    device = device_of(theta)
    place = ArraySpace(floating(theta.dtype, xp, device), xp, device)
    length = xp.sqrt(xp.sum(abs2(theta)))
    length = xp.where(length > 0, length, xp.ones_like(length))
    h = length * (step if step is not None else eps_of(theta) ** (1 / 3))
    P = distributions.sphere(Source(rng, place), theta.shape[0], k) * (
        h / math.sqrt(theta.shape[0])
    )
    here = xp.reshape(f(theta), (-1,))
    moved = [xp.reshape(f(theta + P[:, j]), (-1,)) - here for j in range(k)]
    return range_basis(xp.stack(moved, axis=1))


class Norms(NamedTuple):
    """Squared norms of ``L^H V``, column by column, and the Gram matrix where V is one block."""

    samples: Array
    gram: Array | None


def _plain(run: Run, probes: Probes, size: int, each: int) -> Estimate:
    """The trace from columns through the adjoint, each of which counts `each` products."""
    L, n = run.A, run.A.shape[0]
    take = run.stream(probes, min(run.budget, each * n) // each)
    few = distributions.few_valued(probes, complex_=is_complex(L))

    def extend(before: Norms | None, k: int) -> Norms:
        parts, G = [] if before is None else [before.samples], None
        for width in blocks(k, k if probes is distributions.orthogonal else size):
            for part in split(take(width), size):
                G = L.H.matmat(part)
                parts.append(colnorm2(G))
        return Norms(L.xp.concat(parts), inner(G, G) if len(parts) == 1 else None)

    def read(state: Norms) -> Estimate:
        m = state.samples.shape[0]
        correction = distributions.finite_population(probes, m, n)
        estimate = mean(state.samples, each * m, "one_sided", correction=correction)
        if few:
            estimate = beyond_chance(estimate, correction=correction, rest=estimate.samples)
        kept = None if state.gram is None else ProbeGram(state.gram)
        known = description.of_columns(probes, run.source, n, m, run.widest(n))
        found = of_probes(finalize(estimate, L, columns=estimate.samples), known)
        return replace(found, kept=kept)

    def whole() -> Estimate:
        parts = [L.xp.sum(colnorm2(G)) for _, G in each_column(L.H)]
        return finalize(exact(sum(parts[1:], parts[0]), each * n, "one_sided"), L)

    found: Estimate = run.spend(extend, read, each, cost=each * n, exact=whole)
    return found


class Beside(NamedTuple):
    """The trace on a basis, and forms of probes beside it, in blocks of these sizes."""

    on_span: Array
    rest: Array
    blocks: list[int]


def _informed(run: Run, A: LinearOperator, Q: Array, probes: Probes) -> Estimate:
    """Exact on the span of Q, one-sided on its complement; A is L L^H."""
    (n, k), each = Q.shape, matvecs_per_column(run.A)
    run.budget = min(run.budget, each * n) - each * k

    def extend(before: Beside | None, s: int) -> Beside:
        U = distributions.draw(probes, run.source, n, s)
        for _ in range(2):
            U = U - Q @ inner(Q, U)
        if probes is distributions.orthogonal:  # orthonormal in the complement: Haar there
            U = householder_qr(U)[0] * math.sqrt(n - k)
        rest = A.quad(U)  # type: ignore[misc]
        if before is None:
            return Beside(A.xp.sum(A.quad(Q)), rest, [s])  # type: ignore[misc]
        return Beside(before.on_span, A.xp.concat([before.rest, rest]), [*before.blocks, s])

    def read(state: Beside) -> Estimate:
        correction, spent = 1.0, each * (k + sum(state.blocks))
        if probes is distributions.orthogonal:  # blocks that are independent of one another
            share = sum(s * s for s in state.blocks) / sum(state.blocks)
            correction = math.sqrt(max(1 - share / (n - k), 0.0))
        forms = state.on_span + state.rest
        estimate = mean(forms, spent, "one_sided", correction=correction)
        if distributions.few_valued(probes, complex_=is_complex(A)):
            estimate = beyond_chance(estimate, correction=correction, rest=state.rest)
        return finalize(estimate, A)

    found: Estimate = run.spend(extend, read, each)
    return found


def _orthonormal_basis(L: LinearOperator, basis: Array, m: int) -> Array:
    """The basis in the operator's dtype, if it is orthonormal and leaves products for the rest."""
    basis = checked_basis(L, basis, m, 1)
    basis = L.xp.astype(basis, floating(basis.dtype, L.xp, L.device), copy=False)
    defect = L.xp.max(L.xp.abs(inner(basis, basis) - eye_like(basis, basis.shape[1])))
    if not is_traced(defect) and not bool(defect < eps_of(basis) ** 0.5):
        raise ValueError("the columns of basis are not orthonormal; pass range_basis(basis)")
    return householder_qr(L.xp.astype(basis, L.dtype, copy=False))[0]
