r"""Networks that end in a linear map, seen from its inputs: kernels of many outputs from few.

Where the outputs are ``y[s, o] = sum_k W[o, k] h[s, k] + b[o]`` at positions s, with O outputs from
d < O features h of the body, the kernel of a pair of samples is

    K[(s, o), (t, p)] = (W K' W^H)[(s, o), (t, p)] + [o = p] (<h_s, h_t> + 1) + ties

with K' the kernel of the features by the parameters of the body, 1 of a bias. Ties are there where
the body reads W too, as a table: the Jacobian of the head by it, ``e_o (x) h_s``, meets that of the
body. With orthonormal columns Q of ``W = Q R``, and cotangents that are the rows of R, traces and
norms are those of d outputs, and of O - d that see nothing but the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tracekit._arrays import Array, abs2, adjoint, conj, device_of, namespace, real

from .uses import Dense, Lookup, Outer, Use

Uses = Mapping[str, Sequence[Use]]


class OwnWeight(NamedTuple):
    """The parameter that a head's weight is, and how its entries lie there, see `Outer`."""

    name: str
    input_first: bool
    start: int


class OwnBias(NamedTuple):
    """The parameter that a head's bias is, where its entries begin, and what multiplies them."""

    name: str
    start: int
    scale: Any


class Seen(NamedTuple):
    """The outputs of a head at every position seen through a root S (O, R) of its own.

    The trace is then that of ``S^H K S``: of a Gauss-Newton matrix, for roots of a loss's Hessians.
    """

    gram: Array  # W^H S S^H W, (N, S, d, d)
    squares: Array  # |S|_F^2, (N, S)
    products: Array | None = None  # S S^H W, (N, S, O, d); needed where the body reads W too


@dataclass(frozen=True, eq=False)
class Head:
    """The linear map that a network ends in, and its body.

    Parameters
    ----------
    body : Capture
        Of the features, whose last axis has the d inputs of the head.
    weight : (O, d) array
        W, whether or not it is a parameter.
    features : (N, S, d) array
        What the parameter of the head is multiplied by, at the S positions of each sample.
    own : OwnWeight or None
        The parameter, if the weight is one.
    bias : OwnBias or None
        The parameter of the bias, if there is one.
    one : dict of lists of uses
        The body's uses by one feature, of which sizes alone are of account.
    """

    body: Any
    weight: Array
    features: Array
    own: OwnWeight | None
    bias: OwnBias | None
    one: Uses

    @property
    def outputs(self) -> int:
        """O, at each position."""
        return int(self.weight.shape[0])

    @property
    def width(self) -> int:
        """The number of features, d."""
        return int(self.weight.shape[1])

    def ties(self, uses: Uses) -> Sequence[Lookup]:
        """Where the body reads the weight."""
        found = uses.get(self.own.name, ()) if self.own else ()
        return [use for use in found if isinstance(use, Lookup)]

    def direct(self, V: Array) -> dict[str, list[Use]]:
        """How the head itself reads its parameters, for cotangents V (N, k, S, O)."""
        xp, found = namespace(V), dict[str, list[Use]]()
        if self.own is not None:
            X = self.features[:, None, :, :]
            found[self.own.name] = [
                Outer(X, V[:, :, None, :, :], self.own.input_first, self.own.start)
            ]
        if self.bias is not None:
            found[self.bias.name] = [Dense(xp.sum(V, axis=2) * self.bias.scale, self.bias.start)]
        return found

    def of_samples(self, low: int, high: int) -> Head:
        """The same of samples low to high, without a body."""
        return replace(self, features=self.features[low:high, ...], body=None)


def is_alone(head: Head) -> bool:
    """Whether the body's uses are such that no term is missing above."""
    uses = head.one
    if head.bias is not None and uses.get(head.bias.name):
        return False
    if head.own is None:
        return True
    form = (head.own.start, head.outputs, head.width)
    return all(
        isinstance(use, Lookup)
        and not head.own.input_first
        and (use.start, use.rows, use.G.shape[3]) == form
        for use in uses.get(head.own.name, ())
    )


