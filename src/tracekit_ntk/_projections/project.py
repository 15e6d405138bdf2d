"""Random projections of the gradients of every output of every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit._arrays import Array, Rng, namespace

from .._backend import capture
from .._derivatives import checks
from .batches import Batch, Projections


def project(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    dim: int,
    *,
    rng: Rng = None,
    cotangent: Any = None,
) -> Array:
    r"""Random projections of the gradients of every output, whose inner products are the kernel's.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of x and of the output.
    params : tree of arrays
        PyTorch or JAX arrays. What is not in the tree is held fixed.
    x : array or tree of arrays
        The samples.
    dim : int
        Numbers that are kept of each gradient.
    rng : None, int, SeedSequence, Generator or JAX key, optional
        What the vectors are drawn from. The same int gives the same projection for other samples,
        in other processes and in both libraries: pass one wherever projections are to meet.
    cotangent : array, optional
        Of a sample's output's shape, or of that of all of them: one gradient of each sample is
        projected, that of the combination ``sum(conj(cotangent) * output)``. Ones give the sum of
        the outputs, the gradients of a loss by the outputs that of the loss.

    Returns
    -------
    (N, ..., dim) array
        The axes of f's output, then the projection; (N, dim) with a cotangent. In the dtype of the
        gradients, single precision at least, on their device.

    Raises
    ------
    ValueError
        If `dim` is no positive int, the cotangent has another shape, or is complex where the
        parameters are real; where samples are coupled; in PyTorch if two runs of f differ.

    See Also
    --------
    projected_kernel : The kernel of such projections, with the error of each entry.
    kernel : The kernel itself.

    Notes
    -----
    With Z what is returned, ``Z @ Z^H`` is an unbiased estimate of the kernel, between samples of
    any calls with one seed. A column is :math:`u^T G v / \sqrt{dim}` with the gradient G of each
    parameter as a matrix, and signs u, v of its own: :math:`\sum_s (x_s \cdot u)(g_s \cdot v)` over
    the positions s at which it is read. Up to 255 columns, all signs are drawn anew for each; from
    there on cells of 2 x 2, 4 x 4 (from 1,024) and 8 x 8 columns (from 4,096) share 2, 4 and 8
    vectors of each kind, so that they cost half, a fourth and an eighth. Cells are independent.

    The error of an entry is :math:`\sqrt{(K_{ss} K_{tt} + K_{st}^2) / dim}` where many positions or
    parameters add to a gradient, and up to twice that for single outer products, as of one layer of
    one position; in cells more where the gradients are of low rank.
    Cosines and other ratios of entries have a bias of order 1 / dim besides.

    After one batched reverse pass over the O outputs: ``N S (d + O w) dim / side`` multiply-adds
    for an operation with S positions, d inputs and w outputs; where less, gradients of a few
    samples are formed. Memory: ``N O dim`` numbers and the factors of as many outputs as fit in 128
    MB of cotangents, at most 16.8 million of intermediate arrays (one sample's gradients, where
    more), and at most 33.6 million signs. A parameter without known rules is projected from its
    explicit Jacobian. Projections can be differentiated, as kernels can.

    References
    ----------
    Park, Georgiev, Ilyas, Leclerc, Madry (2023), "TRAK: Attributing Model Behavior at Scale",
    arXiv:2303.14186. Ahle et al. (2020), "Oblivious Sketching of High-Degree Polynomial Kernels",
    arXiv:1909.01410.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> f, w = lambda w, x: torch.tanh(x @ w), torch.ones(3, 2)
    >>> Z = tkn.project(f, w, torch.eye(3), 64, rng=0)
    >>> Z.shape, tkn.project(f, w, torch.eye(3), 64, rng=0, cotangent=torch.ones(2)).shape
    (torch.Size([3, 2, 64]), torch.Size([3, 64]))
    >>> again = tkn.project(f, w, torch.eye(3)[:1], 64, rng=0)  # other samples, the same seed
    >>> bool(torch.allclose(again, Z[:1]))
    True
    """
    dim = checks.positive("dim", dim)
    batch = Batch(capture(f, params, x, alone=True), params, cotangent)
    [Y] = Projections(params, [batch], rng, dim).columns(dim)
    return namespace(Y).reshape(Y, (Y.shape[0], *batch.shape, dim)) * dim**-0.5
