"""The Hessian of a loss as an operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from array_api_compat import array_namespace

import tracekit as tk
from tracekit._arrays import Array, is_traced

from .._backend import adapter, with_inputs
from .._derivatives import Quadratic, checks, chunk, in_chunks, itemsize, refuse_spent


def hessian(
    loss: Callable[..., Any],
    params: Any,
    *,
    batches: Iterable[Any] | None = None,
    chunk_size: int | None = None,
) -> tk.LinearOperator:
    """The Hessian of a loss by parameters, as an operator.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a real number as an array without axes; the data are closed over. With
        `batches`, ``loss(params, batch)``, of which the sum over batches is meant: divide by their
        number for a mean. See `functional` for a torch.nn.Module.
    params : tree of arrays
        Real arrays of PyTorch or JAX, in dicts, lists, or whatever the library knows as a tree.
        What is not in the tree is held fixed.
    batches : iterable, optional
        Data that does not fit in memory, such as a DataLoader. It is gone through once now and
        once in every block product, in any order, but the sum of the losses has to be the same.
    chunk_size : int, optional
        Columns that go through the network at once; as many as 256 MB of derivatives of
        parameters and of all that the loss computes on its way allow if not given.

    Returns
    -------
    LinearOperator
        Hermitian, of the parameters flattened in the order of the tree and of C, in the dtype that
        they promote to, float32 at least, on their device.

    Raises
    ------
    TypeError
        If the loss is not one real number, or the parameters are complex or no arrays of one
        library.
    ValueError
        If the loss is NaN or infinite, or something else when it is run again (in PyTorch; dropout
        in training mode), or the batches cannot be gone through again or have changed.
    NotImplementedError
        If there is no reverse mode, or neither a second derivative nor gradients that are smooth.
        In PyTorch at the first product.

    Warns
    -----
    UserWarning
        If the loss does not depend on the parameters. If products are differences of gradients.

    See Also
    --------
    hessian_trace : Its trace, from less.

    Notes
    -----
    A column costs a forward-mode pass through the gradient, about two gradients; all columns of a
    chunk go together. Where the library has no forward mode for an operation, gradients are pulled
    back once more; where there is no second derivative at all, or a rule of the caller's own
    (torch.autograd.Function, jax.custom_vjp) gives another one than its gradients show, products
    are central differences of gradients, column by column, and a warning says how exact. Their
    step is ``eps ** (1 / 3) * (1 + |params|) / |column|``, eps the rounding unit of the least
    precise numbers on the way.

    In PyTorch the loss runs twice more when the operator is made; at the first product, two columns
    are taken by reverse mode of gradients too, and must agree. The parameters are copied. Products
    have the graph of parameters that require a gradient, in grad mode, and in JAX can be
    differentiated, but not where they are differences. Memory: for each column of a chunk, the
    parameters and the activations about twice.

    The second derivative of a piecewise linear activation is 0 where the library says so, at kinks
    too. A part that is detached (`jax.lax.stop_gradient`) is held fixed.

    References
    ----------
    Pearlmutter (1994), Neural Comput. 6, doi:10.1162/neco.1994.6.1.147.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, params = torch.ones(5, 3), {"w": torch.ones(3), "b": torch.zeros(())}
    >>> H = tkn.hessian(lambda p: ((x @ p["w"] + p["b"]) ** 2).sum() / 2, params)
    >>> H.shape, float(tk.exact_trace(H))
    ((4, 4), 20.0)
    """
    if not callable(loss):
        raise TypeError(f"loss is a {type(loss).__name__}; pass a function of the parameters")
    library = adapter(params)
    if batches is None:
        found = library.quadratic(loss, params)
        return as_operator(found, _blocks(found, chunk_size))

    def of(batch: Any, *known: Any) -> Quadratic:
        with_inputs(params, batch)
        return library.quadratic(lambda p: loss(p, batch), params, *known)

    return _over_batches(of, batches, chunk_size)


def as_operator(found: Quadratic, product: Callable[[Array], Array]) -> tk.LinearOperator:
    """A Hessian, or the sum of several of one structure, by its products."""
    P, xp = sum(found.sizes), array_namespace(found.value)
    return tk.LinearOperator(
        (P, P), product, product, dtype=found.dtype, xp=xp, device=found.device
    )


def _blocks(found: Quadratic, chunk_size: int | None) -> Callable[[Array], Array]:
    xp = array_namespace(found.value)
    size = chunk(chunk_size, found.numbers, itemsize(found.dtype, xp))
    return in_chunks(found.product, size, xp)


def _over_batches(
    of: Callable[..., Quadratic], batches: Iterable[Any], chunk_size: int | None
) -> tk.LinearOperator:
    """The sum of the Hessians of all batches, made anew for every block product."""
    refuse_spent(batches, "every product does")
    chunk(chunk_size, 1, 1)  # refused now, not at the first product
    first, losses = None, []
    for batch in batches:
        found = of(batch) if first is None else of(batch, first.known)
        first = first or found
        losses.append(_number(found.value))
    if first is None:
        raise ValueError(checks.NO_BATCHES)
    known, size = first.known, sum(map(abs, losses))
    xp = array_namespace(first.value)
    allowed = float(xp.finfo(first.value.dtype).eps) ** 0.5 * size

    def each_batch() -> Iterator[Quadratic]:
        seen = []
        for batch in batches:
            found = of(batch, known)
            seen.append(_number(found.value))
            yield found
        if len(seen) != len(losses) or abs(sum(seen) - sum(losses)) > allowed:
            raise ValueError(
                f"{len(seen)} batches gave a sum of losses of {sum(seen):.6g}, and "
                f"{len(losses)} of {sum(losses):.6g} when the Hessian was made; pass the same data "
                "each time, without random augmentation or dropout"
            )

    def product(X: Array) -> Array:
        total = None
        for found in each_batch():
            part = _blocks(found, chunk_size)(X)
            total = part if total is None else total + part
        return total

    return as_operator(first, product)


def _number(value: Array) -> float:
    return math.nan if is_traced(value) else float(value)
