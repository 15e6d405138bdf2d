"""The samples' own kernels as one block-diagonal operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from array_api_compat import array_namespace

import tracekit as tk

from ._adapter import adapter
from ._products import chunk, itemsize

Array = Any


def sample_ntk(
    f: Callable[[Any, Any], Any], params: Any, x: Any, *, chunk_size: int | None = None
) -> tk.LinearOperator:
    r"""The block-diagonal part of the kernel: every sample's own, by batched per-sample passes.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of `x` and of the output, each of which
        depends on its own input alone.
    params : tree of arrays
        As for `jacobian`.
    x : array, or tree of arrays with one sample axis
        Inputs of N samples, integers too.
    chunk_size : int, optional
        Per-sample gradients, of as many numbers as there are parameters, that are held at once; as
        many as fit in 256 MB if not given.

    Returns
    -------
    LinearOperator
        Positive semidefinite, of dimension N times O outputs, with `dims` the output's shape and
        `factor` the block-diagonal Jacobian. Its trace and diagonal are those of ``ntk``. Budgets
        are counted in batched passes: a quadratic form is one reverse-mode pass for all samples,
        and from O products on the trace and the diagonal are exact.

    Raises
    ------
    TypeError, ValueError
        As for `jacobian`; if the samples of x and of the output are not the same, and if outputs
        change when a sample is passed alone (BatchNorm in training mode, ...), by more than the
        square root of the rounding unit times the largest.

    Notes
    -----
    For the trace of the whole kernel its off-diagonal blocks are pure noise, which is absent here:
    with N samples the variance falls by about ``|K|_F^2 / sum_s |K_s|_F^2``. For probes that are
    orthogonal in every sample, pass ``probes=tracekit.probes.tiled(tracekit.probes.orthogonal,
    N)``. A column costs about the flops of one ordinary reverse-mode pass, and N times its memory
    for gradients, which `chunk_size` bounds. Samples that do mix have no kernels of their own.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, w = torch.eye(5), torch.ones(5, 2)
    >>> K = tkn.sample_ntk(lambda w, x: torch.tanh(x @ w), w, x)
    >>> estimate = tk.exact_trace(K)
    >>> round(float(estimate), 4), estimate.num_matvecs
    (1.7638, 2)
    """
    own = adapter(params).per_sample(f, params, x)
    xp, shape, P = array_namespace(own.output), tuple(own.output.shape), own.parameters
    N, outputs = shape[0], math.prod(shape[1:])
    size = chunk(chunk_size, P, itemsize(own.dtype, xp))
    at_once, columns = min(N, size), max(1, size // N)

    def pieces(k: int) -> Iterator[list[tuple[slice, slice]]]:
        for c in range(0, k, columns):
            columns_now = slice(c, min(c + columns, k))
            yield [(slice(s, min(s + at_once, N)), columns_now) for s in range(0, N, at_once)]

    def over_samples(product: Callable[[Any, Array], Array], rows: int, X: Array) -> Array:
        blocks = xp.reshape(X, (N, rows, X.shape[1]))
        done = [
            xp.concat([product(own.part(s), blocks[s, :, c]) for s, c in row], axis=0)
            for row in pieces(X.shape[1])
        ]
        return xp.concat(done, axis=-1)

    def flat(product: Callable[[Any, Array], Array], rows: int, X: Array) -> Array:
        return xp.reshape(over_samples(product, rows, X), (-1, X.shape[1]))

    def quad(X: Array) -> Array:
        return xp.sum(over_samples(own.squares, outputs, X), axis=0)

    def diagonal() -> Array:  # all samples' first outputs, then their second ones, ...
        E = xp.eye(outputs, dtype=own.dtype, device=own.device)
        squares = over_samples(own.squares, outputs, xp.tile(E, (N, 1)))
        return xp.reshape(squares, (-1,))

    exact = {"trace": lambda: xp.sum(diagonal()), "diagonal": diagonal}
    L = tk.LinearOperator(
        (N * outputs, N * P),
        partial(flat, own.pushforward, P),
        partial(flat, own.pullback, outputs),
        dtype=own.dtype,
        xp=xp,
        device=own.device,
    )
    product = partial(flat, own.kernel, outputs)
    return replace(
        tk.gram(L), matmat=product, rmatmat=product, quad=quad, dims=shape,
        exact={name: _Priced(known, outputs) for name, known in exact.items()},
    )  # fmt: skip


class _Priced:
    """What an operator's maker knows, and the products it costs."""

    def __init__(self, known: Callable[[], Array], num_matvecs: int) -> None:
        self.known, self.num_matvecs = known, num_matvecs

    def __call__(self) -> Array:
        return self.known()
