"""Kernels of random projections, with the error of each entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import tracekit as tk
from tracekit._arrays import (
    Array,
    Rng,
    abs2,
    adjoint,
    magnitude,
    namespace,
    refuse_traced,
    to_number,
)

from .._backend import capture
from .._derivatives import checks
from .._kernel import OutputAxes, asked_axes, of_each, unfolded
from .batches import Batch, Projections

GROUPS = 16  # of cells, whose kernels are samples of the error
FEWEST = 64  # columns before a tolerance is looked at
CHANCE = 0.02  # of calling an entry exact whose groups agree by chance


def projected_kernel(
    f: Callable[[Any, Any], Any],
    params: Any,
    x1: Any,
    x2: Any = None,
    *,
    dim: int,
    rng: Rng = None,
    rtol: float = 0.0,
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    cotangent: Any = None,
) -> tk.Estimate:
    """The kernel between two batches from random projections of their gradients, with errors.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of x and of the output.
    params : tree of arrays
        PyTorch or JAX arrays. What is not in the tree is held fixed.
    x1, x2 : array or tree of arrays
        The samples, any number in each; `x2` is `x1` if not given, and costs nothing more then.
    dim : int
        Numbers that are kept of each gradient; with `rtol`, at most.
    rng : None, int, SeedSequence, Generator or JAX key, optional
        What the vectors are drawn from, as for `project`.
    rtol : float
        Columns are added until the root mean square of all errors is at most so much of the mean of
        the diagonal; all `dim` are used if it is 0.
    trace_axes, diagonal_axes : int or sequence of int
        As for `kernel`: axes of f's output that are summed over, or whose diagonal alone is wanted.
    cotangent : array or tuple of two arrays, optional
        As for `kernel`: of one combination of the outputs of each sample.

    Returns
    -------
    Estimate
        `value` and `standard_error` in the shape that `kernel` gives, of each entry; `num_matvecs`
        is the number of columns, each of which is a product of the Jacobian with a random vector;
        not `converged` where `rtol` is not met.

    Raises
    ------
    ValueError
        If `dim` is no positive int, `rtol` is negative, or `kernel` would refuse axes, cotangents
        or f.
    TypeError
        If `rtol` is given where values are not known, as under `jax.jit`.

    See Also
    --------
    project : The projections alone.
    kernel : The same without an error.

    Notes
    -----
    Projections are cut into 16 groups of independent cells of columns (see `project`); an entry's
    error comes from the spread of the groups' own kernels, with 15 degrees of freedom. Entries
    share vectors, so that their errors are correlated. It is infinite for one column, and where
    fewer than 15 groups agree, which they may by chance.

    Costs what `project` costs for both batches, and ``N1 N2 O^2 dim`` multiply-adds; the exact
    kernel is ``N1 N2 O^2 P`` for P parameters read at many positions, and ``N1 N2 S^2`` and more
    for embeddings: there it pays, or where samples are many more than positions. Memory: the
    projections and three times the kernel.

    Ratios of entries, such as cosines, have a bias of order 1 / dim.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> f, w = lambda w, x: torch.tanh(x @ w), torch.ones(3, 2)
    >>> K = tkn.projected_kernel(f, w, torch.eye(3), dim=256, rng=0, trace_axes=1)
    >>> K.value.shape, K.standard_error.shape
    (torch.Size([3, 3]), torch.Size([3, 3]))
    >>> error = (K.value - tkn.kernel(f, w, torch.eye(3), trace_axes=1)).abs()
    >>> bool((error <= 4 * K.standard_error + 1e-5).all())
    True
    """
    dim = checks.positive("dim", dim)
    if not 0 <= rtol < math.inf:
        raise ValueError(f"`rtol` must be 0 or a positive number, got {rtol!r}; pass one as 0.05")
    first = capture(f, params, x1, alone=True)
    second = first if x2 is None else capture(f, params, x2, alone=True)
    c1, c2 = of_each(cotangent, x2, len(first.output_shape))
    batches = [Batch(first, params, c1)] + ([] if x2 is None else [Batch(second, params, c2)])
    axes, summed = asked_axes(batches[0].shape, trace_axes, diagonal_axes, x2)
    at = min(dim, max(FEWEST, math.ceil(max(rtol, 1e-6) ** -2))) if rtol else dim
    projections = Projections(params, batches, rng, at)
    while True:
        columns = projections.columns(at)
        arranged = [_arranged(Y, axes) for Y in columns]
        K, error = _estimate(arranged[0], arranged[-1], axes, summed, projections.side)
        found = _relative(K, error, arranged, axes, summed) if rtol else 0.0
        if found <= rtol or at == dim:
            break
        wanted = 1.1 * at * (found / rtol) ** 2 if math.isfinite(found) else dim
        at = min(dim, max(2 * at, math.ceil(min(wanted, dim))))
    K, error = (unfolded(part, axes, summed) for part in (K, error))
    reason = f"cells of {projections.side} x {projections.side} columns"
    groups = len(_groups(at, projections.side))
    return tk.Estimate(
        K, error, at, "projected_kernel", converged=found <= rtol, dof=groups - 1, reason=reason
    )


def _arranged(Y: Array, axes: OutputAxes) -> Array:
    """Columns (N, O, dim) by the kind of their outputs: (N, D, T, R, dim)."""
    xp, (N, _, dim) = namespace(Y), Y.shape
    k = len(axes.shape)
    Y = xp.reshape(Y, (N, *axes.shape, dim))
    Y = xp.permute_dims(Y, (0, *(1 + a for a in axes.axes), k + 1))
    return xp.reshape(Y, (N, *axes.sizes, dim))


def _groups(dim: int, side: int) -> list[tuple[int, int]]:
    """Columns of each group: of whole cells, of which the last may be incomplete."""
    area = side**2
    cells = -(-dim // area)
    count = min(cells, GROUPS)
    edges = [min(cells * k // count * area, dim) for k in range(count + 1)]
    return list(pairwise(edges))


def _estimate(
    Y1: Array, Y2: Array, axes: OutputAxes, summed: bool, side: int
) -> tuple[Array, Array]:
    """The kernel (N1, N2, D, R, R) and its error, by the spread of groups of columns."""
    dim = Y1.shape[-1]
    cuts = _groups(dim, side)
    xp, total, squares = namespace(Y1), 0.0, 0.0
    same, unit1, unit2 = Y2 is Y1, magnitude(Y1), magnitude(Y2)  # squares stay in range
    Y1 = Y1 / unit1
    Y2 = Y1 if same else Y2 / unit2
    for low, high in cuts:
        K = _product(Y1[..., low:high], Y2[..., low:high], axes)
        K = xp.sum(K, axis=0, keepdims=True) if summed else K
        total, squares = total + K, squares + abs2(K) * (1 / (high - low))
    K, count = total * (1 / dim), len(cuts)
    rest = squares * (1 / dim) - abs2(K)
    if count == 1:
        return K * unit1 * unit2, xp.zeros_like(rest) + math.inf
    rounding = 64 * xp.finfo(rest.dtype).eps * abs2(K)
    error = xp.sqrt(xp.where(rest > rounding, rest, xp.zeros_like(rest)) * (1 / (count - 1)))
    if 0.75 ** (count - 1) > CHANCE:
        error = xp.where(rest > rounding, error, xp.zeros_like(rest) + math.inf)
    return K * unit1 * unit2, error * unit1 * unit2


def _product(Y1: Array, Y2: Array, axes: OutputAxes) -> Array:
    """Sums over columns and traced outputs: (N1, N2, D, R, R)."""
    xp, (N1, D, T, R, m) = namespace(Y1, Y2), Y1.shape
    N2 = Y2.shape[0]
    order, shape = ((0, 1, 3, 2, 4), (N1, D, R, T * m)) if axes.paired else (
        (1, 0, 3, 2, 4), (D, -1, T * m))  # fmt: skip
    a = xp.reshape(xp.permute_dims(Y1, order), shape)
    b = a if Y2 is Y1 else xp.reshape(xp.permute_dims(Y2, order), shape)
    K = xp.matmul(a, adjoint(b))
    if axes.paired:
        return K[:, None, :, :, :]
    return xp.permute_dims(xp.reshape(K, (D, N1, R, N2, R)), (1, 3, 0, 2, 4))


def _relative(
    K: Array, error: Array, arranged: list[Array], axes: OutputAxes, summed: bool
) -> float:
    """The root mean square of the errors over the mean of the diagonal."""
    xp = namespace(K)
    refuse_traced(K)
    means = []
    for Y in arranged:
        N, D, _, R, dim = Y.shape
        means.append(to_number(xp.sum(abs2(Y))).real / (dim * D * R * (1 if summed else N)))
    size = math.sqrt(means[0] * means[-1])
    spread = math.sqrt(to_number(xp.mean(abs2(error))).real)
    return spread / size if size else 0.0
