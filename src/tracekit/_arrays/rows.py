"""How rows of tall arrays are divided among processes, and what these tell each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import array_api_compat
import numpy as np

from .libraries import (
    Array,
    Device,
    DType,
    Namespace,
    as_declared,
    dtype_name,
    plain,
    read_only,
    to_host,
)
from .row_array import RowArray


def _same(X: Array) -> Any:
    return X


@dataclass(frozen=True)
class Rows:
    """A layout as arrays carry it: the rows of every process, and how products are called."""

    n: int
    start: int
    stop: int
    rank: int
    size: int
    allsum: Callable[[Array], Array]
    namespace: Any  # of tall arrays, and of small ones
    device: Device
    outward: Callable[[Array], Any] = _same  # rows that are held, as products take them
    inward: Callable[[Any], Array] = _same
    counts: tuple[int, ...] = field(init=False)  # rows of each process
    declared: bool = False
    parts: int = 1  # no process cuts rows further

    def __post_init__(self) -> None:
        self.agree([self.n], "operators are made of {} rows")
        held = self._told([self.start, self.stop])
        counts = tuple(int(stop - start) for start, stop in held)
        ends = np.cumsum([0, *counts])
        if not (held[:, 0] == ends[:-1]).all() or ends[-1] != self.n or min(counts) < 0:
            raise ValueError(
                f"the processes hold rows {[(int(a), int(b)) for a, b in held]} of {self.n}; they "
                "must follow each other, rank by rank, and be all rows together"
            )
        object.__setattr__(self, "counts", counts)

    @property
    def xp(self) -> Namespace:
        """The library of small arrays."""
        return plain(self.namespace)

    def kept(self, local: Array, axis: int) -> Array:
        """The rows that are held."""
        return local

    def spread(self, local: Array, axis: int) -> Array:
        """All rows in every process, where they are few."""
        xp, shape = self.xp, list(local.shape)
        ends = []
        for count in (self.start, self.n - self.stop):
            shape[axis] = count
            ends.append(xp.zeros(tuple(shape), dtype=local.dtype, device=self.device))
        return self.total(xp.concat([ends[0], local, ends[1]], axis=axis))

    def gathered(self, local: Array) -> np.ndarray:
        """All rows on the host, where this process has them."""
        if self.size > 1:
            raise TypeError(
                f"this process holds rows {self.start} to {self.stop} of {self.n}; use them, as "
                "`local` of the RowArray, or gather them by what your processes are run with"
            )
        return to_host(local)

    def total(self, x: Array) -> Array:
        """The sum of one small array of each process."""
        return self.allsum(x) if self.size > 1 else x

    def stacked(self, x: Array) -> list[Array]:
        """The small arrays of all processes, all of one shape, in their order."""
        if self.size == 1:
            return [x]
        xp = array_api_compat.array_namespace(x)
        empty = xp.zeros_like(x)
        told = self.allsum(xp.stack([x if i == self.rank else empty for i in range(self.size)]))
        return [told[i, ...] for i in range(self.size)]

    def qr(self, Y: Array) -> tuple[Array, Array]:
        """``Q R = Y`` by reflections of the rows of each process, and of all triangles.

        Demmel, Grigori, Hoemmen, Langou (2012), SIAM J. Sci. Comput. 34, arXiv:0808.2664.
        """
        xp, k = array_api_compat.array_namespace(Y), Y.shape[-1]
        Q, R = xp.linalg.qr(Y)
        if self.size == 1:
            return Q, R
        own = R.shape[-2]
        if own < k:
            more = xp.zeros((*R.shape[:-2], k - own, k), dtype=R.dtype, device=Y.device)
            R = xp.concat([R, more], axis=-2)
        sizes = [min(count, k) for count in self.counts]
        triangles = [T[..., :size, :] for T, size in zip(self.stacked(R), sizes, strict=True)]
        U, R = xp.linalg.qr(xp.concat(triangles, axis=-2))
        before = sum(sizes[: self.rank])
        return Q @ U[..., before : before + own, :], R

    def place(self, X: Array) -> Array:
        """Of n rows those that are held; other arrays as they are."""
        if isinstance(X, RowArray) or X.shape[0] != self.n:
            return X
        return RowArray(X[self.start : self.stop, ...], -X.ndim, self)

    def small(self, x: Any) -> Array:
        """What a product gives that has no long axis."""
        return x

    def whole(self, local: Array) -> RowArray:
        """Columns of which these are the rows that are held."""
        return RowArray(local, -2, self)

    def complaint(self, Y: Array) -> str | None:
        """Products are wrapped by `around`, which looks for itself."""
        return None

    def create(self, draw: Callable[..., Array], number: int, *arrays: Array) -> Array:
        """``draw(number, *arrays)``, all rows: who draws keeps those that are held."""
        return draw(number, *arrays)

    def assemble(self, shape: tuple[int, int], part: Callable[[range], Array]) -> Array:
        """What `part` draws of the rows that are held."""
        return part(range(shape[0]))

    def rows(self, n: int) -> Array:
        """The numbers of n rows as a column."""
        span = (self.start, self.stop) if n == self.n else (0, n)
        numbers = self.xp.arange(*span, device=self.device)[:, None]
        return self.whole(numbers) if n == self.n else numbers

    def around(
        self, product: Callable[[Any], Any], name: str, rows: int | None, dtype: DType
    ) -> Any:
        """A product of the rows that are held as one of tall arrays.

        Before it, all processes agree on the number of columns; after it, on whether any failed.
        """

        def call(X: Array) -> Array:
            self.agree([X.shape[1]], f"{name} is called with blocks of {{}} columns")
            failed: BaseException | None = None
            try:
                X = self.place(X)
                tall = isinstance(X, RowArray)
                Y = product(self.outward(read_only(X.local)) if tall else read_only(X))
                Y = (
                    self._checked(Y, X.shape[1], name, (dtype, X.dtype))
                    if rows == self.n
                    else self.small(Y)
                )
            except BaseException as error:  # told to the others first
                failed = error
            told = self._told([failed is not None])[:, 0]
            if failed is not None:
                raise failed
            if told.any():
                raise RuntimeError(f"{name} failed in process {int(np.argmax(told))}")
            return Y

        return call

    def agree(self, numbers: list[float], what: str) -> None:
        """Raise in every process where they do not have the same numbers."""
        told = self._told(numbers)
        if not (told == told[0]).all():
            rows = (", ".join(f"{x:.0f}" for x in row) for row in np.unique(told, axis=0))
            raise ValueError(
                f"{what.format(' and '.join(rows))} in different processes; all have to make the "
                "same calls, with the same seed and budget"
            )

    def first(self, number: int) -> int:
        """The number, below 2^53, of the first process."""
        return int(self._told([number])[0, 0])

    def _checked(self, Y: Any, k: int, name: str, dtypes: tuple[DType, DType]) -> RowArray:
        local = self.inward(Y)
        declared = self.xp.result_type(*dtypes)
        fits = getattr(local, "dtype", declared) == declared or as_declared(local, {declared})
        if fits is None:
            raise TypeError(
                f"{name} returned dtype {dtype_name(local.dtype)} where {dtype_name(declared)} is "
                "declared; declare it with dtype="
            )
        held = (self.stop - self.start, k)
        if getattr(local, "shape", None) is None or tuple(local.shape) != held:
            raise ValueError(
                f"{name} returned {getattr(local, 'shape', type(local).__name__)} where this "
                f"process holds rows {self.start} to {self.stop}; it must return an array of shape "
                f"{held}"
            )
        return self.whole(local)

    def _told(self, numbers: list[Any]) -> np.ndarray:
        """Numbers of all processes, a row each, as they are told by one exchange."""
        mine = np.zeros((self.size, len(numbers)))
        mine[self.rank] = numbers
        if self.size == 1:
            return mine
        return to_host(self.allsum(self.xp.asarray(mine, device=self.device)))
