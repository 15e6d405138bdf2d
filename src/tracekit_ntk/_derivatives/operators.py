"""Jacobians as operators: in chunks of columns, over batches of data, with products remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

from array_api_compat import array_namespace, device

import tracekit as tk
from tracekit._arrays import Array, Product, Rows, constant, is_traced

from . import checks
from .chunks import chunk, in_chunks, itemsize
from .linearised import Linearised, generic


def operator(lin: Linearised, chunk_size: int | None) -> tk.LinearOperator:
    """The derivative as an operator, whose products run in chunks of columns."""
    xp = array_namespace(lin.output)
    size = chunk(chunk_size, sum(lin.shape), itemsize(lin.dtype, xp))
    return tk.LinearOperator(
        lin.shape,
        in_chunks(lin.pushforward, size, xp),
        in_chunks(lin.pullback, size, xp),
        dtype=lin.dtype,
        xp=xp,
        device=lin.device,
    )


def gram_in_chunks(L: tk.LinearOperator, chunk_size: int | None) -> tk.LinearOperator:
    """``L @ L.H`` in chunks, of whose columns between the two factors no more are held at once."""
    K, size = tk.gram(L), chunk(chunk_size, sum(L.shape), itemsize(L.dtype, L.xp))
    product, quad = (in_chunks(each, size, L.xp) for each in (K.matmat, K.quad))  # type: ignore[arg-type]
    return replace(K, matmat=product, rmatmat=product, quad=quad)


def over_batches(
    linearise: Callable[..., Linearised], batches: Iterable[Any], chunk_size: int | None
) -> tk.LinearOperator:
    """The Jacobians of all batches, one above the other, made anew for every block product.

    Only one batch is linearised at a time. That the batches come again as they were is seen from a
    weighted sum of their outputs.
    """
    refuse_spent(batches, "every product does")
    chunk(chunk_size, 1, 1)  # refused now, not at the first product
    first, rows, checksums = None, [], []
    for batch in batches:
        lin = linearise(batch) if first is None else linearise(batch, first.known)
        if first is None:
            first = lin
            lin.check()
        rows.append(lin.shape[0])
        checksums.append(checksum(lin.output))
    if first is None:
        raise ValueError(checks.NO_BATCHES)
    xp, columns = array_namespace(first.output), first.shape[1]
    edges = [slice(*edge) for edge in pairwise(accumulate(rows, initial=0))]
    dtype, place, known = first.dtype, first.device, first.known
    del first, lin

    def each_batch() -> Iterator[tuple[slice, tk.LinearOperator]]:
        k = -1
        for k, batch in enumerate(batches):
            lin = linearise(batch, known)
            fits = k < len(rows) and lin.shape[0] == rows[k]
            if not fits or abs(checksum(lin.output) - checksums[k]) > 1e-3 * abs(checksums[k]):
                break
            yield edges[k], operator(lin, chunk_size)
        else:
            if k + 1 == len(rows):
                return
        raise ValueError(
            f"batch {k + 1} gave other outputs than when the Jacobian was made, so that its rows "
            "have changed; pass batches in a fixed order (shuffle=False), without random "
            "augmentation or dropout"
        )

    def pushforward(X: Array) -> Array:
        return xp.concat([J.matmat(X) for _, J in each_batch()], axis=0)

    def pullback(U: Array) -> Array:
        total = None
        for edge, J in each_batch():
            part = J.H.matmat(U[edge, :])
            total = part if total is None else total + part
        return total

    shape = sum(rows), columns
    return tk.LinearOperator(shape, pushforward, pullback, dtype=dtype, xp=xp, device=place)


def refuse_spent(batches: Iterable[Any], who: str) -> None:
    """Refuse what can be gone through only once."""
    if iter(batches) is batches:
        raise ValueError(
            f"batches, a {type(batches).__name__}, can be gone through only once, but {who}; "
            "pass a list, a DataLoader, or an object whose __iter__ starts anew"
        )


def checksum(y: Array) -> complex:
    """A number that changes with the order of the entries; none that is known under jax.jit."""
    if is_traced(y):
        return math.nan
    xp = array_namespace(y)
    flat = xp.reshape(constant(y), (-1,))
    size = flat.shape[0]
    return complex(xp.sum(flat * generic(size, xp, device(y))))


def over_processes(J: tk.LinearOperator, rows: Rows) -> tk.LinearOperator:
    """The Jacobians of all processes, one above the other, of this one's."""
    n, P = shape = rows.n, J.shape[1]

    def pushforward(X: Array) -> Array:
        return J.matmat(rows.spread(X, -2) if n == P else X)

    def pullback(U: Array) -> Array:
        total = rows.total(J.rmatmat(U))  # type: ignore[misc]
        return total[rows.start : rows.stop, :] if n == P else total

    # where there are as many parameters as outputs, all vectors of that length lie by rows
    matmat = rows.around(pushforward, "matmat", n, J.dtype)
    rmatmat = rows.around(pullback, "rmatmat", P, J.dtype)
    return tk.LinearOperator(
        shape, matmat, rmatmat, dtype=J.dtype, xp=J.xp, device=J.device, layout=rows
    )


def memoised(product: Product, xp: Any) -> Product:
    """The same product, which keeps the blocks it has been asked for, and what it gave.

    Once kept blocks have been asked for again, an unknown one starts anew: it is of another run.
    """
    kept: list[tuple[Array, Array]] = []
    again = False

    def run(X: Array) -> Array:
        nonlocal again
        if is_traced(X):
            return product(X)
        for asked, given in kept:
            if asked.shape == X.shape and bool(xp.all(asked == X)):
                again = True
                return given
        if again:
            kept.clear()
            again = False
        given = product(X)
        kept.append((X, given))
        return given

    return run


@dataclass(frozen=True, eq=False)
class KnownQuantity:
    """What is known of an operator in closed form, the products it costs, and how it is found."""

    known: Callable[[], Array]
    num_matvecs: int | Callable[[], int]
    method: str = "exact_trace"

    def __call__(self) -> Array:
        return self.known()
