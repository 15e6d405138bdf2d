"""The Girard-Hutchinson estimator of the trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .._arrays import Array, Probes, Rng, is_complex, namespace
from .._controls import Control, controlled, read_control, require_independent, told
from .._estimates import (
    Estimate,
    beyond_chance,
    finalize,
    former_name,
    mean,
    of_probes,
    standard_error,
    with_origin,
)
from .._operators import (
    LinearOperator,
    blocks,
    columns_at_once,
    exact_trace_cost,
    has_plain_form,
    quadratic_forms,
    square,
)
from .._runs import Callback, Run, resumable
from ..probes import description, distributions
from .stratified import in_draws
from .sums import exact_trace_of


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def hutchinson(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    control: Any = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""Girard-Hutchinson estimate of the trace: the mean of :math:`\omega^H A \omega`.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int, optional
        Products to spend, at least 1; with a tolerance, at the most, and none is needed. From n on
        the trace is exact, with n products.
    rng : None, int, or generator, optional
        An int or NumPy generator draws the same probes in every library; a torch.Generator, JAX key
        or CuPy generator draws on the device.
    probes : callable, optional
        A distribution of `tracekit.probes`, or any function ``(source, n, m) -> (n, m)``.
    rtol, atol : float, optional
        If one is positive: look after 8, 16, 32, ... probes, and stop when the 95 % interval is
        within ``atol + rtol |value|``, at a level that allows for all looks together.
    callback : callable, optional
        Called with the `Estimate` of each look, such as `progress`; the run ends if it returns
        True.
    checkpoint : path, optional
        An .npz file, replaced after each step; the same call goes on from it and ends with the
        same result, bit for bit. The file does not know the operator: pass the same one.
    control : operator or (operator, value), optional
        An approximation P of A whose trace is known: by the operator itself (``exact``, or the
        entries of a matrix) or as the value, a number or an `Estimate`. The same probes go through
        it, and ``c (omega^H P omega - tr P)`` is subtracted (Notes).
    chunk_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given. The probes do not depend on it.

    Returns
    -------
    Estimate
        Unbiased. The value is a 0-d array in A's library and device, and in its dtype (integers are
        computed in the default float, half precisions in float32). The standard error is that of a
        mean, times ``sqrt(1 - m / n)`` for orthogonal and Hadamard probes. Equal samples of signs
        are not taken for exact while they may be so by chance: the error is then infinite, or that
        of differently weighted forms; 0 from 7 probes on where all products show a diagonal A (15
        where A has a quadratic form of its own).

    Raises
    ------
    ValueError, TypeError
        If A is not square, the budget is no positive int, or A returns something unusable;
        NotFiniteError if that is NaN or infinity. With a tolerance, a callback or a checkpoint, the
        attribute `estimate` of whatever ends a run, Ctrl-C and errors of the operator too, has what
        was paid for, all but the step of a fifth of it that was under way; `resume` goes on from
        it.

    Notes
    -----
    Costs m products, and little else. Memory is one block of probes and one of products (and all m
    probes for `probes.orthogonal`).

    With a `control` the variance is that of :math:`A - c P`. The coefficient c comes from the
    samples: for each of eight folds of the probes from all others, so that the mean is unbiased
    whatever P is; 0 where that does not promise to save a tenth of the variance, and for fewer than
    six probes. ``reason`` says c and the gain. Products with P are taken to be cheap: they are not
    counted. Signs remove the diagonal already: a diagonal P gains nothing.

    The relative error falls as ``m ** -0.5``; use it for flat spectra or tiny budgets.

    References
    ----------
    Girard (1989), Numer. Math. 56, doi:10.1007/BF01395775; Hutchinson (1989), Commun. Stat. Simul.
    Comput. 18, doi:10.1080/03610918908812806.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.ones((50, 50)) + np.diag(np.arange(50.0))
    >>> estimate = tk.hutchinson(A, 20, rng=0)
    >>> estimate.num_matvecs
    20
    """
    run = Run.of(
        square(A), num_matvecs, rng, rtol, atol, callback, checkpoint, chunk_size=chunk_size
    )
    known = None if control is None else read_control(control, run.A, "trace")
    return girard_hutchinson(run, probes, known)


