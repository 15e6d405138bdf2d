"""Three ways to compute a kernel, to choose from as `implementation` of `kernel`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

from tracekit._arrays import Array, conj, namespace

from .._backend import capture, with_inputs
from .._derivatives import chunk, itemsize
from .._factors import Form, gram, permuted, spans
from ..factors import Capture
from .chunks import in_chunks
from .cotangents import cotangent_columns, of_each
from .head import kernel_of_head
from .output_axes import (
    BYTES_KEPT,
    GRADIENTS_KEPT,
    OutputAxes,
    Prepared,
    chunk_of,
    reduced,
    zeros,
)


def structured_derivatives(
    f: Callable[[Any, Any], Any], params: Any, x1: Any, x2: Any = None
) -> Prepared:
    """A kernel from factors, for each parameter in the order of contraction of least work.

    Parameters
    ----------
    f : callable
        As `kernel` got it; it calls this function.
    params : tree of arrays
        As `kernel` got it.
    x1, x2 : array or tree of arrays
        Samples; `x2` is None for those of x1.

    Returns
    -------
    record
        ``output_shape``, of one sample, and ``kernel(axes, chunk_size)``, an array (N1, N2, D, R,
        R): D outputs of which only equal ones meet, R that are crossed; others are summed over.

    References
    ----------
    Novak, Sohl-Dickstein, Schoenholz (2022), arXiv:2206.08720, section 3.4; here Jacobian
    contraction and NTK-vector products are two of the orders.
    """
    first = capture(f, params, x1, alone=x2 is not None)
    second = first if x2 is None else capture(f, params, x2, alone=True)

    def kernel(axes: OutputAxes, chunk_size: int | None) -> Array:
        return _from_factors(f, params, (x1, x2), (first, second), axes, chunk_size)

    return Prepared(first.output_shape, kernel)


def combined(
    f: Callable[[Any, Any], Any], params: Any, x1: Any, x2: Any, cotangent: Any
) -> Prepared:
    """The kernel of one combination of each sample's outputs, in the place of all outputs."""
    first = capture(f, params, x1, alone=x2 is not None)
    second = first if x2 is None else capture(f, params, x2, alone=True)
    c1, c2 = of_each(cotangent, x2, len(first.output_shape))
    a = first.combined(cotangent_columns(first, params, c1))
    b = a if x2 is None else second.combined(cotangent_columns(second, params, c2))

    def kernel(axes: OutputAxes, chunk_size: int | None) -> Array:
        K = gram(a, b, Form(paired=axes.paired))
        shape = (first.samples, 1 if axes.paired else second.samples, 1, 1, 1)
        return zeros(params, shape) if K is None else K

    return Prepared((), kernel)


def _from_factors(
    f: Callable[[Any, Any], Any],
    params: Any,
    samples: tuple[Any, Any],
    captures: tuple[Capture, Capture],
    axes: OutputAxes,
    chunk_size: int | None,
) -> Array:
    """The kernel of two captures, at once where all outputs fit, else in chunks of them."""
    (x1, x2), (first, second), (D, T, R) = samples, captures, axes.sizes
    if (head := first.head) is not None and (other := second.head) is not None:
        return kernel_of_head(head, other, axes, chunk_size, params)
    chunk = chunk_of(first, chunk_size, BYTES_KEPT)
    if chunk >= first.outputs:
        a = permuted(first.uses(0, first.outputs), axes.shape, axes.axes)
        b = a if second is first else permuted(
            second.uses(0, second.outputs), axes.shape, axes.axes)  # fmt: skip
        K = gram(a, b, Form(D, T, axes.paired))
        shape = (first.samples, 1 if axes.paired else second.samples, D, R, R)
        return zeros(params, shape) if K is None else K
    if list(axes.axes) != sorted(axes.axes):
        f = _reordered(f, axes)
        first = capture(f, params, x1)
        second = first if x2 is None else capture(f, params, x2)
    return in_chunks(first, second, axes, chunk, params)


def jacobian_contraction(
    f: Callable[[Any, Any], Any], params: Any, x1: Any, x2: Any = None
) -> Prepared:
    """A kernel as the product of two explicit Jacobians, parameter by parameter.

    Parameters
    ----------
    f : callable
        As `kernel` got it; it calls this function.
    params : tree of arrays
        As `kernel` got it.
    x1, x2 : array or tree of arrays
        Samples; `x2` is None for those of x1.

    Returns
    -------
    record
        ``output_shape``, of one sample, and ``kernel(axes, chunk_size)``, an array (N1, N2, D, R,
        R): D outputs of which only equal ones meet, R that are crossed; others are summed over.

    Notes
    -----
    Gradients are N C P numbers for a chunk of C outputs, on each side of a block; C is all outputs
    up to 4 GB. In JAX XLA holds those by one parameter at a time.

    References
    ----------
    Novak, Sohl-Dickstein, Schoenholz (2022), arXiv:2206.08720, section 3.2.
    """
    return _of_all_outputs(f, params, x1, x2, _by_contraction)


