"""Probes that come in whole draws: what they are made of, and how their samples are arranged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .._arrays import Array, is_complex, namespace
from .hadamard_columns import signs_of

Take = Callable[[int], Array]


class Plan(Protocol):
    """Draws of probes for one dimension and one budget."""

    @property
    def size(self) -> int:
        """Columns of a draw that are taken together."""

    @property
    def nested(self) -> bool:
        """Whether a draw is of all columns."""

    @property
    def signs(self) -> bool:
        """Whether entries take few values, if the operator is real."""

    @property
    def told(self) -> str:
        """What a draw is."""

    def whole(self, m: int) -> int:
        """How many of m columns are of complete draws."""

    def stream(self, source: Any, n: int, m: int) -> Take:
        """A function that hands out the next columns."""

    def draws(self, samples: Array) -> Array:
        """Samples (..., m) as (..., draws, parts): both independent, their mean what is wanted."""

    def says(self, draws: int, spent: int, budget: int) -> str:
        """How a budget was spent."""


class _Told:
    """What is said of a budget."""

    joint = True
    told: str

    def says(self, draws: int, spent: int, budget: int) -> str:
        """How many draws, and what is left."""
        text = f"{self.told}, {draws} draw{'s' if draws > 1 else ''}"
        text += "" if draws > 1 else ", which has no error; pass twice as many products"
        left = budget - spent
        return f"{text}; {left} of {budget} products left unspent" if left > 0 else text


@dataclass(frozen=True, eq=False)
class Colours(_Told):
    """Signs on the vertices of one colour, colour by colour, then again."""

    colours: Array
    size: int
    told: str
    nested: bool = False
    signs: bool = True

    def whole(self, m: int) -> int:
        """Columns of all colours."""
        return m - m % self.size

    def stream(self, source: Any, n: int, m: int) -> Take:
        """Columns of norm such that their mean is that of the identity."""
        C, xp = self.size, source.xp
        colours = xp.asarray(self.colours, device=source.device)
        done, last = 0, list[Array]()

        def take(k: int) -> Array:
            nonlocal done
            first, stop = done // C, -(-(done + k) // C)
            known = last if done % C else []
            fresh = stop - first - len(known)
            X = xp.concat([*known, *([source.signs((n, fresh))] if fresh else [])], axis=1)
            last[:] = [X[:, -1:]]
            j = xp.arange(done, done + k, dtype=colours.dtype, device=source.device)
            mask = colours[:, None] == (j % C)[None, :]
            done += k
            Omega = X if fresh == k == 1 else xp.take(X, j // C - first, axis=1)
            return Omega * xp.astype(mask, X.dtype) * math.sqrt(C)

        return take

    def draws(self, samples: Array) -> Array:
        """Colours are independent."""
        xp, whole = namespace(samples), self.whole(samples.shape[-1])
        return xp.reshape(samples[..., :whole], (*samples.shape[:-1], -1, self.size))


@dataclass(frozen=True, eq=False)
class Levels(_Told):
    """Signs times the columns of a Hadamard matrix over codes of points, for so many signs."""

    codes: Array
    levels: tuple[int, ...]  # columns of each level
    count: int  # draws of signs
    told: str
    size: int = 1
    nested: bool = True
    signs: bool = True

    def whole(self, m: int) -> int:
        """Columns of the highest level that is complete."""
        return max((self.count * N for N in self.levels if self.count * N <= m), default=0)

    def stream(self, source: Any, n: int, m: int) -> Take:
        """Columns of the draws in turns, so that a higher level goes on with those of a lower."""
        xp = source.xp
        codes = xp.asarray(self.codes, device=source.device)
        X, done = source.signs((n, self.count)), 0

        def take(k: int) -> Array:
            nonlocal done
            j = xp.arange(done, done + k, dtype=codes.dtype, device=source.device)
            done += k
            H = xp.matrix_transpose(signs_of(j // self.count, codes))
            return xp.astype(H, X.dtype) * xp.take(X, j % self.count, axis=1)

        return take

    def draws(self, samples: Array) -> Array:
        """A draw is the mean over the columns of a level."""
        xp, whole = namespace(samples), self.whole(samples.shape[-1])
        shape = (*samples.shape[:-1], -1, self.count)
        found = xp.mean(xp.reshape(samples[..., :whole], shape), axis=-2)
        return found[..., None]


@dataclass(frozen=True, eq=False)
class Products(_Told):
    """Phases that are products over the axes; as real and imaginary parts for real operators."""

    dims: tuple[int, ...]
    size: int
    told: str
    nested: bool = False
    signs: bool = False

    def whole(self, m: int) -> int:
        """Columns of both parts."""
        return m - m % self.size

    def stream(self, source: Any, n: int, m: int) -> Take:
        """Columns that are Kronecker products."""
        xp, rest = source.xp, list[Array]()

        def columns(k: int) -> Array:
            turns = source.angles((sum(self.dims), k))
            parts, row = None, 0
            for d in self.dims:
                angle = turns[row : row + d, :]
                row += d
                parts = angle if parts is None else parts[:, None, :] + angle[None, :, :]
                parts = xp.reshape(parts, (-1, k))
            assert parts is not None
            re, im = xp.cos(parts), xp.sin(parts)
            if is_complex(source):
                return xp.astype(re, source.dtype) + xp.astype(im, source.dtype) * 1j
            both = xp.stack([re, im], axis=-1) * math.sqrt(2)
            return xp.reshape(both, (n, 2 * k))

        def take(k: int) -> Array:
            more = k - sum(x.shape[1] for x in rest)
            X = xp.concat([*rest, *([columns(-(-more // self.size))] if more > 0 else [])], axis=1)
            rest[:] = [X[:, k:]] if X.shape[1] > k else []
            return X[:, :k]

        return take

    def draws(self, samples: Array) -> Array:
        """A draw is the mean of both parts."""
        xp, whole = namespace(samples), self.whole(samples.shape[-1])
        shape = (*samples.shape[:-1], -1, self.size)
        return xp.mean(xp.reshape(samples[..., :whole], shape), axis=-1)[..., None]
