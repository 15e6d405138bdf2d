"""Random arrays for probes, from whichever generator the caller holds."""

from __future__ import annotations

import importlib
import math
from typing import Any

import array_api_compat
import numpy as np

from .._arrays import (
    Array,
    LazyRows,
    Rng,
    RowArray,
    Rows,
    Space,
    fingerprint,
    is_complex,
    real_dtype,
    wrapped,
)
from .generators import generator_of


class Source:
    """Random columns: a generator, and the space that they land in.

    Parameters
    ----------
    rng : None, int, SeedSequence, numpy Generator, torch.Generator, JAX key or CuPy Generator
        None, an int, a SeedSequence and NumPy's generators draw on the host, and the draw is moved
        to the device: one seed gives the same numbers in every library. Any other generator draws
        in its own library, on its own device; a JAX key does so under `jax.jit` too.
    like : Space
        An operator, or any record of `dtype`, `xp` and `device`.
    rows : slice, optional
        The rows that are held here, of step 1; all by default. Every draw is then the cut
        ``[rows, :]`` of the whole one. A seed draws these rows alone; other generators draw all of
        them and keep these. Give all holders of rows the same int or SeedSequence: None is another
        seed for each.

    Raises
    ------
    TypeError
        If nothing can be drawn from `rng` for the library of `like`, or `rows` is no slice.
    ValueError
        If `rng` is a negative int, or the step of `rows` is not 1.

    Notes
    -----
    Column j of the stream does not depend on how many columns are asked for at a time. Of an int,
    None or a SeedSequence, a number depends on seed, law (signs, normal numbers, phases), row and
    column only, by the counters of Philox [1]_: not on the number of rows either, nor on who holds
    them. Under `jax.jit` the program draws these numbers itself, by integer arithmetic of 32 bits:
    the same signs, other numbers up to rounding. Uniform numbers have 32 bits, and normal ones are
    of modulus 6.8 at most.

    References
    ----------
    .. [1] Salmon, Moraes, Dror, Shaw (2011), SC'11, doi:10.1145/2063384.2063405.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.as_operator(np.eye(3))
    >>> source = tk.probes.Source(0, A)
    >>> tk.probes.rademacher(source, 3, 2).shape
    (3, 2)
    >>> whole = tk.probes.Source(0, A).normal((1000, 2))
    >>> part = tk.probes.Source(0, A, rows=slice(500, 700)).normal((1000, 2))
    >>> bool((part == whole[500:700]).all())
    True
    """

    def __init__(self, rng: Rng, like: Space, rows: slice | None = None) -> None:
        self.xp, self.dtype, self.device = like.xp, like.dtype, like.device
        self.layout: Any = getattr(like, "layout", None)
        self.rows = _checked(rows)
        rng = self._shared(rng) if isinstance(self.layout, Rows) else rng
        self._engine = generator_of(rng, self)

    def held(self, n: int) -> range:
        """Numbers of the rows that are drawn, out of n.

        Parameters
        ----------
        n : int
            How many rows there are.

        Returns
        -------
        range
            All of them, unless the source was made for some `rows`.
        """
        if self._is_divided(n):
            return range(self.layout.start, self.layout.stop)
        start, stop, _ = (self.rows or slice(None)).indices(n)
        return range(start, max(start, stop))

    def normal(self, shape: tuple[int, int]) -> Array:
        """Standard normal entries; circularly symmetric with ``E|x|^2 = 1`` if complex.

        Parameters
        ----------
        shape : tuple of int
            (n, m), of one column for each test vector.

        Returns
        -------
        (n, m) array
            In the operator's library and dtype, on its device; of n the rows that are held.
        """
        n, m = shape
        if not is_complex(self):
            return self._place(self._engine.draw("normal", n, m, self.held(n)), n)
        return self._place(self._engine.circular(n, m, self.held(n)), n) * math.sqrt(0.5)

    def signs(self, shape: tuple[int, int]) -> Array:
        """Entries of modulus one: signs, or phases uniform on the unit circle if complex.

        Parameters
        ----------
        shape : tuple of int
            (n, m), of one column for each test vector.

        Returns
        -------
        (n, m) array
            In the operator's library and dtype, on its device; of n the rows that are held.
        """
        n, m = shape
        if not is_complex(self):
            return self._place(self._engine.draw("signs", n, m, self.held(n)), n)
        angle = self.angles(shape)
        re, im = (self.xp.astype(f(angle), self.dtype) for f in (self.xp.cos, self.xp.sin))
        return re + im * 1j

    def angles(self, shape: tuple[int, int]) -> Array:
        """Angles of phases, uniform on the circle, whether the operator is complex or not.

        Parameters
        ----------
        shape : tuple of int
            (n, m), of one column for each test vector.

        Returns
        -------
        (n, m) array
            Real, from 0 to two pi, in the operator's library and precision, on its device; of n the
            rows that are held.
        """
        n, m = shape
        turns = self._engine.draw("uniform", n, m, self.held(n))
        return self._place(turns, n, real=True) * (2 * math.pi)

    def distinct(self, n: int, m: int) -> Array:
        """`m` distinct integers below `n`, uniform, in random order.

        Parameters
        ----------
        n, m : int
            How many there are, and how many are drawn.

        Returns
        -------
        (m,) array of int
            In the operator's library, on its device.
        """
        return self.xp.asarray(self._engine.distinct(n, m), device=self.device)

    @property
    def identity(self) -> dict[str, Any]:
        """The kind of generator, and the seed or key where it is known: values for JSON."""
        identity: dict[str, Any] = self._engine.identity()
        return identity

    @property
    def is_seeded(self) -> bool:
        """Whether numbers are those of a seed, by counters, or of a generator of the caller's."""
        return bool(getattr(self._engine, "seeded", False))

    def state(self) -> dict[str, Any]:
        """All that is needed to go on drawing later.

        Returns
        -------
        dict
            Of values that JSON can hold.
        """
        state: dict[str, Any] = self._engine.state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on drawing where a state was taken.

        Parameters
        ----------
        state : dict
            What `state` gave, of a generator of the same kind.
        """
        self._engine.restore(state)

    def __getstate__(self) -> dict[str, Any]:
        """Namespaces cannot be pickled, and are found again by name."""
        return self.__dict__ | {"xp": self.xp.__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, xp=wrapped(importlib.import_module(state["xp"])))

    def whole(self, X: Array, n: int) -> Array:
        """Columns of n rows, of which these are the ones that are held, or all.

        Parameters
        ----------
        X : (k, m) array
            Of the rows `held`, or of n.
        n : int
            How many rows there are.

        Returns
        -------
        array
            A `RowArray` where processes hold parts of n rows, else the same.
        """
        if not self._is_divided(n) or isinstance(X, RowArray) or not hasattr(X, "shape"):
            return X
        return self.layout.place(X) if X.shape[0] == n else self.layout.whole(X)

    def shape(self, n: int, m: int) -> tuple[int, int]:
        """That of columns of n rows, as they are drawn.

        Parameters
        ----------
        n, m : int
            How many rows and columns there are.

        Returns
        -------
        tuple of int
            (n, m), or fewer rows where some are held.
        """
        return (n if self._is_divided(n) else len(self.held(n))), m

    def _is_divided(self, n: int) -> bool:
        """Whether processes hold parts of n rows."""
        return isinstance(self.layout, Rows) and n == self.layout.n

    def _shared(self, rng: Rng) -> Rng:
        """One seed for all processes: that of the first where there is none, or the same one."""
        rows: Rows = self.layout
        if rng is None:
            return rows.first(int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) >> 11)
        told = fingerprint(rng)
        rows.agree([int(told, 16) >> 11 if told else 0], "generators differ, drawing next {}")
        return rng

    def _place(self, draw: Array, n: int, *, real: bool = False) -> Array:
        if isinstance(draw, RowArray):
            return draw
        dtype = real_dtype(self.dtype, self.xp) if real else self.dtype
        if isinstance(self.layout, LazyRows) and self._is_divided(n):
            return self.whole(draw.astype(dtype, copy=False), n)
        if self._is_divided(n):
            return self.whole(self.xp.asarray(draw, dtype=dtype, device=self.device), n)
        if self.layout is not None and not isinstance(self.layout, Rows):
            # drawn on the host, every device gets its rows only
            return self.xp.astype(self.layout.place(draw), dtype, copy=False)
        if isinstance(draw, np.ndarray):
            return self.xp.asarray(draw, dtype=dtype, device=self.device)
        draw = self.xp.astype(draw, dtype, copy=False)
        return draw if self.device is None else array_api_compat.to_device(draw, self.device)


def whole_only(source: Source, n: int, name: str) -> None:
    """Refuse a part of the rows where columns are made of all of them."""
    if source.rows is not None and len(held := source.held(n)) < n:
        raise ValueError(
            f"probes.{name} needs whole columns, and the source holds rows {held.start} to "
            f"{held.stop} of {n}; pass probes.rademacher, normal or hadamard"
        )


def _checked(rows: slice | None) -> slice | None:
    if rows is not None and not isinstance(rows, slice):
        raise TypeError(
            f"`rows` must be a slice or None, got {type(rows).__name__}; pass slice(a, b)"
        )
    if rows is not None and rows.step not in (None, 1):
        raise ValueError(f"`rows` must have a step of 1, got {rows.step}; pass slice(a, b)")
    return rows


Source.__module__ = "tracekit.probes"
