"""The traces of all samples' own Jacobians, from products with their block-diagonal operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import tracekit as tk
from tracekit._arrays import Array, device_of, floating, namespace

from .._backend import adapter
from .._derivatives import Backend, KnownQuantity, chunk, itemsize
from . import checks
from .derivative import Derivative
from .probes import for_samples

BYTES_AT_ONCE = 2**20  # of directions, whose passes stay in caches: more were twice as slow


def backend_of(x: Any) -> Backend:
    """The library that differentiates by the samples, after a refusal of what are none."""
    checks.batch(x)
    try:
        return adapter(x)
    except TypeError as error:
        raise TypeError(
            f"`x` is a {type(x).__name__}, which no library here differentiates by; pass an array "
            "of PyTorch or JAX"
        ) from error


class Looks(NamedTuple):
    """When a run ends before its budget, what is shown of it, and what it is written to."""

    rtol: float = 0.0
    atol: float = 0.0
    entrywise: bool = False
    callback: Any = None
    checkpoint: Any = None


def traces(
    backend: Backend,
    derivative: Derivative,
    shape: tuple[int, ...],
    num_matvecs: int | None,
    rng: Any,
    probes: Any,
    looks: Looks,
    chunk_size: int | None,
    method: str,
) -> tk.Estimate:
    """The trace of the derivative in every sample, exactly or by probes of its own."""
    y = derivative.output
    xp, N, D, where = namespace(y), shape[0], math.prod(shape[1:]), device_of(y)
    dtype = floating(y.dtype, xp)
    columns = chunk(chunk_size, N * D, itemsize(dtype, xp), BYTES_AT_ONCE)
    parts = -(-D // columns)  # of the basis
    at_once = -(-D // parts)

    def rows(T: Array) -> Array:  # (k, N D)
        k = T.shape[0]
        made = xp.reshape(derivative.rows(xp.reshape(T, (k, *shape))), (k, N * D))
        return xp.astype(made, dtype, copy=False)

    def product(X: Array) -> Array:
        return xp.matrix_transpose(backend.in_turn(rows, xp.matrix_transpose(X), columns))

    def entries(part: Any) -> Array:
        """Those of the diagonal for one part of the basis, (N, D), and zeros."""
        numbers = part * at_once + xp.arange(at_once, device=where)
        E = xp.astype(xp.arange(D, device=where)[None, :] == numbers[:, None], dtype)[:, None, :]
        T = xp.reshape(xp.broadcast_to(E, (at_once, N, D)), (at_once, N * D))
        return xp.sum(xp.reshape(rows(T), (at_once, N, D)) * E, axis=0)

    def diagonal() -> Array:
        return xp.reshape(backend.add_up(entries, parts), (N * D,))

    A = tk.LinearOperator(
        (N * D, N * D), product, dtype=dtype, xp=xp, device=where,
        exact={"diagonal": KnownQuantity(diagonal, D)},
    )  # fmt: skip
    own = for_samples(probes, N)

    def named(found: tk.Estimate) -> tk.Estimate:  # of an operator that nobody else has
        return replace(found, method=method, paused=None)

    looks = looks._replace(callback=_of(looks.callback, named))
    try:
        found = tk.block_traces(A, (N, D), 1, num_matvecs, rng=rng, probes=own, **looks._asdict())
    except BaseException as error:
        if isinstance(paid := getattr(error, "estimate", None), tk.Estimate):
            error.estimate = named(paid)  # type: ignore[attr-defined]
        raise
    return named(found)


def _of(callback: Any, named: Callable[[tk.Estimate], tk.Estimate]) -> Any:
    """The callback, of estimates that have their name."""
    if not callable(callback):
        return callback

    def call(found: tk.Estimate) -> Any:
        return callback(named(found))

    call.close = getattr(callback, "close", None)  # type: ignore[attr-defined]
    return call
