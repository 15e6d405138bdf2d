"""Derivatives of every state by the one before it: formed, or by passes through the cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import tracekit as tk
from tracekit._arrays import Array, adjoint, namespace

from .._derivatives import Backend, itemsize, operator
from .._factors import dense, spans
from .._kernel import chunk_of
from .arguments import Step, check_holomorphic

BYTES_FORMED = 2**28  # of the derivatives of all states, if they are to be formed


class Transitions(Protocol):
    """The derivatives A_t (B, U, U) of states by the ones before; the first one is that by h0."""

    def at(self, t: int, Y: Array) -> Array:
        """``A_t Y``, Y (B, U, k)."""

    def at_adjoint(self, t: int, Y: Array) -> Array:
        """``A_t^H Y``."""

    def forward(self, V: Array) -> Array:
        """``y_t = v_t + A_t y_{t-1}``, V (B, T, U, k)."""

    def backward(self, V: Array) -> Array:
        """``c_t = v_t + A_{t+1}^H c_{t+1}``."""


class Formed:
    """All derivatives as one array, (T, B, U, U): a step's lie beside each other in memory."""

    def __init__(self, A: Array, library: Backend) -> None:
        self.A, self._library = A, library

    def at(self, t: int, Y: Array) -> Array:
        """See `Transitions`."""
        return namespace(Y).matmul(self.A[t, :, :, :], Y)

    def at_adjoint(self, t: int, Y: Array) -> Array:
        """See `Transitions`."""
        return namespace(Y).matmul(adjoint(self.A[t, :, :, :]), Y)

    def forward(self, V: Array) -> Array:
        """See `Transitions`."""
        return self._library.propagate(self.A, V)

    def backward(self, V: Array) -> Array:
        """See `Transitions`; V may end before the last step."""
        return self._library.propagate_back(self.A[: V.shape[1], :, :, :], V)


class ByPasses:
    """Each derivative by passes through the cell, for all samples together."""

    def __init__(self, steps: Sequence[tk.LinearOperator]) -> None:
        self._steps = steps

    def at(self, t: int, Y: Array) -> Array:
        """See `Transitions`."""
        return _by_columns(self._steps[t], Y)

    def at_adjoint(self, t: int, Y: Array) -> Array:
        """See `Transitions`."""
        return _by_columns(self._steps[t].H, Y)

    def forward(self, V: Array) -> Array:
        """See `Transitions`."""
        Y = [V[:, 0, :, :]]
        for t in range(1, V.shape[1]):
            Y.append(V[:, t, :, :] + self.at(t, Y[-1]))
        return namespace(V).stack(Y, axis=1)

    def backward(self, V: Array) -> Array:
        """See `Transitions`."""
        C = [V[:, -1, :, :]]
        for t in range(V.shape[1] - 1, 0, -1):
            C.append(V[:, t - 1, :, :] + self.at_adjoint(t, C[-1]))
        return namespace(V).stack(C[::-1], axis=1)


def transitions(
    library: Backend, step: Step, params: Any, before: Array, inputs: Array, dtype: Any
) -> Transitions:
    """Those of states `before` every step, (B, T, U), formed where there is memory for it."""
    B, T, U = before.shape
    xp = namespace(before)
    if B * T * U * U * itemsize(dtype, xp) <= BYTES_FORMED:
        h, x = (xp.permute_dims(X, (1, 0, 2)) for X in (before, inputs))
        h, x = (xp.reshape(X, (T * B, X.shape[2])) for X in (h, x))
        J = xp.astype(_by_state(library, step, params, h, x), dtype, copy=False)
        return Formed(xp.reshape(J, (T, B, U, U)), library)

    def one(t: int) -> tk.LinearOperator:
        def of_state(h: Array) -> Array:
            return step(params, (h, inputs[:, t, :]))

        made = check_holomorphic(lambda: library.linearise(of_state, before[:, t, :]))
        return operator(made, None)

    return ByPasses([one(t) for t in range(T)])


def backward_differences(ways: Transitions, Y: Array) -> Array:
    """``y_t - A_t y_{t-1}``, what `Transitions.forward` makes Y of."""
    steps = [Y[:, t, :, :] - ways.at(t, Y[:, t - 1, :, :]) for t in range(1, Y.shape[1])]
    return namespace(Y).stack([Y[:, 0, :, :], *steps], axis=1)


def forward_differences(ways: Transitions, C: Array) -> Array:
    """``c_t - A_{t+1}^H c_{t+1}``, the adjoint of that."""
    last = C.shape[1] - 1
    steps = [C[:, t, :, :] - ways.at_adjoint(t + 1, C[:, t + 1, :, :]) for t in range(last)]
    return namespace(C).stack([*steps, C[:, last, :, :]], axis=1)


def by_initial_state(
    ways: Transitions, D: tk.LinearOperator, shape: tuple[int, int, int]
) -> tk.LinearOperator:
    """The derivatives of the first states by the initial ones, and of the others: zero."""
    (B, T, U), xp = shape, D.xp

    def pushforward(X: Array) -> Array:
        k = X.shape[1]
        first = ways.at(0, xp.reshape(xp.astype(X, D.dtype, copy=False), (B, U, k)))
        rest = xp.zeros((B, T - 1, U, k), dtype=D.dtype, device=D.device)
        return xp.reshape(xp.concat([first[:, None, :, :], rest], axis=1), (B * T * U, k))

    def pullback(V: Array) -> Array:
        V = xp.reshape(xp.astype(V, D.dtype, copy=False), (B, T, U, V.shape[1]))
        return xp.reshape(ways.at_adjoint(0, V[:, 0, :, :]), (B * U, V.shape[3]))

    return tk.LinearOperator(
        (B * T * U, B * U), pushforward, pullback, dtype=D.dtype, xp=xp, device=D.device
    )


def _by_state(library: Backend, step: Step, params: Any, h: Array, x: Array) -> Array:
    """Derivatives (N, U, U) of N states by those before: by a shift that all samples share."""
    xp, U = namespace(h), h.shape[1]

    def shifted(shift: Array, pair: tuple[Array, Array]) -> Array:
        return step(params, (pair[0] + shift, pair[1]))

    zero = xp.zeros_like(h[0, :])
    if xp.isdtype(h.dtype, "complex floating"):
        check_holomorphic(lambda: library.linearise(lambda s: shifted(s, (h, x)), zero))
    found = library.capture(shifted, zero, (h, x))
    [name] = found.sizes
    parts = []
    for low, high in spans(U, chunk_of(found, None)):
        uses = found.uses(low, high)[name]
        none = xp.zeros_like(h[:, None, :] * h[0, low:high, None])
        parts.append(dense(uses, U) if uses else none)
    return xp.concat(parts, axis=1)


def _by_columns(A: tk.LinearOperator, Y: Array) -> Array:
    """A product with columns (B, U, k)."""
    B, U, k = Y.shape
    xp = namespace(Y)
    return xp.reshape(A.matmat(xp.reshape(Y, (B * U, k))), (B, U, k))
