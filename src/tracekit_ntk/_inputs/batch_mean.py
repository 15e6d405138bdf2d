"""The mean over a batch, of estimates whose errors do not depend on one another."""

from __future__ import annotations

import math
from dataclasses import replace

import tracekit as tk
from tracekit._arrays import Array, constant, is_traced, namespace


def batch_mean(estimate: tk.Estimate) -> tk.Estimate:
    r"""The mean over the samples of a `divergence` or a `laplacian`.

    Parameters
    ----------
    estimate : Estimate
        Of shape (N,), as `divergence` and `laplacian` return it.

    Returns
    -------
    Estimate
        0-d, in the library, dtype and device of its samples; `num_matvecs` is that of every sample
        still.

    Raises
    ------
    ValueError
        If the estimate is of another kind.

    Notes
    -----
    Probes of different samples are independent, so that the standard error is
    :math:`\sqrt{\sum_s \mathrm{se}_s^2} / N`. It is the error of the mean over these samples; what
    other samples would have given is another question, which the spread of the values answers.
    Degrees of freedom are those of Welch and Satterthwaite; where values are not known yet, those
    of one sample, which makes intervals wide: take the mean outside of `jax.jit` then.

    References
    ----------
    Satterthwaite (1946), Biometrics Bull. 2, doi:10.2307/3002019.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> x = torch.linspace(-1, 1, 400).reshape(100, 4)
    >>> v = lambda x: torch.tanh(x @ torch.ones(4, 4)) + x
    >>> estimate = tkn.batch_mean(tkn.divergence(v, x, 2, rng=0))
    >>> low, high = estimate.confidence_interval()
    >>> bool(low < tkn.divergence(v, x).value.mean() < high)
    True
    """
    if estimate.method not in ("divergence", "laplacian") or len(estimate.value.shape) != 1:
        raise ValueError(
            f"`estimate` must be one of divergence or laplacian, got {estimate!r}; other estimates "
            "have errors that depend on one another"
        )
    xp, N = namespace(estimate.value), estimate.value.shape[0]
    largest = xp.max(estimate.standard_error)
    unit = xp.where((largest > 0) & (largest < math.inf), largest, xp.ones_like(largest))
    squares = (estimate.standard_error / unit) ** 2
    return replace(
        estimate,
        value=xp.mean(estimate.value),
        standard_error=xp.sqrt(xp.sum(squares)) * unit / N,
        dof=_dof(constant(squares), estimate.dof),
        skewness=None,
        origin=None,
    )


def _dof(squares: Array, each: int) -> int:
    """Degrees of freedom of the sum of estimated variances, each of `each` of its own."""
    if is_traced(squares):
        return each
    xp = namespace(squares)
    total, fourth = float(xp.sum(squares)), float(xp.sum(squares * squares))
    if not 0 < total < math.inf or fourth == 0:
        return each
    return max(each, int(each * total * total / fourth))
