"""Neural tangent kernels as arrays, exact, from the structure of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tracekit._arrays import Array, namespace

from ._backend import capture
from ._factors import Form, gram
from ._kernel import (
    BYTES_KEPT,
    OutputAxes,
    Prepared,
    asked_axes,
    chunk_of,
    combined,
    explain,
    factored_ntk,
    in_chunks,
    jacobian_contraction,
    kernel_of_head,
    ntk_diagonal,
    ntk_norm,
    ntk_trace,
    ntk_vector_products,
    reduced,
    structured_derivatives,
    unfolded,
    zeros,
)

__all__ = [
    "explain",
    "factored_ntk",
    "jacobian_contraction",
    "kernel",
    "kernel_matrix",
    "ntk_diagonal",
    "ntk_norm",
    "ntk_trace",
    "ntk_vector_products",
    "structured_derivatives",
]


def kernel(
    f: Callable[[Any, Any], Any],
    params: Any,
    x1: Any,
    x2: Any = None,
    *,
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    implementation: Callable[..., Prepared] = structured_derivatives,
    whole: bool = False,
    chunk_size: int | None = None,
    cotangent: Any = None,
) -> Array:
    """The empirical neural tangent kernel between two batches of samples, as an array.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of x and of the output.
    params : tree of arrays
        PyTorch or JAX arrays. What is not in the tree is held fixed.
    x1, x2 : array or tree of arrays
        The samples, any number in each; `x2` is `x1` if not given, and costs nothing more then.
    trace_axes : int or sequence of int
        Axes of f's output that are summed over on the diagonal: a sum, not a mean.
    diagonal_axes : int or sequence of int
        Axes of f's output of which only the diagonal is wanted. Axis 0, the samples, can be in
        either where `x2` is not given.
    implementation : callable
        `structured_derivatives`, `jacobian_contraction` or `ntk_vector_products`. They agree up to
        rounding; the first is the union of all three, with the order of contraction chosen for
        every parameter by counted work. Only it asks for no forward mode and mixes in fall-backs.
        One of your own takes ``(f, params, x1, x2)`` and returns a record of ``output_shape`` and
        ``kernel(axes, chunk_size)``, as these do.
    whole : bool
        Whether f couples samples, as BatchNorm does in training mode: the batch is treated as one
        sample with all its outputs. Without it such f are refused.
    chunk_size : int, optional
        Outputs of each sample that are pulled back at once; as many as keep cotangents, with all
        that is made of them, within 1 GB if not given. All chunks meet each other, so that k of
        them cost up to k (k + 1) / 2 passes.
    cotangent : array or tuple of two arrays, optional
        Of the shape of a sample's output, or of that of all samples (of `x1` and of `x2` in a tuple
        where there are both): the kernel of ``sum(conj(cotangent) * output)``, of one output, such
        as the pseudo-kernel of the sum of all logits, for one pass. By structured derivatives.

    Returns
    -------
    (N1, N2, ..., ..., ...) array
        After the samples: axes in `diagonal_axes`, then the others for `x1`, then for `x2`; a
        kernel (N1, N2, O, O) for outputs (N, O). Axis 0 in `diagonal_axes` leaves one axis of
        samples, in `trace_axes` none.

    Raises
    ------
    ValueError
        If an axis does not exist or is named twice, or samples are coupled and not `whole`; if the
        cotangent has another shape, is complex where the parameters are real, or comes with
        `whole` or another implementation; in PyTorch if two runs of f differ, as with Dropout in
        training mode.

    Warns
    -----
    UserWarning
        In PyTorch, of parameters that are differentiated on their own, and why.

    See Also
    --------
    kernel_matrix : The same as a matrix.
    ntk_trace, ntk_diagonal, ntk_norm : What can be had without the kernel.
    explain : What is computed, and what it costs.

    Notes
    -----
    For every parameter, a kernel is contracted from what operations read (X) and from the
    derivatives of the outputs by what they gave (G), which one batched reverse pass over the O
    outputs gives for all samples and parameters: its Jacobian is not formed. Memory, in numbers:
    the kernel three times over, the factors ``N C (X + G)`` for a chunk of C outputs, and at most
    16.8 million of intermediate arrays, for which samples are taken in tiles. The kernel can be
    differentiated; in PyTorch where a parameter or an input requires a gradient. Where f ends in a
    linear map W from d features to O > d outputs, the kernel is ``W K' W^H`` with K' that of the
    features, from d cotangents, and what the map's own parameters add.

    Where several processes hold samples, ``kernel(f, params, own, all)`` gives each its rows of the
    kernel, and no process waits for another; `ntk` with a `layout` needs no other's samples.

    References
    ----------
    Novak, Sohl-Dickstein, Schoenholz (2022), "Fast Finite Width Neural Tangent Kernel",
    arXiv:2206.08720.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> from tracekit_ntk.kernel import kernel
    >>> x, w = torch.ones(5, 3), torch.ones(3, 2)
    >>> K = kernel(lambda w, x: x @ w, w, x)
    >>> K.shape, float(K[0, 1, 0, 0]), float(K[0, 1, 0, 1])
    (torch.Size([5, 5, 2, 2]), 3.0, 0.0)
    >>> kernel(lambda w, x: x @ w, w, x, trace_axes=1).shape
    torch.Size([5, 5])
    """
    if not callable(implementation):
        raise TypeError(
            f"`implementation` must be a function, got {implementation!r}; pass "
            "structured_derivatives, jacobian_contraction or ntk_vector_products"
        )
    if cotangent is None:
        prepared = (_as_one if whole else implementation)(f, params, x1, x2)
    else:
        if whole or implementation is not structured_derivatives:
            raise ValueError(
                "`cotangent` goes with samples of their own and structured derivatives only; leave "
                "out whole and implementation, or combine the outputs inside f"
            )
        prepared = combined(f, params, x1, x2, cotangent)
    axes, summed = asked_axes(prepared.output_shape, trace_axes, diagonal_axes, x2)
    return unfolded(prepared.kernel(axes, chunk_size), axes, summed)


def kernel_matrix(K: Array) -> Array:
    """A kernel between samples and outputs as one matrix, in the layout of the flat outputs.

    Parameters
    ----------
    K : (N1, N2, ..., ...) array
        What `kernel` gives: samples, then the axes of the outputs, twice.

    Returns
    -------
    (N1 O, N2 O) array
        ``J1 @ J2.H`` for outputs flattened in C order, samples first: symmetric (Hermitian) and
        positive semidefinite for one batch. `ntk` is the operator of the same matrix.

    Raises
    ------
    ValueError
        If the axes of the outputs are not there twice.

    Examples
    --------
    >>> import torch
    >>> from tracekit_ntk.kernel import kernel, kernel_matrix
    >>> x, w = torch.ones(5, 3), torch.ones(3, 2)
    >>> kernel_matrix(kernel(lambda w, x: x @ w, w, x)).shape
    torch.Size([10, 10])
    """
    xp = namespace(K)
    N1, N2, *axes = K.shape
    half = len(axes) // 2
    if len(axes) % 2 or axes[:half] != axes[half:]:
        raise ValueError(
            f"a kernel of shape {tuple(K.shape)} has no matrix: after two axes of samples it needs "
            "the axes of the outputs twice; compute it without diagonal_axes"
        )
    order = (0, *range(2, 2 + half), 1, *range(2 + half, 2 + 2 * half))
    M = prod(axes[:half])
    return xp.reshape(xp.permute_dims(K, order), (N1 * M, N2 * M))


def _as_one(f: Callable[[Any, Any], Any], params: Any, x1: Any, x2: Any) -> Prepared:
    """Of functions that couple samples: the kernel of all outputs, of which axes are taken."""
    first = capture(f, params, x1, whole=True)
    second = first if x2 is None else capture(f, params, x2, whole=True)
    (N1, *shape), (N2, *_) = first.output_shape, second.output_shape

    def kernel(axes: OutputAxes, chunk_size: int | None) -> Array:
        if second is first:
            every = OutputAxes(first.output_shape, (), (), tuple(range(len(first.output_shape))))
            if (head := first.head) is not None:
                K = kernel_of_head(head, head, every, chunk_size, params)
            else:
                K = in_chunks(first, first, every, chunk_of(first, chunk_size, BYTES_KEPT), params)
        else:
            K = gram(first.uses(0, first.outputs), second.uses(0, second.outputs), Form())
            K = zeros(params, (first.outputs, second.outputs)) if K is None else K
        xp, M = namespace(K), prod(shape)
        K = xp.permute_dims(xp.reshape(K, (N1, M, N2, M)), (0, 2, 1, 3))
        return reduced(K, axes)

    return Prepared(tuple(shape), kernel)


for _name in __all__:  # the package hands on the function under the name of this module
    setattr(kernel, _name, globals()[_name])
