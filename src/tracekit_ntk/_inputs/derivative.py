"""Products with the derivative of a function of samples, after a check that samples do not mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracekit._arrays import Array, beside, constant, device_of, is_finite, is_traced, namespace

from .._derivatives import Backend, generic
from . import checks

Function = Callable[[Array], Any]


class Derivative:
    """The derivative by a batch, of samples that do not depend on one another.

    The first products are held to those beside other samples: half of the samples keep their
    places, the others become copies of these, and only the former have directions. Where values
    are not known yet, as under `jax.jit`, they are taken as they are.

    Parameters
    ----------
    v : callable
        ``(N, ...)`` to the same shape.
    again : callable
        What gives the same for samples that do not mix.
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
        xp = namespace(rows)
        weights = generic(len(T), xp, device_of(rows))
        t, here = (xp.tensordot(xp.astype(weights, X.dtype), X, axes=1)
                   for X in (T, constant(rows)))  # fmt: skip
        kept, places = _others(T.shape[1])
        mask = xp.reshape(beside(t, kept, t.dtype), (-1,) + (1,) * (len(t.shape) - 1))
        x = xp.take(constant(self._x), beside(rows, places, xp.int32), axis=0)
        y, products = self._backend.input_derivative(self._again, x, graph=False)
        there = products((t * mask)[None, ...])[0, ...]

        def deviation(here: Array) -> float:
            off = [_largest((y - self.output) * mask) / _size(self.output)]
            off += [_largest(here * mask - there) / _size(there)]
            return float(xp.max(xp.stack(off)))

        off = deviation(here)
        if off <= float(xp.finfo(self.output.dtype).eps) ** 0.5:
            return rows
        allowed = self._backend.least_precision(self._v, self._x) ** 0.5
        if off <= allowed:
            return rows
        off = deviation(constant(self._products(t[None, ...]))[0, ...])
        if not off <= allowed:
            checks.independent(off, self._name)
        together = self._products  # which a rule for batches of the library gets wrong
        self._products = lambda T: xp.concat([together(T[k : k + 1, ...]) for k in range(len(T))])
        return self._products(T)


def _others(N: int) -> tuple[Any, Any]:
    """A random half of N samples as ones and zeros, and N numbers of samples, all of that half."""
    order = np.random.default_rng(0).permutation(N)
    half = order[: -(-N // 2)]
    kept, places = np.zeros(N), np.arange(N)
    kept[half] = 1
    places[order[len(half) :]] = half[: N - len(half)]
    return kept, places


def _largest(X: Array) -> Array:
    xp = namespace(X)
    return xp.astype(xp.max(xp.abs(X)), xp.float32)


def _size(X: Array) -> Array:
    xp = namespace(X)
    return xp.maximum(_largest(X), xp.asarray(1e-30, dtype=xp.float32, device=device_of(X)))
