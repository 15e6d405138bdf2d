"""Independent runs as one: estimates, or the runs that they are read from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from .._estimates import Estimate, merged
from . import run_file

Run = TypeVar("Run")  # Estimate or SpectralRun


def merge(runs: Iterable[Run]) -> Run:
    r"""Independent runs of one estimator on one operator as one run.

    Parameters
    ----------
    runs : iterable of Estimate, or of SpectralRun
        Of one call with different seeds: from several processes, machines, or files
        (`Estimate.from_dict`). Of runs of `spectral_run`, to the same depth.

    Returns
    -------
    Estimate or SpectralRun
        An estimate in the library, dtype and device of the given ones, with the products of all. A
        run has the probes of all, each deflated as in its own run, and cannot be extended.

    Raises
    ------
    ValueError, TypeError
        If the runs differ in method, quantity, shape, dtype or library; if two share their random
        numbers; if one is exact; if they are of both kinds, or none are given.

    Notes
    -----
    Weights are those of what was spent, never of the estimated standard errors: runs that err on
    the low side have small ones, and to weight by them biases the mean. Means of samples are merged
    as if all samples were of one run. Leave-one-out methods (`xtrace`, `xdiag`, ...) are weighted
    by the square of their products, as their variances fall; one run of all products is far more
    accurate, where it is affordable. Errors of a quadrature are averaged, not their squares; where
    one is infinite, so is that of all. Norms are averaged as squares where the method is
    `frobenius_norm`; ratios (`alignment`, `effective_rank`) as they are, so that the bias of each
    run stays.

    Estimates remember what drew their probes, where it is known: an int, a generator of NumPy or
    PyTorch, a JAX key outside of `jax.jit`. Otherwise two are one run if all their numbers agree.
    That the operator is one and the same cannot be seen: only its shape and dtype are compared. A
    run to a tolerance stops sooner where it errs on the low side: merge runs of one budget.

    References
    ----------
    Chan, Golub, LeVeque (1983), Am. Stat. 37, doi:10.1080/00031305.1983.10483115.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(1.0, 2.0, 300))
    >>> whole = tk.merge([tk.hutchinson(A, 20, rng=seed) for seed in (0, 1, 2)])
    >>> whole.num_matvecs, whole.dof
    (60, 59)
    >>> run = tk.merge([tk.spectral_run(A, 100, rng=seed) for seed in (0, 1)])
    >>> run.num_probes, run.num_matvecs
    (8, 180)
    """
    every = [] if isinstance(runs, Estimate) else list(runs)
    if every and all(isinstance(run, Estimate) for run in every):
        return merged(every)  # type: ignore[arg-type, return-value]
    if every and all(hasattr(run, "_spaces") for run in every):
        return run_file.merge(every)  # type: ignore[no-any-return]
    raise TypeError(f"`runs` must be several Estimates, or several SpectralRuns, got {runs!r}")
