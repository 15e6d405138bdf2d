"""Products with the derivative of a function of samples, after a check that samples do not mix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tracekit._arrays import Array, beside, constant, device_of, is_finite, is_traced, namespace

from .._derivatives import Backend, generic
from . import checks

Function = Callable[[Array], Any]


class Derivative:
    """The derivative by a batch, of samples that do not depend on one another.

    Which the first products are held to. Scaled directions, by a number for every sample, have to
    give the products scaled alike, in a second run: that is so if and only if no sample has a
    derivative by another. Where values are not known yet, as under `jax.jit`, nothing is checked.

    Parameters
    ----------
    v : callable
        ``(N, ...)`` to the same shape.
    again : callable
        What gives the same, and the same products, for samples that do not mix.
    x : array
        The samples.
    name : str
        Of v, in errors.
    """

    def __init__(self, backend: Backend, v: Function, again: Function, x: Array, name: str) -> None:
        self._backend, self._v, self._again, self._x, self._name = backend, v, again, x, name
        self.output, self._products = backend.input_derivative(v, x)
        checks.finite(self.output, name)
        self._checked = is_traced(self.output)

    def rows(self, T: Array) -> Array:
        """Products of directions (k, N, ...) with the derivative, or all with its transpose."""
        rows = self._products(T)
        if self._checked or is_traced(rows):
            return rows
        self._checked = True
        return self._trusted(T, rows) if is_finite(rows) else rows

    def _trusted(self, T: Array, rows: Array) -> Array:
        """The same rows, one by one if they are wrong together, or a refusal."""
        xp, plain = namespace(rows), self._products
        mix = generic(len(T), xp, device_of(rows))
        t, here = (xp.tensordot(xp.astype(mix, T.dtype), xp.astype(X, T.dtype), axes=1)
                   for X in (T, constant(rows)))  # fmt: skip
        U = xp.reshape(generic(math.prod(t.shape), xp, device_of(t)), t.shape)
        scale = scales(t)
        y, products = self._backend.input_derivative(self._again, constant(self._x), graph=False)

        def one(products: Callable[[Array], Array], t: Array) -> Array:
            return xp.astype(constant(products(t[None, ...]))[0, ...], T.dtype)

        V, along = scale * (U + t), one(plain, xp.astype(U, T.dtype))
        there = one(products, V)

        def deviation(here: Array, noise: float = 0.0) -> float:
            here = scale * (along + here)
            off = xp.clip(_largest(here - there) - noise, min=0.0)
            size = _positive(_largest(here) + _largest(there))
            runs = _largest(y - self.output) / xp.max(_positive(_largest(self.output)))
            return float(xp.max(xp.concat([off / size, runs])))

        if deviation(here) <= float(xp.finfo(self.output.dtype).eps) ** 0.5:
            return rows
        allowed = self._backend.least_precision(self._v, self._x) ** 0.5
        if deviation(here) <= allowed:
            return rows
        part, twice = (float(xp.max(_largest(one(products, c * V) - c * there)))
                       for c in (0.7, 2.0))  # fmt: skip
        noise = 16 * part if twice <= 2 * part else 0.0  # of rounding, which doubling has not
        if deviation(here, noise) <= allowed:
            return rows
        off = deviation(one(plain, t), noise)
        if not off <= allowed:
            checks.independent(off, self._name)
        # a rule for batches of the library is wrong
        self._products = lambda T: xp.concat([plain(T[k : k + 1, ...]) for k in range(len(T))])
        return self._products(T)


def scales(x: Array) -> Array:
    """Numbers from 0.5 to 2, one for every sample and no two alike, to multiply x with."""
    N, rng = x.shape[0], np.random.default_rng(0)
    made = 0.5 + 1.5 * (rng.permutation(N) + rng.random(N) / 2) / N
    like = beside(x, made, namespace(x).float32)
    return namespace(x).reshape(like, (N,) + (1,) * (len(x.shape) - 1))


def _largest(X: Array) -> Array:
    """The largest entry of every sample."""
    xp = namespace(X)
    rows = xp.reshape(xp.abs(X), (X.shape[0], -1))
    return xp.astype(xp.max(rows, axis=1), xp.float32)


def _positive(sizes: Array) -> Array:
    xp = namespace(sizes)
    return xp.maximum(sizes, xp.asarray(1e-30, dtype=sizes.dtype, device=device_of(sizes)))
