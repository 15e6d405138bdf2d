"""Traces, diagonals and norms of neural tangent kernels, exact, without the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tracekit._arrays import Array, is_differentiated, namespace, real

from .._backend import adapter, capture, shared
from .._derivatives import agreed
from .._factors import Form, Seen, Uses, gram, spans
from ..factors import Capture, Factored
from .batches import captures, joined, pairs
from .head import diagonals_of_head, is_shorter, squares_of_head, traces_of_head
from .norms import norm_of
from .output_axes import chunk_of, zeros
from .sums import parts_of, root_of, sum_of, total_of, tree_of


def ntk_trace(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    per_parameter: bool = False,
    whole: bool = False,
    chunk_size: int | None = None,
    layout: Any = None,
) -> Array:
    """The trace of the empirical neural tangent kernel, exact.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of x and of the output.
    params : tree of arrays
        PyTorch or JAX arrays. What is not in the tree is held fixed.
    x : array or tree of arrays, optional
        The samples.
    batches : iterable, optional
        Samples that do not fit in memory, in place of `x`: batches, each like `x`, such as a
        DataLoader gives. It is gone through once.
    per_parameter : bool
        Whether to give the part of every parameter, as a tree like `params`.
    whole : bool
        Whether f couples samples, as BatchNorm does in training mode: the batch is treated as one
        sample. Without it such f are refused.
    chunk_size : int, optional
        Outputs of each sample that are pulled back at once; as many as 128 MB of cotangents allow
        if not given.
    layout : tracekit.RowLayout or (DeviceMesh, [Shard(0)]), optional
        Where several processes hold samples: all call this with the same parameters and samples of
        their own, and get the trace of the kernel of all samples, by one sum over processes. It
        cannot be differentiated. Of a `RowLayout` the rows do not matter.

    Returns
    -------
    0-d array, or a tree of them
        In the dtype of the parameters, summed in float64 where the library has it.

    Raises
    ------
    ValueError
        If samples are coupled and not `whole`, or a gradient is NaN or infinite (not looked at
        under a transformation of JAX); in PyTorch if two runs of f differ (Dropout in training
        mode, noise).

    Warns
    -----
    UserWarning
        In PyTorch, of parameters that are differentiated on their own, and why.

    See Also
    --------
    kernel : The kernel itself.
    explain : What is computed, and what it costs.

    Notes
    -----
    Only the kernels of samples with themselves are met, of which only the diagonals: an operation
    with S positions, d inputs and w outputs costs ``N O w`` for S = 1 and otherwise the least of
    ``N S^2 (d + O w)`` and ``N O S d w``, after one batched reverse pass over the O outputs.
    Outputs that cannot see some of the positions, as in recurrent networks, are not charged for
    them. Where f ends in a linear map from d features to O > d outputs, such as the head of a
    language model, d cotangents of the features are pulled back in place of O; 2 d where that map
    is differentiated by. In PyTorch f runs twice, and two plain reverse passes check what was
    recorded. The trace can be differentiated where a parameter or an input requires a gradient.

    Examples
    --------
    >>> import torch
    >>> from tracekit_ntk.kernel import ntk_trace
    >>> x, w = torch.ones(5, 3), torch.ones(3, 2)
    >>> float(ntk_trace(lambda w, x: x @ w, w, x))
    30.0
    """

    def own(params: Any) -> Any:
        found = captures(f, params, x, batches, whole)
        parts = [trace_of(each, params, chunk_size, per_parameter) for each in found]
        return joined(params, parts, _added)

    if layout is None:
        return own(params)
    params, held, processes = shared(params, layout)
    made, _ = agreed(processes, partial(own, params), parameters=held)
    library = adapter(params)
    leaves = library.tree_flatten(made)[0]
    summed = processes.total(namespace(leaves[0]).stack(leaves))
    return library.unflatten(made, [summed[i, ...] for i in range(len(leaves))])


def ntk_diagonal(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    per_parameter: bool = False,
    whole: bool = False,
    chunk_size: int | None = None,
) -> Array:
    """The diagonal of the empirical neural tangent kernel, exact.

    Parameters
    ----------
    f : callable
        As for `ntk_trace`.
    params : tree of arrays
        As for `ntk_trace`.
    x : array or tree of arrays, optional
        The samples.
    batches : iterable, optional
        As for `ntk_trace`.
    per_parameter : bool
        Whether to give the part of every parameter, as a tree like `params`.
    whole : bool
        As for `ntk_trace`.
    chunk_size : int, optional
        As for `ntk_trace`.

    Returns
    -------
    array, or a tree of them
        Real, in the shape of f's output: squared lengths of each output's gradient.

    Examples
    --------
    >>> import torch
    >>> from tracekit_ntk.kernel import ntk_diagonal
    >>> x, w = torch.eye(3), torch.ones(3, 2)
    >>> ntk_diagonal(lambda w, x: (x @ w) ** 2, w, x)[0]
    tensor([4., 4.])
    """
    made = []
    for found in captures(f, params, x, batches, whole):
        shape = found.output_shape if whole else (found.samples, *found.output_shape)
        made.append(diagonal_of(found, params, chunk_size, per_parameter, shape))
    return joined(params, made, lambda each: namespace(*each).concat(each))


def ntk_norm(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    per_parameter: bool = False,
    whole: bool = False,
    chunk_size: int | None = None,
) -> Array:
    """The Frobenius norm of the empirical neural tangent kernel, exact.

    Parameters
    ----------
    f : callable
        As for `ntk_trace`.
    params : tree of arrays
        As for `ntk_trace`.
    x : array or tree of arrays, optional
        The samples.
    batches : iterable, optional
        As for `ntk_trace`, but gone through once for each batch, as every batch meets every other:
        the same ones in the same order, or they are refused.
    per_parameter : bool
        Whether to give the part of every parameter, as a tree like `params`.
    whole : bool
        As for `ntk_trace`.
    chunk_size : int, optional
        As for `kernel`.

    Returns
    -------
    0-d array, or a tree of them
        In the dtype of the parameters, summed in float64 where the library has it. The norms of
        the parts do not add up to that of the kernel.

    Notes
    -----
    Costs what the kernel costs, of which only the upper triangle is computed, tile by tile: the
    kernel is never there as a whole. Of B batches two at a time are held, and every pair of them is
    met: B (B + 1) / 2 captures, each with a reverse pass over all outputs.
    Where f ends in a linear map from d features to O > d outputs, that of the features is what one
    batch costs, if nothing is differentiated by the map.

    Examples
    --------
    >>> import torch
    >>> from tracekit_ntk.kernel import ntk_norm
    >>> x, w = torch.eye(3), torch.ones(3, 3)
    >>> float(ntk_norm(lambda w, x: x @ w, w, x))
    3.0
    """
    met = pairs(f, params, x, batches, whole)
    if batches is None:
        return norm_of_one(next(met)[0], params, chunk_size, per_parameter)
    return norm_of(met, params, chunk_size, per_parameter)


def norm_of_one(
    found: Factored, params: Any, chunk_size: int | None, per_parameter: bool = False
) -> Array:
    """The norm, or that of each parameter's part."""
    if found.head is not None and not is_differentiated(found.head.weight):
        parts = squares_of_head(found.head, chunk_size, per_parameter)
        return tree_of(params, _joined(parts, root_of), list(found.sizes), per_parameter)
    return norm_of([(found, found)], params, chunk_size, per_parameter)


