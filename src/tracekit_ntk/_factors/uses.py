"""A Jacobian in factored form: how a network's operations read a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from tracekit._arrays import Array, abs2, device_of, namespace


class Shared:
    """An array (N, ...) whose entries are the cotangents of several uses, in any order of axes."""

    def __init__(self, G: Array) -> None:
        self._G = G

    @cached_property
    def squared_lengths(self) -> Array:
        """Of each sample, (N,)."""
        return namespace(self._G).sum(abs2(self._G), axis=tuple(range(1, self._G.ndim)))


@dataclass(frozen=True, eq=False)
class Outer:
    """A parameter read by a linear operation: a sum of outer products over positions.

    ``J[n, o] = sum_s X[n, g, s, :] (x) G[n, o, g, s, :]`` for each group g.

    Parameters
    ----------
    X : (N, g, S, d) array
        What the operation was given: N samples, g groups, S positions, d entries.
    G : (N, O, g, S, w) array
        Derivative of each of the O outputs by what the operation gave.
    input_first : bool
        Whether the parameter's entries are ordered (g, d, w), as in ``x @ W``, or else (g, w, d).
    start : int
        Where in the flat parameter these entries begin; uses of disjoint parts do not meet.
    shared : Shared, optional
        What other uses with the same entries of G have made of them.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit_ntk.factors import Outer, dense
    >>> use = Outer(np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 1, 3)), input_first=True)
    >>> dense([use], use.size).shape
    (1, 1, 6)
    """

    X: Array
    G: Array
    input_first: bool
    start: int = 0
    shared: Shared | None = None

    @property
    def size(self) -> int:
        """How many entries of the parameter are read."""
        return int(self.X.shape[1] * self.X.shape[3] * self.G.shape[4])

    @property
    def layout(self) -> tuple[Any, ...]:
        """What two uses have to share to be stacked along their positions."""
        g, d, w = self.X.shape[1], self.X.shape[3], self.G.shape[4]
        return ("outer", self.start, self.input_first, g, d, w)

    def dense(self) -> Array:
        """The Jacobian itself, (N, O, size)."""
        xp = namespace(self.X, self.G)
        N, g, S, d = self.X.shape
        M, w = self.G.shape[1], self.G.shape[4]
        G = xp.permute_dims(self.G, (0, 2, 1, 4, 3))  # N g O w S
        J = xp.matmul(xp.reshape(G, (N, g, M * w, S)), self.X)  # N g (O w) d
        J = xp.reshape(J, (N, g, M, w, d))
        order = (0, 2, 1, 4, 3) if self.input_first else (0, 2, 1, 3, 4)
        return xp.reshape(xp.permute_dims(J, order), (N, M, g * d * w))


Outer.__module__ = "tracekit_ntk.factors"


@dataclass(frozen=True, eq=False)
class Lookup:
    """A table read by row numbers: ``J[n, o][ids[n, s], :] += G[n, o, s, :]``.

    Parameters
    ----------
    ids : (N, S) array of integers
        Row that each position reads, from 0; a position that reads none has a G of zeros.
    G : (N, O, S, w) array
        Derivative of each of the O outputs by the row that was read.
    rows : int
        Rows of the table.
    start : int
        Where in the flat parameter the table begins.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit_ntk.factors import Lookup, dense
    >>> use = Lookup(np.asarray([[1, 1]]), np.ones((1, 1, 2, 2)), 3)
    >>> print(dense([use], use.size)[0, 0])
    [0. 0. 2. 2. 0. 0.]
    """

    ids: Array
    G: Array
    rows: int
    start: int = 0

    @property
    def size(self) -> int:
        """How many entries the table has."""
        return int(self.rows * self.G.shape[3])

    @property
    def layout(self) -> tuple[Any, ...]:
        """What two uses have to share to be stacked along their positions."""
        return ("lookup", self.start, self.rows, self.G.shape[3])

    def dense(self) -> Array:
        """The Jacobian itself, (N, O, size), by way of a one-hot table: slow and large."""
        xp = namespace(self.ids, self.G)
        N, M, S, w = self.G.shape
        where = device_of(self.ids)
        numbers = xp.arange(self.rows, dtype=self.ids.dtype, device=where)
        hot = xp.astype(numbers[None, :, None] == self.ids[:, None, :], self.G.dtype)  # N rows S
        G = xp.reshape(xp.permute_dims(self.G, (0, 2, 1, 3)), (N, S, M * w))
        J = xp.reshape(xp.matmul(hot, G), (N, self.rows, M, w))
        return xp.reshape(xp.permute_dims(J, (0, 2, 1, 3)), (N, M, self.rows * w))


Lookup.__module__ = "tracekit_ntk.factors"


@dataclass(frozen=True, eq=False)
class Dense:
    """An explicit Jacobian: of a bias, a scale, or whatever no rule is known for.

    Parameters
    ----------
    J : (N, O, P) array
        Derivative of each of the O outputs of N samples by P entries of the parameter.
    start : int
        Where in the flat parameter these entries begin.
    shared : Shared, optional
        What other uses with the same entries have made of them.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit_ntk.factors import Dense
    >>> Dense(np.ones((4, 2, 5))).size
    5
    """

    J: Array
    start: int = 0
    shared: Shared | None = None

    @property
    def size(self) -> int:
        """How many entries of the parameter are read."""
        return int(self.J.shape[2])

    @property
    def layout(self) -> tuple[Any, ...]:
        """What two uses have to share to be added up."""
        return ("dense", self.start, self.J.shape[2])

    def dense(self) -> Array:
        """The Jacobian itself, (N, O, P)."""
        return self.J


Dense.__module__ = "tracekit_ntk.factors"


Use: TypeAlias = Outer | Lookup | Dense


def cotangent(use: Use) -> Array:
    """The array that has an axis of outputs, second: G or J."""
    return use.J if isinstance(use, Dense) else use.G


def with_cotangent(use: Use, G: Array) -> Use:
    """The same use with another G or J."""
    if isinstance(use, Dense):
        return replace(use, J=G, shared=None)
    return replace(use, G=G) if isinstance(use, Lookup) else replace(use, G=G, shared=None)


def stack(uses: Sequence[Use]) -> list[Use]:
    """Uses of one parameter, those of one layout joined along their positions or added up.

    Parameters
    ----------
    uses : sequence of Outer, Lookup or Dense
        All of the same samples, outputs and parameter.

    Returns
    -------
    list of Outer, Lookup or Dense
        One for each layout. K uses then cost one contraction of K S positions, not K^2 of S.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit_ntk.factors import Dense, stack
    >>> [use] = stack([Dense(np.ones((1, 1, 2))), Dense(np.ones((1, 1, 2)))])
    >>> print(use.J)
    [[[2. 2.]]]
    """
    found: dict[tuple[Any, ...], list[Any]] = {}
    for use in uses:
        found.setdefault(use.layout, []).append(use)
    return [_join(like) for like in found.values()]


def dense(uses: Sequence[Use], size: int) -> Array:
    """The Jacobian of one parameter, formed: the reference that contractions are held to.

    Parameters
    ----------
    uses : sequence of Outer, Lookup or Dense
        All uses of one parameter.
    size : int
        Entries of the parameter, P.

    Returns
    -------
    (N, O, P) array
        Derivative of each output of each sample.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit_ntk.factors import Dense, dense
    >>> print(dense([Dense(np.ones((1, 1, 2)), start=1)], 4))
    [[[0. 1. 1. 0.]]]
    """
    total = 0
    for use in stack(uses):
        total = total + pad(use.dense(), use.start, size)
    return total


def pad(J: Array, start: int, size: int, axis: int = 2) -> Array:
    """Entries from `start` on, along an axis, as all `size` of them, zero elsewhere."""
    xp, shape = namespace(J), list(J.shape)
    ends = start, size - start - shape[axis]
    if ends == (0, 0):
        return J
    low, high = (
        xp.zeros((*shape[:axis], n, *shape[axis + 1 :]), dtype=J.dtype, device=device_of(J))
        for n in ends
    )
    return xp.concat([low, J, high], axis=axis)


def take_samples(use: Use, low: int, high: int) -> Use:
    """The same use by samples low to high."""
    if isinstance(use, Outer):
        return replace(use, X=use.X[low:high, ...], G=use.G[low:high, ...], shared=None)
    if isinstance(use, Lookup):
        return replace(use, ids=use.ids[low:high, ...], G=use.G[low:high, ...])
    return replace(use, J=use.J[low:high, ...], shared=None)


def _join(like: list[Any]) -> Use:
    first: Use = like[0]
    if len(like) == 1:
        return first
    xp = namespace(cotangent(first))
    if isinstance(first, Dense):
        total = first.J
        for use in like[1:]:
            total = total + use.J
        return Dense(total, first.start)
    G = xp.concat([use.G for use in like], axis=-2)
    if isinstance(first, Lookup):
        ids = xp.concat([use.ids for use in like], axis=1)
        return Lookup(ids, G, first.rows, first.start)
    X = xp.concat([use.X for use in like], axis=2)
    return Outer(X, G, first.input_first, first.start)
