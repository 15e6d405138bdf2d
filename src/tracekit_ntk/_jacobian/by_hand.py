"""Jacobians from products of your own, and the basis of differences of outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

import tracekit as tk
from tracekit._arrays import Array

from .._backend import adapter
from .._derivatives import (
    agreed,
    check_rows,
    chunk,
    cut,
    held_rows,
    in_chunks,
    itemsize,
    over_processes,
    sharers,
)


def jacobian_from_pair(
    pushforward: Callable[[Array], Array],
    pullback: Callable[[Array], Array],
    shape: tuple[int, int],
    *,
    dtype: Any = None,
    xp: Any = None,
    device: Any = None,
    chunk_size: int | None = None,
    layout: Any = None,
) -> tk.LinearOperator:
    """The Jacobian of a network in a library that does not differentiate: two products by hand.

    Parameters
    ----------
    pushforward : callable
        ``X -> J @ X`` for a block of columns: (parameters, k) to (outputs, k).
    pullback : callable
        ``U -> J.H @ U``: (outputs, k) to (parameters, k).
    shape : tuple of int
        (outputs, parameters).
    dtype, xp, device : optional
        Of the arrays that they take and give, as for `tracekit.LinearOperator`.
    chunk_size : int, optional
        Columns handed to them at once; as many as 256 MB of parameters and outputs allow if not
        given.
    layout : optional
        As for `jacobian`: `shape` and both products are then those of the samples of this process,
        and what `pullback` gives is summed over processes.

    Returns
    -------
    LinearOperator
        Of that shape, or with the outputs of all processes. `tracekit.testing.adjoint_test` tells
        whether the pair is one.

    Examples
    --------
    >>> import numpy as np, tracekit as tk, tracekit_ntk as tkn
    >>> x = np.ones((5, 3))  # a linear layer of one output: J = x
    >>> J = tkn.jacobian_from_pair(lambda T: x @ T, lambda U: x.T @ U, (5, 3))
    >>> float(tk.exact_trace(J @ J.H))
    15.0
    """
    for name, product in (("pushforward", pushforward), ("pullback", pullback)):
        if not callable(product):
            raise TypeError(
                f"{name} is a {type(product).__name__}; pass a function of a block of columns"
            )
    place = {"xp": xp} if xp is not None else {}
    J = tk.LinearOperator(shape, pushforward, pullback, dtype=dtype, device=device, **place)
    size = chunk(chunk_size, sum(J.shape), itemsize(J.dtype, J.xp))
    products = (in_chunks(product, size, J.xp) for product in (pushforward, pullback))
    J = tk.LinearOperator(J.shape, *products, dtype=J.dtype, xp=J.xp, device=J.device)
    if layout is None:
        return J
    processes = sharers(layout, J.xp, J.device)
    _, told = agreed(processes, lambda: check_rows(layout, J.shape[0]), lambda _: J.shape[:1])
    processes.agree([J.shape[1]], "Jacobians have {} parameters")
    return over_processes(J, held_rows(processes, layout, told[:, 0].astype(int).tolist()))


def difference_basis(
    f: Callable[[Any], Any],
    params: Any,
    k: int,
    *,
    rng: Any = None,
    step: float | None = None,
) -> Array:
    """A basis for ``one_sided(jacobian(f, params), ..., basis=...)`` from differences of f.

    Parameters
    ----------
    f : callable
        As for `jacobian`.
    params : tree of arrays
        As for `jacobian`.
    k : int
        Directions; ``k + 1`` evaluations of f, and no differentiation.
    rng : None, int, or generator, optional
        Of the directions.
    step : float, optional
        As for `tracekit.difference_basis`.

    Returns
    -------
    array of shape (outputs, k)
        Orthonormal columns close to the range of the Jacobian. An inexact difference costs
        accuracy, never unbiasedness: for networks whose operations have no forward mode.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, w = torch.ones(5, 3), torch.ones(3, 2)
    >>> Q = tkn.difference_basis(lambda w: x @ w, w, 2, rng=0)
    >>> round(float(tk.one_sided(tkn.jacobian(lambda w: x @ w, w), 6, rng=0, basis=Q)), 3)
    30.0
    """
    library = adapter(params)
    values = [library.detached(leaf) for _, leaf in library.leaves(params)]
    xp = array_namespace(*values)
    sizes = [math.prod(leaf.shape) for leaf in values]

    def outputs(theta: Array) -> Array:
        parts = [part[0, ...] for part in cut(theta[None, :], sizes, values, xp)]
        return xp.reshape(f(library.unflatten(params, parts)), (-1,))

    theta = xp.concat([xp.reshape(leaf, (-1,)) for leaf in values])
    return tk.difference_basis(outputs, theta, k, rng=rng, step=step)