def captured(f: Callable[[Any, Any], Any], params: Any, x: Any) -> Capture | None:
    """The network in factored form, if rules are known for all that reads its parameters."""
    try:
        found = capture(f, params, x)
    except TypeError:  # complex outputs of real parameters, in PyTorch
        return None
    return None if any(reason for _, op, _, reason in found.report if op != "none") else found


def trace_of(
    found: Factored, params: Any, chunk_size: int | None, per_parameter: bool = False
) -> Array:
    """The trace, or that of each parameter's part."""
    if found.head is not None:
        parts = traces_of_head(found.head, chunk_size, per_parameter)
        return tree_of(params, _joined(parts, total_of), list(found.sizes), per_parameter)

    def of(part: Array | None, _: int) -> Array | None:
        return None if part is None else sum_of(part)

    return _by_chunks(found, params, chunk_size, True, of, per_parameter, total_of)


def trace_of_seen(
    found: Factored, params: Any, chunk_size: int | None, seen: Seen, per_parameter: bool = False
) -> Array:
    """The same of outputs that are seen through roots, of a network with a head."""
    assert found.head is not None
    parts = traces_of_head(found.head, chunk_size, per_parameter, seen)
    return tree_of(params, _joined(parts, total_of), list(found.sizes), per_parameter)


