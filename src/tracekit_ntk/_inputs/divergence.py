"""Divergences of vector fields, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tracekit as tk
from tracekit._arrays import Array, Probes, Rng

from . import checks
from .derivative import Derivative
from .traces import Looks, backend_of, traces


def divergence(
    v: Callable[[Array], Array],
    x: Array,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = tk.probes.hadamard,
    rtol: float = 0.0,
    atol: float = 0.0,
    entrywise: bool = False,
    callback: Callable[[tk.Estimate], Any] | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> tk.Estimate:
    r"""The divergence of a vector field at every sample: traces of Jacobians by the inputs.

    Parameters
    ----------
    v : callable
        ``v(x)`` of the shape of `x`, whose samples do not depend on one another. Parameters, times
        and conditions, one a sample too, are closed over.
    x : (N, D) or (N, ...) array
        N samples, of real floating-point numbers of PyTorch or JAX; the trace is that over all D
        entries of a sample, as of an image.
    num_matvecs : int, optional
        Products m to spend on every sample, each one pass for all samples at once; with a
        tolerance, a callback or a checkpoint, at the most. If neither is given, or if there are D
        or more, the divergence is exact, from D products.
    rng : None, int, or generator, optional
        As for `tracekit.hutchinson`. An int or a JAX key draws the same probes in every call, as a
        solver of differential equations needs them.
    probes : callable, optional
        A distribution of vectors of length D, drawn for every sample on its own.
    rtol, atol : float, optional
        As for `tracekit.diagonal`, of all N values together: products are spent on every sample
        until the Frobenius norm of the errors is within that of the values. D products end it, so
        that `num_matvecs` is not needed. Refused under `jax.jit`.
    entrywise : bool, optional
        The tolerance is on the largest error of a sample instead, against the largest value.
    callback : callable, optional
        As for `tracekit.hutchinson`.
    checkpoint : path, optional
        As for `tracekit.hutchinson`; the file knows nothing of v and x.
    chunk_size : int, optional
        Products at once; as many as have 1 MB of directions if not given, which is fast on CPUs and
        bounds the memory: a network holds several arrays of the width of its layers for each. More
        may be faster on an accelerator.

    Returns
    -------
    Estimate
        Unbiased, with a value and a standard error of shape (N,), in the library and device of `x`
        and the dtype of ``v(x)``; half precisions become float32. Gradients flow through the value
        to `x` and to what v closes over: in JAX, and in PyTorch where anything requires a gradient
        and grad mode is on.

    Raises
    ------
    TypeError
        If `x` is no real array of PyTorch or JAX, or v returns none.
    ValueError
        If shapes do not agree, v is not finite, or samples are seen to depend on one another or on
        chance (BatchNorm or dropout in training mode).

    Notes
    -----
    One pass through v, and m products: in JAX forward mode, in PyTorch reverse mode, whose
    transposed Jacobian has the same trace. Values that are known are held to one more pass and two
    products: directions that are scaled, for every sample by a number of its own, have to give
    products scaled alike, which shows any derivative by another sample. Under `jax.jit`,
    `jax.vmap`, `jax.grad` and the transforms of `torch.func` nothing is checked, and nothing waits
    for the device. Gradients of the value take second derivatives of v, which what torch.compile
    made has not, nor a torch.autograd.Function whose backward cannot be differentiated. Errors of
    the samples are independent of one another, see `batch_mean`. The variance at a sample with the
    symmetric part S of its Jacobian is
    :math:`2\,\frac{M - m}{m (M - 1)}\,(\|S\|_F^2 - \sum_i s_{ii}^2)` for columns of a Hadamard
    matrix, of order M, the least power of two that is no less than D; for `orthogonal` vectors,
    slower to draw, M is D, which is less for small D that are no powers of two. The relative error
    at a sample is small only if m is not small beside D; that of the mean over a batch is.

    References
    ----------
    Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), ICLR, arXiv:1810.01367; Hutchinson
    (1989), Commun. Stat. Simul. Comput. 18, doi:10.1080/03610918908812806.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> x = torch.linspace(-1, 1, 12).reshape(4, 3)
    >>> exact = tkn.divergence(lambda x: x * x.sum(1, keepdim=True), x)
    >>> bool(torch.allclose(exact.value, 4 * x.sum(1))), exact.num_matvecs
    (True, 3)
    >>> tkn.divergence(lambda x: x * x.sum(1, keepdim=True), x, 2, rng=0)
    Estimate(array of shape (4,), 2 matvecs, divergence)
    """
    backend = backend_of(x)
    checks.budget(num_matvecs)
    shape = tuple(x.shape)

    def field(x: Array) -> Array:
        y = v(x)
        checks.values(y, shape, "v")
        return y

    derivative = Derivative(backend, field, field, x, "v")
    looks = Looks(rtol, atol, entrywise, callback, checkpoint)
    return traces(
        backend, derivative, shape, num_matvecs, rng, probes, looks, chunk_size, "divergence"
    )
