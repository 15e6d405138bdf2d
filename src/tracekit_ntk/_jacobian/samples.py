"""The samples' own kernels as one block-diagonal operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from array_api_compat import array_namespace

import tracekit as tk
from tracekit._arrays import Array

from .._backend import kept, with_inputs
from .._derivatives import KnownQuantity, chunk, itemsize
from .._factors import Form
from .._kernel import (
    captured,
    diagonal_of,
    fits,
    from_factors,
    kernel_cost,
    matrix_of_samples,
    norm_of,
    trace_of,
)
from ..factors import Capture


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
        Inputs of N samples, integers too; a copy is kept.
    chunk_size : int, optional
        Per-sample gradients, of as many numbers as there are parameters, that are held at once; as
        many as fit in 256 MB if not given.

    Returns
    -------
    LinearOperator
        Positive semidefinite, of dimension N times O outputs, with `dims` the output's shape and
        `factor` the block-diagonal Jacobian. Its trace and diagonal are those of ``ntk``. Budgets
        are counted in batched passes: a quadratic form is one reverse-mode pass for all samples,
        and from O products on the trace and the diagonal are exact, as for `ntk` norm and
        alignments.

    Raises
    ------
    TypeError, ValueError
        As for `jacobian`; if x holds no array, if the samples of x and of the output are not the
        same, and if outputs change when a sample is passed alone (BatchNorm in training mode, ...),
        by more than the square root of the rounding unit times the largest. In PyTorch that is the
        unit of the least precision met on the way, as in mixed precision. There gradients must not
        depend on the other samples either, for which f runs twice more, with a reverse pass each.

    Notes
    -----
    For the trace of the whole kernel its off-diagonal blocks are pure noise, which is absent here:
    with N samples the variance falls by about ``|K|_F^2 / sum_s |K_s|_F^2``. For probes that are
    orthogonal in every sample, pass ``probes=tracekit.probes.tiled(tracekit.probes.orthogonal,
    N)``. Squared lengths of gradients come from their factors, inputs and cotangents of operations,
    and no gradient is formed, where all that reads parameters is known (see `explain`): a column
    then costs less than an ordinary reverse-mode pass. Elsewhere, and in products, it costs the
    flops of one and N times its memory for gradients, which `chunk_size` bounds. In PyTorch samples
    go one by one where operations cannot be batched, or are wrong when they are. Samples that do
    mix have no kernels of their own.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, w = torch.eye(5), torch.ones(5, 2)
    >>> K = tkn.sample_ntk(lambda w, x: torch.tanh(x @ w), w, x)
    >>> estimate = tk.exact_trace(K)
    >>> round(float(estimate), 4), estimate.num_matvecs
    (1.7638, 2)
    """
    library, x = with_inputs(params, x), kept(params, x)
    own = library.per_sample(f, params, x)
    xp, shape, P = array_namespace(own.output), tuple(own.output.shape), own.parameters
    N, outputs = shape[0], math.prod(shape[1:])
    size = chunk(chunk_size, P, itemsize(own.dtype, xp))
    real = xp.abs(xp.zeros((), dtype=own.dtype)).dtype
    at_once, columns = min(N, size), max(1, size // N)
    found = captured(f, params, x)

    def over_samples(product: Callable[[Any, Array], Array], rows: int, X: Array) -> Array:
        blocks = xp.reshape(X, (N, rows, X.shape[1]))
        done = []
        for c in range(0, X.shape[1], columns):
            now = slice(c, min(c + columns, X.shape[1]))
            pieces = [slice(s, min(s + at_once, N)) for s in range(0, N, at_once)]
            done.append(xp.concat([product(own.part(s), blocks[s, :, now]) for s in pieces]))
        return xp.concat(done, axis=-1)

    def flat(product: Callable[[Any, Array], Array], rows: int, X: Array) -> Array:
        return xp.reshape(over_samples(product, rows, X), (-1, X.shape[1]))

    def squares(X: Array) -> Array:  # |J_s^H v|^2, (N, k)
        if found is None:
            return over_samples(own.squares, outputs, X)
        blocks = xp.reshape(X, (N, outputs, X.shape[1]))
        made = from_factors(found, blocks, None if chunk_size is None else columns)
        return xp.astype(made, real, copy=False)

    def diagonal() -> Array:
        if found is not None:
            return xp.reshape(diagonal_of(found, params, chunk_size), (-1,))
        E = xp.eye(outputs, dtype=own.dtype, device=own.device)
        return xp.reshape(squares(xp.tile(E, (N, 1))), (-1,))

    def trace() -> Array:
        return xp.sum(diagonal()) if found is None else trace_of(found, params, chunk_size)

    L = tk.LinearOperator(
        (N * outputs, N * P),
        partial(flat, own.pushforward, P),
        partial(flat, own.pullback, outputs),
        dtype=own.dtype,
        xp=xp,
        device=own.device,
    )
    product = partial(flat, own.kernel, outputs)
    name = "exact_trace" if found is None else "ntk_trace"
    exact = {
        "trace": KnownQuantity(trace, outputs, name),
        "diagonal": KnownQuantity(diagonal, outputs),
    }
    if found is not None:
        exact |= _crossed(found, params, chunk_size, L)
    return replace(
        tk.gram(L), matmat=product, rmatmat=product,
        quad=lambda X: xp.sum(squares(X), axis=0), dims=shape, exact=exact,
    )  # fmt: skip


def _crossed(
    found: Capture, params: Any, chunk_size: int | None, L: tk.LinearOperator
) -> dict[str, KnownQuantity]:
    """What is known of the kernels of all pairs of a sample's own outputs."""
    form = Form(paired=True)
    cost = cache(partial(kernel_cost, found, chunk_size, form))
    norm = partial(norm_of, [(found, found)], params, chunk_size, form=form)
    known = {"norm": KnownQuantity(norm, cost, "ntk_norm")}
    if fits(found, itemsize(L.dtype, L.xp)):
        matrix = partial(matrix_of_samples, found, params, chunk_size, L.dtype)
        known["matrix"] = KnownQuantity(matrix, cost, "kernel")
    return known
