"""Traces and diagonals of generalized Gauss-Newton matrices, exact, from factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit._arrays import Array, device_of, namespace

from .._backend import adapter, capture
from .._factors import spans
from .._kernel import chunk_of, trace_of, trace_of_seen
from ..factors import Factored
from .roots import Weighted, roots_of
from .squares import squared_entries


def ggn_trace(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    loss: Any,
    *,
    per_parameter: bool = False,
    whole: bool = False,
) -> Array:
    """The trace of the generalized Gauss-Newton matrix of a loss, exact.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of x and of the output, (N, ..., O) or
        (N,), which is real.
    params : tree of arrays
        PyTorch or JAX arrays, real. What is not in the tree is held fixed.
    x : array or tree of arrays
        The samples.
    loss : tracekit_ntk.losses.Loss or object with a method hessian_root
        As for `ggn`.
    per_parameter : bool
        Whether to give the part of every parameter, as a tree like `params`, at no further pass.
    whole : bool
        Whether f couples samples, as BatchNorm does in training mode: the batch is treated as one
        sample. Without it such f are refused.

    Returns
    -------
    0-d array, or a tree of them
        Summed over samples. In the dtype of the parameters, summed in float64 where the library
        has it.

    Raises
    ------
    TypeError
        If outputs are complex, or the loss has no `hessian_root`.
    ValueError
        If `hessian_root` gives something of another shape; if samples are coupled and not `whole`,
        or a gradient is NaN or infinite (not looked at under a transformation of JAX); in PyTorch
        if two runs of f differ (Dropout in training mode, noise).

    Warns
    -----
    UserWarning
        In PyTorch, of parameters that are differentiated on their own, and why.

    See Also
    --------
    ggn : The matrix as an operator, for other numbers than this.
    ntk_trace : The same with the squared error for a loss, by fewer operations.

    Notes
    -----
    ``tr(J^T S S^T J) = sum |S^T J|^2``: one batched reverse pass over the R columns of every
    sample's root S, of which as many run at once as 128 MB of cotangents allow, and then what
    `ntk_trace` costs, of R outputs. R is the number of a sample's outputs for the losses of this
    package. Where f ends in a linear map from d < R features, the features' d columns take their
    place. In PyTorch f runs twice, and two plain reverse passes check what was recorded. The
    trace can be differentiated where a parameter or an input requires a gradient.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> x, params = torch.ones(5, 3), {"w": torch.zeros(3, 2), "b": torch.zeros(2)}
    >>> f = lambda p, x: x @ p["w"] + p["b"]
    >>> round(float(tkn.ggn_trace(f, params, x, tkn.losses.softmax_cross_entropy)), 4)
    10.0
    >>> parts = tkn.ggn_trace(f, params, x, tkn.losses.logistic, per_parameter=True)
    >>> {name: round(float(part), 4) for name, part in parts.items()}
    {'w': 7.5, 'b': 2.5}
    """
    found = _weighted(f, params, x, loss, whole)
    return weighted_trace(found, params, None, per_parameter)


def ggn_diagonal(
    f: Callable[[Any, Any], Any], params: Any, x: Any, loss: Any, *, whole: bool = False
) -> Any:
    """The diagonal of the generalized Gauss-Newton matrix of a loss, exact.

    Parameters
    ----------
    f : callable
        As for `ggn_trace`.
    params : tree of arrays
        As for `ggn_trace`.
    x : array or tree of arrays
        The samples.
    loss : tracekit_ntk.losses.Loss or object with a method hessian_root
        As for `ggn`.
    whole : bool
        As for `ggn_trace`.

    Returns
    -------
    tree of arrays
        Like `params`: for every entry the sum over samples. In the dtypes of the parameters, half
        precisions in float32.

    Notes
    -----
    The passes are those of `ggn_trace`. Entries of a linear operation at one position are sums of
    products of squares, ``(X^2)^T (G^2)``, of N samples, d inputs and w outputs ``N (R + d) w``
    operations: no gradient is formed. At S > 1 positions, as in convolutions and sequences, or
    where several operations read the same entries, gradients of single samples are formed, a few
    at a time: ``N R S d w``. An embedding of V rows costs ``N S (S R + V) w``.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> x, w = torch.eye(2), torch.zeros(2, 3)
    >>> tkn.ggn_diagonal(lambda w, x: x @ w, w, x, tkn.losses.logistic)
    tensor([[0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500]])
    """
    found = _weighted(f, params, x, loss, whole)
    leaves = [leaf for _, leaf in adapter(params).leaves(params)]
    made = flat_diagonals(found, leaves, None)
    shaped = [namespace(d).reshape(d, p.shape) for d, p in zip(made, leaves, strict=True)]
    return adapter(params).unflatten(params, shaped)


def weighted_trace(
    found: Weighted, params: Any, chunk_size: int | None, per_parameter: bool = False
) -> Array:
    """The trace, or that of each parameter's part: by way of a wide head's features, or columns."""
    if found.seen is None:
        return trace_of(found, params, chunk_size, per_parameter)
    return trace_of_seen(found.network, params, chunk_size, found.seen, per_parameter)


def flat_diagonals(found: Factored, leaves: list[Array], chunk_size: int | None) -> list[Array]:
    """The diagonal of ``J^T J``, (size,) for each parameter."""
    totals: dict[str, Array] = {}
    for low, high in spans(found.outputs, chunk_of(found, chunk_size)):
        for name, uses in found.uses(low, high).items():
            if uses:
                part = squared_entries(uses, found.sizes[name])
                totals[name] = totals[name] + part if name in totals else part
    made = []
    for name, leaf in zip(found.sizes, leaves, strict=True):
        xp = namespace(leaf)
        dtype = leaf.dtype if xp.finfo(leaf.dtype).bits >= 32 else xp.float32
        zero = xp.zeros((found.sizes[name],), dtype=dtype, device=device_of(leaf))
        made.append(xp.astype(totals.get(name, zero), dtype, copy=False))
    return made


def _weighted(f: Any, params: Any, x: Any, loss: Any, whole: bool) -> Weighted:
    found = capture(f, params, x, whole=whole)
    return Weighted(found, roots_of(loss, found.output, found.samples))