def diagonal_of(
    found: Factored, params: Any, chunk_size: int | None, per_parameter: bool = False,
    shape: tuple[int, ...] = (-1,),
) -> Array:  # fmt: skip
    """The diagonal, or that of each parameter's part."""

    def of(part: Array | None, count: int) -> Array:
        return zeros(params, (found.samples, count)) if part is None else part

    def joined(parts: list[Array]) -> Array:
        xp = namespace(parts[0])
        return xp.reshape(xp.concat(parts, axis=1), shape)

    if found.head is not None and is_shorter(found.head):
        parts = diagonals_of_head(found.head, chunk_size, per_parameter)
        return tree_of(params, _joined(parts, joined), list(found.sizes), per_parameter)
    return _by_chunks(found, params, chunk_size, False, of, per_parameter, joined)


def from_factors(found: Factored, V: Array, chunk_size: int | None) -> Array:
    """Squared lengths ``|J_s^H v|^2`` of cotangents V (N, O, k): (N, k), of no gradient."""
    xp, parts = namespace(V), []
    for low, high in spans(V.shape[2], chunk_of(found, chunk_size)):
        block = V[:, :, low:high]
        uses = found.combined(block)
        K = gram(uses, uses, Form(block.shape[2], 1, paired=True))
        own = real(block)
        parts.append(xp.zeros_like(own[:, 0, :]) if K is None else real(K[:, 0, :, 0, 0]))
    return xp.concat(parts, axis=1)


@dataclass(frozen=True)
class _Own:
    """Makes of uses what each sample's kernel with itself has on its diagonal, or its trace."""

    outputs: int
    traced: bool
    names: tuple[str, ...]
    per_parameter: bool

    def __call__(self, uses: Uses) -> dict[str, Array]:
        """Of each parameter or of all, (N, outputs) or (N, 1); of none that is not read."""
        kept = (1, self.outputs) if self.traced else (self.outputs, 1)
        found = {}
        for key, own, _ in parts_of(uses, uses, list(self.names), self.per_parameter):
            K = gram(own, own, Form(*kept, paired=True))
            if K is not None:
                found[key] = real(K[:, 0, :, 0, 0])
        return found


def _by_chunks(
    found: Factored,
    params: Any,
    chunk_size: int | None,
    traced: bool,
    of: Callable[[Array | None, int], Array | None],
    per_parameter: bool,
    join: Callable[[list[Array]], Array],
) -> Array:
    names, library = tuple(found.sizes), adapter(params)
    chunk = chunk_of(found, chunk_size, samples=library.samples_at_once(found))

    def parts() -> Iterator[tuple[str, Array]]:
        for low, high in spans(found.outputs, chunk):
            own = _Own(high - low, traced, names, per_parameter)
            made = library.reduced(found, low, high, own)
            for key in names if per_parameter else ("",):
                part = of(made.get(key), high - low)
                if part is not None:
                    yield key, part

    return tree_of(params, _joined(parts(), join), list(names), per_parameter)


def _joined(
    parts: Iterable[tuple[str, Any]], join: Callable[[list[Any]], Array]
) -> dict[str, Array]:
    found: dict[str, list[Any]] = {}
    for key, part in parts:
        found.setdefault(key, []).append(part)
    return {key: join(some) for key, some in found.items()}


def _added(values: list[Array]) -> Array:
    """The sum of numbers, in the widest precision there is, in their dtype."""
    xp = namespace(*values)
    return xp.astype(sum_of(xp.stack(values)), values[0].dtype)
