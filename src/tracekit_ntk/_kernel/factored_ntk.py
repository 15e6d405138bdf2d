"""Neural tangent kernels as operators whose products are made of factors, not of passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import tracekit as tk
from tracekit._arrays import Array, adjoint, device_of, namespace

from .._backend import capture
from .._factors import Dense, Form, Lookup, Outer, Use, cotangent, gram, pad
from .output_axes import zeros


def factored_ntk(
    f: Callable[[Any, Any], Any], params: Any, x: Any, *, whole: bool = False
) -> tk.LinearOperator:
    """The empirical neural tangent kernel as an operator from factors, for many products.

    Parameters
    ----------
    f : callable
        As for `ntk_trace`.
    params : tree of arrays
        As for `ntk_trace`.
    x : array or tree of arrays
        The samples.
    whole : bool
        As for `ntk_trace`.

    Returns
    -------
    LinearOperator
        Positive semidefinite, (outputs, outputs), with `factor` the Jacobian, as `ntk` gives, and
        with `exact` its trace and diagonal, which cost no product.

    Notes
    -----
    The factors are made once, by one batched reverse pass over all outputs, and kept: ``N (X + O
    G)`` numbers. A product then costs ``2 N S w (d + O)`` multiply-adds for an operation with S
    positions, d inputs and w outputs: no pass through the network and none of its
    nonlinearities, and every product is a few large matrix products. Worth it from about O
    products on.

    Examples
    --------
    >>> import torch, tracekit as tk
    >>> from tracekit_ntk.kernel import factored_ntk
    >>> x, w = torch.ones(5, 3), torch.ones(3, 2)
    >>> K = factored_ntk(lambda w, x: x @ w, w, x)
    >>> K.shape, float(tk.exact_trace(K))
    ((10, 10), 30.0)
    """
    found = capture(f, params, x, whole=whole)
    leaf = zeros(params, ())
    xp = namespace(leaf)
    uses = found.uses(0, found.outputs)
    dtypes = [cotangent(u).dtype for some in uses.values() for u in some]
    dtype = xp.result_type(leaf.dtype, *dtypes)
    uses = {name: [_cast(u, dtype) for u in some] for name, some in uses.items()}
    N, M, P = found.samples, found.outputs, sum(found.sizes.values())
    edges = dict(
        zip(found.sizes, pairwise(accumulate(found.sizes.values(), initial=0)), strict=True)
    )

    def pushforward(X: Array) -> Array:
        X = xp.astype(X, dtype, copy=False)
        total = xp.zeros((N, M, X.shape[1]), dtype=X.dtype, device=device_of(X))
        for name, some in uses.items():
            low = edges[name][0]
            for u in some:
                total = total + _push(u, X[low + u.start : low + u.start + u.size, :])
        return xp.reshape(total, (N * M, -1))

    def pullback(U: Array) -> Array:
        U = xp.astype(U, dtype, copy=False)
        V = xp.reshape(U, (N, M, U.shape[1]))
        parts = []
        for name, (low, high) in edges.items():
            part = xp.zeros((high - low, U.shape[1]), dtype=U.dtype, device=device_of(U))
            for u in uses[name]:
                part = part + pad(_pull(u, V), u.start, high - low, axis=0)
            parts.append(part)
        return xp.concat(parts, axis=0)

    J = tk.LinearOperator(
        (N * M, P), pushforward, pullback, dtype=dtype, xp=xp, device=device_of(leaf)
    )

    def own(form: Form) -> Array:
        K = gram(uses, uses, form)
        return xp.reshape(zeros(params, (N, M // form.traced)) if K is None else K, (-1,))

    exact = {
        "trace": lambda: xp.sum(own(Form(1, M, paired=True))),
        "diagonal": lambda: own(Form(M, 1, paired=True)),
    }
    shape = found.output_shape if whole else (N, *found.output_shape)
    return replace(tk.gram(J), exact=exact, dims=shape)


def _cast(use: Use, dtype: Any) -> Use:
    """The same use in a dtype."""
    xp = namespace(cotangent(use))
    if isinstance(use, Dense):
        return Dense(xp.astype(use.J, dtype, copy=False), use.start)
    G = xp.astype(use.G, dtype, copy=False)
    if isinstance(use, Lookup):
        return replace(use, G=G)
    return Outer(xp.astype(use.X, dtype, copy=False), G, use.input_first, use.start)


def _pull(use: Use, V: Array) -> Array:
    """``J^H V``: (N, O, k) to (size, k)."""
    xp = namespace(V)
    N, M, k = V.shape
    if isinstance(use, Dense):
        J = xp.reshape(use.J, (N * M, use.size))
        return xp.matmul(adjoint(J), xp.reshape(V, (N * M, k)))
    G = use.G if isinstance(use, Outer) else use.G[:, :, None, :, :]
    _, _, g, S, w = G.shape
    GV = xp.matmul(adjoint(xp.reshape(G, (N, M, g * S * w))), V)  # N, (g S w), k
    GV = xp.reshape(
        xp.permute_dims(xp.reshape(GV, (N, g, S, w, k)), (1, 0, 2, 3, 4)), (g, N * S, w * k)
    )
    if isinstance(use, Lookup):
        return xp.reshape(xp.matmul(xp.matrix_transpose(_hot(use)), GV[0, ...]), (use.size, k))
    d = use.X.shape[3]
    X = xp.reshape(xp.permute_dims(use.X, (1, 0, 2, 3)), (g, N * S, d))
    P = xp.reshape(xp.matmul(adjoint(X), GV), (g, d, w, k))
    P = P if use.input_first else xp.permute_dims(P, (0, 2, 1, 3))
    return xp.reshape(P, (use.size, k))


def _push(use: Use, P: Array) -> Array:
    """``J P``: (size, k) to (N, O, k)."""
    xp = namespace(P)
    k = P.shape[1]
    if isinstance(use, Dense):
        N, M, size = use.J.shape
        return xp.reshape(xp.matmul(xp.reshape(use.J, (N * M, size)), P), (N, M, k))
    G = use.G if isinstance(use, Outer) else use.G[:, :, None, :, :]
    N, M, g, S, w = G.shape
    if isinstance(use, Lookup):
        Y = xp.matmul(_hot(use), xp.reshape(P, (use.rows, w * k)))[None, ...]
    else:
        d = use.X.shape[3]
        X = xp.reshape(xp.permute_dims(use.X, (1, 0, 2, 3)), (g, N * S, d))
        P = xp.reshape(P, (g, d, w, k) if use.input_first else (g, w, d, k))
        P = P if use.input_first else xp.permute_dims(P, (0, 2, 1, 3))
        Y = xp.matmul(X, xp.reshape(P, (g, d, w * k)))
    Y = xp.permute_dims(xp.reshape(Y, (g, N, S, w, k)), (1, 0, 2, 3, 4))
    return xp.matmul(xp.reshape(G, (N, M, g * S * w)), xp.reshape(Y, (N, g * S * w, k)))


def _hot(use: Lookup) -> Array:
    """Which position reads which row, (N S, rows)."""
    xp = namespace(use.ids, use.G)
    rows = xp.arange(use.rows, dtype=use.ids.dtype, device=device_of(use.ids))
    return xp.astype(xp.reshape(use.ids, (-1, 1)) == rows[None, :], use.G.dtype)
