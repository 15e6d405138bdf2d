"""Roots of the Hessian of a loss by the outputs of each sample, and networks seen through them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Protocol

from tracekit._arrays import Array, is_array, is_complex, namespace

from .._factors import NUMBERS_AT_ONCE, Head, Seen, Use, pad, spans
from ..factors import Capture
from ..losses import Loss


class RowRoots(Protocol):
    """A root S (O, R) for each row of outputs; `losses.HessianRoot` is one."""

    @property
    def count(self) -> int:
        """R."""

    @property
    def squares(self) -> Array:
        """Squared Frobenius norms, (rows,)."""

    def take(self, rows: slice) -> RowRoots:
        """Those of some rows."""

    def columns(self, start: int, stop: int) -> Array:
        """Columns of every root, (rows, O, stop - start)."""

    def product(self, V: Array) -> Array:
        """``S V``, (rows, R, k) to (rows, O, k)."""

    def adjoint_product(self, U: Array) -> Array:
        """``S^T U``, (rows, O, k) to (rows, R, k)."""


@dataclass(frozen=True, eq=False)
class DenseRoots:
    """Roots that are there as an array (rows, O, R)."""

    S: Array

    @property
    def count(self) -> int:
        """R."""
        return int(self.S.shape[2])

    @property
    def squares(self) -> Array:
        """Squared Frobenius norms, (rows,)."""
        return namespace(self.S).sum(self.S * self.S, axis=(1, 2))

    def take(self, rows: slice) -> DenseRoots:
        """Those of some rows."""
        return DenseRoots(self.S[rows, :, :])

    def columns(self, start: int, stop: int) -> Array:
        """Columns of every root, (rows, O, stop - start)."""
        return self.S[:, :, start:stop]

    def product(self, V: Array) -> Array:
        """``S V``, (rows, R, k) to (rows, O, k)."""
        return namespace(self.S).matmul(self.S, V)

    def adjoint_product(self, U: Array) -> Array:
        """``S^T U``, (rows, O, k) to (rows, R, k)."""
        xp = namespace(self.S)
        return xp.matmul(xp.matrix_transpose(self.S), U)


@dataclass(frozen=True, eq=False)
class SampleRoots:
    """A root for each sample: block-diagonal, a block for each of its rows of outputs."""

    rows: RowRoots
    samples: int
    positions: int  # rows of outputs that a sample has
    width: int  # outputs of each row

    @property
    def outputs(self) -> int:
        """Of each sample."""
        return self.positions * self.width

    @property
    def count(self) -> int:
        """Columns of each sample's root."""
        return self.positions * self.rows.count

    def columns(self, start: int, stop: int) -> Array:
        """Columns of every sample's root, (N, outputs, stop - start)."""
        R, parts = self.rows.count, []
        for t in range(start // R, -(-stop // R)):
            low, high = max(start - t * R, 0), min(stop - t * R, R)
            block = self.rows.take(slice(t, None, self.positions)).columns(low, high)
            parts.append(pad(block, t * self.width, self.outputs, axis=1))
        return namespace(parts[0]).concat(parts, axis=2)

    def product(self, V: Array) -> Array:
        """``S V`` of all samples, (N R, k) to (N outputs, k)."""
        return self._by_rows(self.rows.product, self.rows.count, V)

    def adjoint_product(self, U: Array) -> Array:
        """``S^T U`` of all samples, (N outputs, k) to (N R, k)."""
        return self._by_rows(self.rows.adjoint_product, self.width, U)

    def _by_rows(self, product: Any, size: int, V: Array) -> Array:
        xp = namespace(V)
        blocks = xp.reshape(V, (self.samples * self.positions, size, V.shape[1]))
        return xp.reshape(product(blocks), (-1, V.shape[1]))


class Weighted:
    """The capture of ``S^T f(x)``, S held fixed: the trace of its kernel is that of the GGN."""

    head = None

    def __init__(self, found: Capture, roots: SampleRoots) -> None:
        self.network, self._roots = found, roots
        self.samples, self.numbers, self.sizes = found.samples, found.numbers, found.sizes
        self.bytes_at_once, self.outputs = found.bytes_at_once, roots.count
        self.output_shape: tuple[int, ...] = (roots.count,)

    @cached_property
    def seen(self) -> Seen | None:
        """What the trace needs of the roots where the network ends in a wide head, if it does."""
        head, roots = self.network.head, self._roots
        if head is None or roots.rows.count <= head.width:
            return None
        same = (roots.positions, roots.width) == (head.features.shape[1], head.outputs)
        return seen_by(head, roots.rows) if same else None

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Every read of the network."""
        return self.network.report

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """All uses of every parameter, for columns start to stop: here cotangents meet factors."""
        return self.network.combined(self._roots.columns(start, stop))

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The same for combinations of columns, V (N, R, k)."""
        xp, k = namespace(V), V.shape[2]
        U = self._roots.product(xp.reshape(V, (-1, k)))
        return self.network.combined(xp.reshape(U, (self.samples, -1, k)))


def roots_of(loss: Any, outputs: Array, samples: int) -> SampleRoots:
    """Roots of the Hessian of a loss by all outputs (N, ..., O), or (N,)."""
    _refuse_complex(outputs)
    width = outputs.shape[-1] if outputs.ndim > 1 else 1
    rows = namespace(outputs).reshape(outputs, (-1, width))
    if isinstance(loss, Loss):
        roots: RowRoots = loss.root(rows)
    else:
        _must_have(loss, "hessian_root", "hessian_root(outputs), (N, O) to (N, O, R)")
        S = loss.hessian_root(rows)
        if not is_array(S) or S.ndim != 3 or S.shape[:2] != rows.shape or is_complex(S):
            raise ValueError(
                f"`loss.hessian_root` must give a real array of shape {(*rows.shape, 'R')}, "
                f"got {_told(S)}; give each row of outputs an S with S S^T its Hessian"
            )
        roots = DenseRoots(S)
    return SampleRoots(roots, samples, rows.shape[0] // samples, width)


def seen_by(head: Head, roots: RowRoots) -> Seen:
    """A head's outputs seen through a root for each row of them, some rows at a time."""
    W, (N, S, d) = head.weight, head.features.shape
    xp, (O, _) = namespace(W), W.shape  # noqa: E741
    tied = head.own is not None and bool(head.one.get(head.own.name))
    grams, products = [], []
    for low, high in spans(N * S, max(1, NUMBERS_AT_ONCE // (O * d))):
        some = roots.take(slice(low, high))
        seen = some.adjoint_product(xp.broadcast_to(W, (high - low, O, d)))  # S^T W
        grams.append(xp.matmul(xp.matrix_transpose(seen), seen))
        products += [some.product(seen)] if tied else []
    shapes = (N, S, d, d), (N, S, O, d)
    gram, *rest = (
        xp.reshape(xp.concat(parts, axis=0), shape)
        for parts, shape in zip((grams, products), shapes, strict=True)
        if parts
    )
    return Seen(gram, xp.reshape(roots.squares, (N, S)), *rest)


def label_roots(loss: Any, y: Any, outputs: Array, samples: int) -> SampleRoots:
    """Roots of one column, the gradient of each sample's loss at its labels."""
    _refuse_complex(outputs)
    _must_have(loss, "gradient", "gradient(outputs, y), of the outputs' shape")
    G = loss.gradient(outputs, y)
    if not is_array(G) or G.shape != outputs.shape or is_complex(G):
        raise ValueError(
            f"`loss.gradient` must give a real array of the outputs' shape {tuple(outputs.shape)}, "
            f"got {_told(G)}; give the gradient of the loss by each output"
        )
    width = prod(outputs.shape) // samples
    return SampleRoots(DenseRoots(namespace(G).reshape(G, (samples, width, 1))), samples, 1, width)


def _refuse_complex(outputs: Array) -> None:
    if is_complex(outputs):
        raise TypeError(
            f"f must give real outputs, got {outputs.dtype}; give their real and imaginary parts"
        )


def _must_have(loss: Any, name: str, what: str) -> None:
    if not callable(getattr(loss, name, None)):
        raise TypeError(
            f"`loss` must have a method {what}, got a {type(loss).__name__}; pass a record of "
            "tracekit_ntk.losses, or an object with that method"
        )


def _told(found: Any) -> str:
    if not is_array(found):
        return f"a {type(found).__name__}"
    return f"{found.dtype} of shape {tuple(found.shape)}"