def _by_contraction(own1: Any, own2: Any, eye: Array, chunk_size: int | None) -> Array:
    """All of the kernel (N1, N2, O, O), from Jacobians."""
    xp, shape = namespace(own1.output), tuple(own1.output.shape[1:])
    N1, N2 = own1.output.shape[0], own2.output.shape[0]
    a, b = own1.part(slice(0, N1)), own2.part(slice(0, N2))
    numbers = max(N1, N2) * own1.parameters
    step = chunk(chunk_size, numbers, itemsize(own1.dtype, xp), GRADIENTS_KEPT)
    cuts = [slice(*span) for span in spans(prod(shape), step)]
    blocks: dict[tuple[int, int], Array] = {}
    for (i, s), (j, t) in product(enumerate(cuts), repeat=2):
        if own2 is own1 and j < i:
            blocks[i, j] = conj(xp.permute_dims(blocks[j, i], (2, 3, 0, 1)))
        else:
            other = None if own2 is own1 and i == j else b
            blocks[i, j] = own1.contraction(a, other, eye[:, s], eye[:, t])
    count = range(len(cuts))
    K = xp.concat([xp.concat([blocks[i, j] for j in count], axis=3) for i in count], axis=1)
    return xp.permute_dims(K, (0, 2, 1, 3))


def ntk_vector_products(
    f: Callable[[Any, Any], Any], params: Any, x1: Any, x2: Any = None
) -> Prepared:
    """A kernel column by column: one reverse and one forward pass for each.

    Parameters
    ----------
    f : callable
        As `kernel` got it; it calls this function.
    params : tree of arrays
        As `kernel` got it.
    x1, x2 : array or tree of arrays
        Samples; `x2` is None for those of x1.

    Returns
    -------
    record
        ``output_shape``, of one sample, and ``kernel(axes, chunk_size)``, an array (N1, N2, D, R,
        R): D outputs of which only equal ones meet, R that are crossed; others are summed over.

    Notes
    -----
    Gradients are P numbers for each of C outputs of a sample of `x2`, of as many at once as fit in
    256 MB if C is not given. In JAX XLA holds those by one parameter at a time.

    References
    ----------
    Novak, Sohl-Dickstein, Schoenholz (2022), arXiv:2206.08720, section 3.3.
    """
    return _of_all_outputs(f, params, x1, x2, _by_columns)


def _by_columns(own1: Any, own2: Any, eye: Array, chunk_size: int | None) -> Array:
    """All of the kernel (N1, N2, O, O), column by column."""
    xp, shape = namespace(own1.output), tuple(own1.output.shape[1:])
    N1, N2 = own1.output.shape[0], own2.output.shape[0]
    numbers, size = own1.parameters, itemsize(own1.dtype, xp)
    step = min(prod(shape), chunk(chunk_size, numbers, size))
    cuts = spans(prod(shape), step), spans(N2, chunk(None, step * numbers, size))
    outputs, samples = ([slice(*span) for span in some] for some in cuts)
    a = own1.part(slice(0, N1))
    columns = [
        xp.concat([own1.kernel_columns(a, own2.part(s), eye[:, o]) for o in outputs], axis=3)
        for s in samples
    ]
    return xp.permute_dims(xp.concat(columns, axis=2), (0, 2, 1, 3))


def _of_all_outputs(
    f: Callable[[Any, Any], Any], params: Any, x1: Any, x2: Any, whole: Callable[..., Array]
) -> Prepared:
    """An implementation that computes all of the kernel, of which axes are taken."""
    own = with_inputs(params, x1).per_sample(f, params, x1)
    xp, shape = namespace(own.output), tuple(own.output.shape[1:])
    eye = xp.eye(prod(shape), dtype=own.dtype, device=own.device)
    other = own if x2 is None else with_inputs(params, x2).per_sample(f, params, x2)

    def kernel(axes: OutputAxes, chunk_size: int | None) -> Array:
        return reduced(whole(own, other, eye, chunk_size), axes)

    return Prepared(shape, kernel)


def _reordered(f: Callable[[Any, Any], Any], axes: OutputAxes) -> Callable[[Any, Any], Any]:
    def turned(params: Any, x: Any) -> Any:
        y = f(params, x)
        return namespace(y).permute_dims(y, (0, *(1 + a for a in axes.axes)))

    return turned