def girard_hutchinson(run: Run, probes: Probes, control: Control | None = None) -> Estimate:
    """The mean of quadratic forms, for a call that is checked; the state is their rows."""
    A, n = run.A, run.A.shape[0]
    if control is not None:
        require_independent(probes)
    cost = exact_trace_cost(A)
    exact = partial(exact_trace_of, A)
    if run.begun or run.budget < cost or (run.looks and cost > 1):
        draws = run.draws(probes, min(run.budget, cost))
        if draws is not None:
            return in_draws(run, *draws, exact)
    take = run.stream(probes, min(run.budget, cost))
    forms, size = all_forms(A, control), columns_at_once(A)
    ties = distributions.few_valued(probes, complex_=is_complex(A))

    def extend(before: Array | None, k: int) -> Array:
        parts = [] if before is None else [before]
        for width in blocks(k, k if probes is distributions.orthogonal else size):
            parts.append(forms(take(width)))
        return A.xp.concat(parts, axis=1) if control else beside_forms(A, parts)

    def read(samples: Array) -> Estimate:
        spent = samples.shape[1]
        correction = distributions.finite_population(probes, spent, n)
        c = None
        if control is not None:
            plain = samples[0, :]
            samples, c = controlled(*rows_of(A, samples), control.value, control.error)
        estimate = mean(samples[0, :], spent, "hutchinson", correction=correction)
        if ties:
            estimate = beyond_chance(estimate, weighted_forms(samples), correction=correction)
        if control is not None and c is not None:
            estimate = with_control(estimate, plain, control, c)
            return finalize(estimate, A, columns=samples[0, :])
        known = description.of_columns(probes, run.source, n, spent, run.widest(n))
        return of_probes(finalize(estimate, A, columns=samples[0, :]), known)

    found: Estimate = run.spend(extend, read, cost=cost, exact=exact)
    return found


def all_forms(A: LinearOperator, control: Control | None) -> Callable[[Array], Array]:
    """The forms of A, and below them those of a control."""
    of_operator = quadratic_forms(A)
    if control is None:
        return of_operator
    of_control = quadratic_forms(control.operator)

    def forms(X: Array) -> Array:
        y, p = of_operator(X), of_control(X)
        dtype = A.xp.result_type(y.dtype, p.dtype)
        return A.xp.concat([A.xp.astype(x, dtype, copy=False) for x in (y, p)], axis=0)

    return forms


def rows_of(A: LinearOperator, samples: Array) -> tuple[Array, Array]:
    """The forms of A, and those of the control."""
    own = 2 if has_plain_form(A) else 1
    return samples[:own, :], samples[own:, :]


def with_control(found: Estimate, plain: Array, control: Control, c: Array) -> Estimate:
    """The estimate with the error of the control's value, and what the control was worth."""
    xp, mean_c = namespace(c), namespace(c).mean(c)
    error = xp.hypot(found.standard_error, xp.abs(mean_c) * control.error)
    reason = told(mean_c, error, standard_error(plain), c.shape[0])
    return replace(found, standard_error=error, reason=reason)


def beside_forms(A: LinearOperator, parts: list[Array]) -> Array:
    """What `quadratic_forms` gives of one operator after another; weighted where all of it is."""
    rows = min(x.shape[0] for x in parts)
    return A.xp.concat([x[:rows, :] for x in parts], axis=1)


def weighted_forms(forms: Array) -> Array | None:
    """Of what `quadratic_forms` gives, those that are weighted, where there are any."""
    return forms[1, :] if forms.shape[0] > 1 else None
