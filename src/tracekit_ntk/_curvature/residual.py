"""The Hessian of a loss beyond Gauss-Newton: second derivatives of a network's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import tracekit as tk
from tracekit._arrays import Array, constant, is_traced, namespace, unit_columns

from .._backend import with_inputs
from .._derivatives import chunk, generic, itemsize, operator
from .exact import ggn_trace
from .hessian import as_operator
from .roots import label_roots, roots_of


class Residual:
    """The Hessian of a loss on some samples as ``G + R``: tr G, and forms of both.

    R is the Hessian of the outputs, weighted by the gradient of the loss by them. `direct` tells
    whether second derivatives along directions come by forward mode of forward mode, which is
    found out if not given. A direction then costs one pass; else a product with R and one with J.
    """

    def __init__(
        self, f: Any, params: Any, x: Any, y: Any, loss: Any, direct: bool | None = None
    ) -> None:
        self._library = library = with_inputs(params, x)
        f = library.on_copies(f)
        self._f: Callable[[Any], Array] = lambda p: f(p, x)
        self._params = params
        known = ggn_trace(f, params, x, loss)
        outputs = f(params, x)
        samples = outputs.shape[0]
        self._roots = roots_of(loss, outputs, samples)
        xp, gradient = namespace(outputs), label_roots(loss, y, outputs, samples).rows.columns(0, 1)
        self._gradient = xp.reshape(gradient, (-1,))
        self.known = xp.astype(known, self._gradient.dtype, copy=False)
        self.sizes = [math.prod(leaf.shape) for _, leaf in library.leaves(params)]
        self.direct = self._is_direct() if direct is None else direct
        self.cost = 1 if self.direct else 2

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(self.sizes)

    def forms(self, blocks: Iterable[Array]) -> tuple[Array, Array]:
        """Of all directions ``z^T R z``, and ``z^T G z`` less the trace of G."""
        rest, surplus = zip(*map(self._forms, blocks), strict=True)
        xp = namespace(rest[0])
        return xp.concat(list(rest)), xp.concat(list(surplus))

    def total(self, blocks: Iterable[Array]) -> Array:
        """The sum of ``z^T R z`` over directions."""
        parts = [namespace(Z).sum(self._forms(Z)[0]) for Z in blocks]
        return sum(parts[1:], start=parts[0])

    def signs(self, source: tk.probes.Source, widths: Iterable[int]) -> Iterator[Array]:
        """Directions of signs, in blocks of these widths."""
        return (tk.probes.rademacher(source, self.size, width) for width in widths)

    def units(self, at_once: int) -> Iterator[Array]:
        """The directions of single parameters."""
        for start in range(0, self.size, at_once):
            width = min(at_once, self.size - start)
            yield unit_columns(self.residual, self.size, width, start)

    def blocks_vanish(self, at_once: int) -> tuple[int, bool]:
        """Whether no leaf has a diagonal block in R, and the products with R that tell.

        R times a normal vector on a leaf is 0 on that leaf with probability 0, unless the block is.
        """
        R, done, width = self.residual, 0, 1  # most networks are curved in the first leaf
        source, ends = tk.probes.Source(0, R), [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        while done < len(self.sizes):
            leaves = range(done, min(done + width, len(self.sizes)))
            rows = R.xp.arange(self.size, device=R.device)
            here = R.xp.stack(
                [(rows >= ends[k]) & (rows < ends[k] + self.sizes[k]) for k in leaves], axis=1
            )
            normal = tk.probes.normal(source, self.size, len(leaves))
            zero = R.xp.zeros_like(normal)
            made = R.matmat(R.xp.where(here, normal, zero))
            done, width = done + len(leaves), at_once
            if not bool(R.xp.all(R.xp.where(here, made, zero) == 0)):
                return done, False
        return done, True

    @cached_property
    def residual(self) -> tk.LinearOperator:
        """R."""
        return as_operator(self.model, self.model.product)

    @cached_property
    def model(self) -> Any:
        """The loss with its gradient by the outputs held fixed, to second order."""

        def weighted(p: Any) -> Array:
            made = self._f(p)
            xp = namespace(made)
            made = xp.astype(xp.reshape(made, (-1,)), self._gradient.dtype, copy=False)
            return xp.sum(self._gradient * made)

        return self._library.quadratic(weighted, self._params)

    def at_once(self, chunk_size: int | None) -> int:
        """Directions at once."""
        return chunk(chunk_size, self.model.numbers, itemsize(self.model.dtype, self.residual.xp))

    @cached_property
    def _curve(self) -> Callable[[Array], tuple[Array, Array]]:
        return self._library.second_order(self._f, self._params)

    @cached_property
    def _jacobian(self) -> tk.LinearOperator:
        return operator(self._library.linearise(self._f, self._params), None)

    def _forms(self, Z: Array) -> tuple[Array, Array]:
        xp, dtype = namespace(Z), self._gradient.dtype
        if self.direct:
            first, rest = self._by_curve(Z)
        else:
            first, rest = self._jacobian.matmat(Z), self.residual.quad(Z)  # type: ignore[misc]
        S = self._roots.adjoint_product(xp.astype(first, dtype, copy=False))
        return xp.astype(rest, dtype, copy=False), xp.sum(S * S, axis=0) - self.known

    def _by_curve(self, Z: Array) -> tuple[Array, Array]:
        """First derivatives of the outputs along directions, and ``z^T R z``."""
        first, second = self._curve(Z)
        xp, dtype = namespace(Z), self._gradient.dtype
        return first, self._gradient @ xp.astype(second, dtype, copy=False)

    def _is_direct(self) -> bool:
        """Whether forward mode of forward mode runs, and gives what reverse mode gives."""
        R = self.residual
        z, xp = generic(self.size, R.xp, R.device)[:, None], R.xp
        z = xp.astype(z, R.dtype, copy=False)
        try:
            here = self._by_curve(z)[1]
        except Exception:  # whatever the library may raise
            return False
        if is_traced(here):
            return True
        made = constant(R.matmat(z))
        refuse_nan(made)
        size = float(xp.sqrt(xp.sum(z * z) * xp.sum(made * made)))
        leaves = [leaf for _, leaf in self._library.leaves(self._params)]
        coarsest = max(float(xp.finfo(leaf.dtype).eps) for leaf in leaves)
        off = abs(float(constant(here[0])) - float(xp.sum(z * made)))
        return bool(off <= coarsest**0.5 * size)


def refuse_nan(x: Array) -> None:
    """Refuse second derivatives that are not finite."""
    if not is_traced(x) and not bool(namespace(x).all(namespace(x).isfinite(x))):
        raise tk.NotFiniteError(
            "a second derivative of f is NaN or infinite at these parameters, so that the Hessian "
            "has no trace; add a small number inside square roots, norms and logarithms"
        )
