"""The Jacobian of all states in factored form, from the factors of one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tracekit._arrays import Array, conj, device_of, namespace

from .._factors import Dense, Lookup, Outer, Use
from ..factors import Capture
from .transitions import Formed

PARTS = 4  # in which the steps are cut, those that outputs cannot reach being left out


class Unrolled:
    """A `factors.Factored` whose samples are sequences, and whose outputs are T by U states.

    `one` is the capture of a step, whose samples are the B T pairs of a sequence and a step, and
    `of_step` gives its uses. `units_first`: outputs are counted unit by unit instead of step by
    step. `initial`: the states before the first step are parameters, one row each of a table.
    """

    bytes_at_once, head = 2**27, None

    def __init__(
        self,
        one: Capture,
        of_step: Callable[[], dict[str, list[Use]]],
        transitions: Formed,
        initial: bool,
        units_first: bool = False,
    ) -> None:
        self._one, self._of_step, self._transitions = one, of_step, transitions
        self._initial, self._units_first = initial, units_first
        T, self.samples, U, _ = (int(n) for n in transitions.A.shape)
        self.output_shape: tuple[int, ...] = (U, T) if units_first else (T, U)
        self.outputs = T * U
        self.numbers = T * (one.numbers + 2 * U)
        self.sizes = one.sizes | ({INITIAL: self.samples * U} if initial else {})

    def unit_by_unit(self) -> Unrolled:
        """The same, with the outputs in the other order."""
        return Unrolled(self._one, self._of_step, self._transitions, self._initial, True)

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Every read in a step."""
        return self._one.report

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """All uses of every parameter, for the outputs start to stop of every sequence."""
        A = self._transitions.A
        T, B, U, _ = A.shape
        xp, place = namespace(A), device_of(A)
        wanted = xp.arange(start, stop, device=place)
        reach = T
        if self._units_first:
            wanted = wanted % T * U + wanted // T
        else:
            part = -(-T // PARTS)
            reach = min(T, -(-stop // (part * U)) * part)
        every = xp.arange(reach * U, device=place)
        E = xp.astype(every[:, None] == wanted[None, :], A.dtype)
        E = xp.reshape(E, (1, reach, U, stop - start))
        return self._pulled(xp.broadcast_to(E, (B, *E.shape[1:])))

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The same for k combinations ``V^H y`` of each sequence's own states: V (B, T U, k)."""
        xp = namespace(V)
        V = xp.reshape(V, (self.samples, *self.output_shape, -1))
        return self._pulled(xp.permute_dims(V, (0, 2, 1, 3)) if self._units_first else V)

    def _pulled(self, V: Array) -> dict[str, list[Use]]:
        """Uses for cotangents V (B, S, U, k) of the first S steps."""
        xp = namespace(V)
        C = self._transitions.backward(V)
        rows = xp.matrix_transpose(conj(C))  # B S k U
        found = {name: [_unrolled(u, rows) for u in some] for name, some in self._of_step().items()}
        if self._initial:
            first = self._transitions.at_adjoint(0, C[:, 0, :, :])
            G = xp.matrix_transpose(conj(first))[:, :, None, :]
            ids = xp.arange(self.samples, device=device_of(V))[:, None]
            found[INITIAL] = [Lookup(ids, G, self.samples)]
        return found


INITIAL = "h0"  # no name of a parameter is like it: those begin with a bracket or a dot


def _unrolled(use: Use, rows: Array) -> Use:
    """The use of a step, (B T, U, ...), as one of all states, of which `rows` (B, S, k, U) go in.

    Steps become positions; of an explicit Jacobian, which has none, they are summed over.
    """
    xp = namespace(rows)
    B, S, k, U = rows.shape
    if isinstance(use, Dense):
        J = xp.reshape(use.J, (B, -1, U, use.size))[:, :S, :, :]
        R = xp.reshape(xp.permute_dims(rows, (0, 2, 1, 3)), (B, k, S * U))
        return Dense(xp.matmul(R, xp.reshape(J, (B, S * U, use.size))), use.start)
    G = use.G if isinstance(use, Outer) else use.G[:, :, None, :, :]
    _, _, g, s, w = G.shape
    G = xp.reshape(G, (B, -1, U, g * s * w))[:, :S, :, :]
    G = xp.reshape(xp.matmul(rows, G), (B, S, k, g, s, w))
    G = xp.reshape(xp.permute_dims(G, (0, 2, 3, 1, 4, 5)), (B, k, g, S * s, w))
    if isinstance(use, Lookup):
        ids = xp.reshape(use.ids, (B, -1))[:, : S * s]
        return replace(use, ids=ids, G=G[:, :, 0, :, :])
    d = use.X.shape[3]
    X = xp.reshape(use.X, (B, -1, g, s, d))[:, :S, :, :, :]
    X = xp.reshape(xp.permute_dims(X, (0, 2, 1, 3, 4)), (B, g, S * s, d))
    return Outer(X, G, use.input_first, use.start)
