"""Laplacians of functions, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tracekit as tk
from tracekit._arrays import Array, Probes, Rng

from . import checks
from .derivative import Derivative, scales
from .traces import Looks, backend_of, traces


def laplacian(
    f: Callable[[Array], Array],
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
    r"""The Laplacian of a function at every sample: traces of Hessians by the inputs.

    Parameters
    ----------
    f : callable
        ``f(x)`` of shape (N,), one number for every sample, which depends on that sample alone.
        Parameters and conditions are closed over.
    x : (N, D) or (N, ...) array
        As for `divergence`.
    num_matvecs : int, optional
        Products m with the Hessians to spend on every sample, each one for all samples at once. If
        not given, or if there are D or more, the Laplacian is exact, from D products.
    rng : None, int, or generator, optional
        As for `divergence`.
    probes : callable, optional
        As for `divergence`.
    rtol, atol : float, optional
        As for `divergence`.
    entrywise : bool, optional
        As for `divergence`.
    callback : callable, optional
        As for `divergence`.
    checkpoint : path, optional
        As for `divergence`.
    chunk_size : int, optional
        As for `divergence`.

    Returns
    -------
    Estimate
        As of `divergence`, which it is, of the gradient of f.

    Raises
    ------
    TypeError
        As for `divergence`.
    ValueError
        As for `divergence`; if f does not return shape (N,).
    NotImplementedError
        If f has a rule of its own in PyTorch (torch.autograd.Function, torch.compile) that has no
        second derivative, or another one than differences of gradients show.

    Notes
    -----
    A gradient, and m products with the Hessians, of two passes each: forward over reverse in JAX,
    reverse over reverse in PyTorch. The Laplacian of a network that is piecewise linear, as with
    ReLU, is 0 almost everywhere. See `divergence` for checks and variances.

    References
    ----------
    Hutchinson (1989), Commun. Stat. Simul. Comput. 18, doi:10.1080/03610918908812806.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> x = torch.linspace(-1, 1, 12).reshape(4, 3)
    >>> exact = tkn.laplacian(lambda x: (x**3).sum(1), x)
    >>> bool(torch.allclose(exact.value, 6 * x.sum(1))), exact.num_matvecs
    (True, 3)
    >>> tkn.laplacian(lambda x: (x**3).sum(1), x, 2, rng=0)
    Estimate(array of shape (4,), 2 matvecs, laplacian)
    """
    backend = backend_of(x)
    checks.budget(num_matvecs)
    shape = tuple(x.shape)

    def numbers(x: Array) -> Array:
        y = f(x)
        checks.values(y, shape[:1], "f")
        return y

    def again(x: Array) -> Array:
        """The same gradient of a weighted sum, in which samples that mix do not cancel."""
        w = scales(x) ** 0.5  # not as the directions, with which it would cancel
        total = backend.input_gradient(lambda x: numbers(x) * w.reshape(-1), checked=True)
        return total(x) / w

    derivative = Derivative(backend, backend.input_gradient(numbers), again, x, "the gradient of f")
    looks = Looks(rtol, atol, entrywise, callback, checkpoint)
    return traces(
        backend, derivative, shape, num_matvecs, rng, probes, looks, chunk_size, "laplacian"
    )