class Mixed:
    """The capture of a head's body, for combinations of the features that are outputs instead.

    Parameters
    ----------
    head : Head
        Whose body it is.
    mix : (d, d) or (N, S, d, d) array, optional
        Rows are combinations of the features, the same at each position of each sample or its own;
        features if not given.
    order : (S d,) array of integers, optional
        Which output comes when; in C order of positions and combinations if not given.
    """

    def __init__(self, head: Head, mix: Array | None = None, order: Array | None = None) -> None:
        body = head.body
        self.samples, self.outputs, self.sizes = body.samples, body.outputs, body.sizes
        self.output_shape, self.numbers = body.output_shape, body.numbers
        self.bytes_at_once, self.head = body.bytes_at_once, None
        self._body, self._mix, self._order = body, mix, order
        self._like, self._d = head.features, head.width

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Every read of the body."""
        return self._body.report  # type: ignore[no-any-return]

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """All uses of every parameter of the body, for the outputs start to stop."""
        if self._mix is None and self._order is None:
            return self._body.uses(start, stop)  # type: ignore[no-any-return]
        return self._body.combined(self._columns(start, stop))  # type: ignore[no-any-return]

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The same for k combinations of these outputs, V (N, S d, k)."""
        xp = namespace(V)
        U = xp.matmul(self._columns(0, self.outputs), V)
        return self._body.combined(U)  # type: ignore[no-any-return]

    def _columns(self, start: int, stop: int) -> Array:
        """Cotangents of the features, (N, S d, stop - start), or (1, ...) of all samples."""
        xp, like, d, size = namespace(self._like), self._like, self._d, self.outputs
        where = device_of(like)
        rows = xp.arange(start, stop, device=where)
        rows = rows if self._order is None else xp.take(self._order, rows, axis=0)
        unit = xp.eye(size // d, dtype=like.dtype, device=where)
        mix = xp.eye(d, dtype=like.dtype, device=where) if self._mix is None else self._mix
        shared = mix.ndim == 2
        mix = mix[None, ...] if shared else xp.reshape(mix, (-1, size, d))
        taken = xp.take(mix, rows % d if shared else rows, axis=1)  # N k d
        at = xp.take(unit, rows // d, axis=0)  # k S
        block = at[None, :, :, None] * taken[:, :, None, :]
        return adjoint(xp.reshape(block, (-1, stop - start, size)))


# --- the head's own part ------------------------------------------------------------------------


def lengths(head: Head) -> dict[str, Array]:
    """Squared length of each output's derivative by the head's own parameters, (N, S)."""
    xp, found = namespace(head.features), dict[str, Array]()
    if head.own is not None:
        found[head.own.name] = xp.sum(abs2(head.features), axis=2)
    if head.bias is not None:
        one = xp.ones_like(real(head.features)[:, :, 0])
        found[head.bias.name] = one * _squared(head.bias.scale)
    return found


def grams(first: Head, second: Head, *, paired: bool = False) -> dict[str, Array]:
    """Products of such derivatives of one output, at all positions: (N1, N2, S, S).

    Of paired samples (N, 1, S, S).
    """
    a, b = first.features, second.features
    xp, (N1, S, d), N2 = namespace(a), a.shape, b.shape[0]
    found = {}
    if first.own is not None:
        if paired:
            A = xp.matmul(a, adjoint(b))[:, None, :, :]
        else:
            A = xp.matmul(xp.reshape(a, (N1 * S, d)), adjoint(xp.reshape(b, (N2 * S, d))))
            A = xp.permute_dims(xp.reshape(A, (N1, S, N2, S)), (0, 2, 1, 3))
        found[first.own.name] = A
    if first.bias is not None:
        shape = (N1, 1 if paired else N2, S, S)
        one = xp.ones(shape, dtype=a.dtype, device=device_of(a))
        found[first.bias.name] = one * _squared(first.bias.scale)
    return found


def _squared(scale: Any) -> Any:
    return scale * scale if isinstance(scale, int | float) else abs2(scale)


# --- ties: the head's own part by the weight meets that of the body -----------------------------


def met(features: Array, tie: Lookup, *, paired: bool = False) -> Array:
    """Products of features with what the body makes of rows of the table.

    ``sum_k h[n, s, k] conj(G[m, r, u, k])``, (N1, N2, S, M, U); of paired samples (N, 1, ...).
    """
    xp, G = namespace(features, tie.G), conj(tie.G)
    (N1, S, d), (N2, M, U, _) = features.shape, G.shape
    if paired:
        T = xp.matmul(features, xp.matrix_transpose(xp.reshape(G, (N2, M * U, d))))
        return xp.reshape(T, (N1, 1, S, M, U))
    rows = xp.matrix_transpose(xp.reshape(G, (N2 * M * U, d)))
    T = xp.matmul(xp.reshape(features, (N1 * S, d)), rows)
    return xp.permute_dims(xp.reshape(T, (N1, S, N2, M, U)), (0, 2, 1, 3, 4))


def row_ties(head: Head, uses: Uses, basis: Array, start: int) -> Array | None:
    """The part that ties make of the trace, by single outputs from number `start`: (N, count).

    `uses` are of cotangents R with ``basis R = W``, or of the features with ``S S^H W`` for a
    basis (N, S, O, d) of outputs that are seen through roots S; None where nothing is tied.
    """
    total = None
    for tie in head.ties(uses):
        xp, M, d = namespace(tie.G), tie.G.shape[1], head.width
        rows = xp.arange(start, start + M, device=device_of(tie.G))
        h = xp.take(head.features, rows // d, axis=1)  # N M d
        T = xp.matmul(conj(tie.G), h[..., None])[..., 0]  # N M U
        B = xp.take(_at_tokens(conj(basis), tie), rows if basis.ndim > 2 else rows % d, axis=2)
        part = 2 * real(xp.sum(T * xp.matrix_transpose(B), axis=2))
        total = part if total is None else total + part
    return total


def _at_tokens(basis: Array, tie: Lookup) -> Array:
    """The rows of a basis that tokens read, (N, U, d), or (N, U, S d) of one for each position."""
    xp, (N, U) = namespace(basis), tie.ids.shape
    if basis.ndim == 2:
        return xp.reshape(xp.take(basis, xp.reshape(tie.ids, (-1,)), axis=0), (N, U, -1))
    S, d = basis.shape[1], basis.shape[3]
    where = xp.broadcast_to(tie.ids[:, None, :, None], (N, S, U, d))
    found = xp.take_along_axis(basis, where, axis=2)
    return xp.reshape(xp.permute_dims(found, (0, 2, 1, 3)), (N, U, S * d))


def hot(head: Head, tie: Lookup) -> Array:
    """Which token is which output, (N, U, O)."""
    xp = namespace(tie.ids, tie.G)
    numbers = xp.arange(head.outputs, dtype=tie.ids.dtype, device=device_of(tie.ids))
    return xp.astype(tie.ids[:, :, None] == numbers[None, None, :], tie.G.dtype)
