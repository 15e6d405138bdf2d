"""Products with a Jacobian: what an adapter hands over, and what is the same in every library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tracekit._arrays import Array, Product

from .chunks import cut


@dataclass(frozen=True)
class Linearised:
    """The derivative J of a function at one point of its parameters, by both products.

    `pushforward` takes (P, k) columns of tangents to (n, k), `pullback` (n, k) columns of
    cotangents u to (P, k) columns ``J^H u``; parameters are flattened leaf by leaf. `check` is run
    where an operator is made. `known` is what a library may be told when it linearises f again. The
    output has the graph that products have.
    """

    output: Array
    sizes: tuple[int, ...]
    dtype: Any
    device: Any
    pushforward: Product
    pullback: Product
    check: Callable[[], None] = lambda: None
    known: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and parameters."""
        return math.prod(self.output.shape), sum(self.sizes)


@dataclass(frozen=True)
class PerSample:
    """The samples' own Jacobians J_s, of shape (O, P) each, by batched passes.

    All take samples as `part` cuts them out, and a block for each sample: `squares` (N, O, k) to
    ``|J_s^H v|^2``, (N, k); `kernel` (N, O, k) to ``J_s J_s^H v``, (N, O, k); `pullback` (N, O, k)
    to (N, P, k); `pushforward` (N, P, k) to (N, O, k).

    Two take samples of both sides, and columns that all samples share: `contraction` (O, k1) and
    (O, k2) to ``(J_s^H v)^H`` by ``J_t^H w``, (N1, k1, N2, k2); `kernel_columns` (O, k) to
    ``J_s J_t^H v``, (N1, O, N2, k). Neither lays the parameters end to end.
    """

    output: Array
    parameters: int
    dtype: Any
    device: Any
    part: Callable[[slice], Any]
    squares: Callable[[Any, Array], Array]
    kernel: Callable[[Any, Array], Array]
    pullback: Callable[[Any, Array], Array]
    pushforward: Callable[[Any, Array], Array]
    contraction: Callable[[Any, Any, Array, Array], Array]
    kernel_columns: Callable[[Any, Any, Array], Array]


PRODUCTS = ("squares", "kernel", "pullback", "pushforward", "contraction", "kernel_columns")


@dataclass(frozen=True)
class Transforms:
    """A library's ``vjp`` (of which the pullback gives ``J^H u``), ``jvp`` and maps."""

    vjp: Callable[..., Any]
    jvp: Callable[..., Any]
    vmap: Callable[..., Any]
    over_samples: Callable[..., Any]
    xp: Any


def of_samples(
    one: Callable[..., Array], primals: Sequence[Array], dtype: Any, t: Transforms
) -> dict[str, Callable[..., Array]]:
    """The products of `PerSample` by name, which give `dtype`.

    ``one(leaves, sample)`` gives the flat output of one sample.
    """
    xp, sizes = t.xp, [math.prod(p.shape) for p in primals]
    real = not any(xp.isdtype(p.dtype, "complex floating") for p in primals)

    def pull(sample: Any, V: Array) -> tuple[Array, ...]:  # (O, k) -> leaves of (k, ...)
        y, back = t.vjp(lambda *leaves: one(leaves, sample), *primals)
        columns = t.vmap(lambda v: back(to(v, y.dtype)), 1)
        grads = columns(V)
        if real and xp.isdtype(y.dtype, "complex floating"):  # Im(J^H v) = Re(J^H (-i v))
            grads = [re + 1j * im for re, im in zip(grads, columns(-1j * V), strict=True)]
        return tuple(to(g, dtype) for g in grads)

    def pull_all(samples: Any, V: Array) -> Any:  # (O, k) -> leaves of (N, k, ...)
        return t.over_samples(lambda sample: pull(sample, V))(samples)

    def push(values: Callable[..., Array], tangents: Sequence[Array]) -> Array:
        """Leaves of (k, ...) to derivatives (k, ...) of the values that leaves give."""

        def along(*ts: Array) -> Array:
            ts = tuple(to(part, p.dtype) for part, p in zip(ts, primals, strict=True))
            return to(t.jvp(values, tuple(primals), ts)[1], dtype)

        columns = t.vmap(along)
        if real and any(xp.isdtype(ts.dtype, "complex floating") for ts in tangents):
            re, im = ([part(ts) for ts in tangents] for part in (xp.real, xp.imag))
            return columns(*re) + 1j * columns(*im)
        return columns(*tangents)

    def squares(sample: Any, V: Array) -> Array:
        return sum(xp.sum(xp.abs(flat(g)) ** 2, axis=1) for g in pull(sample, V))

    def push_one(sample: Any, tangents: Sequence[Array]) -> Array:  # leaves of (k, ...) -> (O, k)
        return xp.matrix_transpose(push(lambda *leaves: one(leaves, sample), tangents))

    def kernel(sample: Any, V: Array) -> Array:
        return push_one(sample, pull(sample, V))

    def pullback(sample: Any, V: Array) -> Array:
        return xp.matrix_transpose(xp.concat([flat(g) for g in pull(sample, V)], axis=1))

    def pushforward(sample: Any, X: Array) -> Array:
        return push_one(sample, cut(xp.matrix_transpose(X), sizes, primals, xp))

    def contraction(x1: Any, x2: Any, V1: Array, V2: Array) -> Array:
        grads = pull_all(x1, V1)
        others = grads if x2 is None else pull_all(x2, V2)

        def product(g: Array, h: Array) -> Array:
            g, h = (xp.reshape(part, (part.shape[0] * part.shape[1], math.prod(part.shape[2:])))
                    for part in (g, h))  # fmt: skip
            g = xp.conj(g) if xp.isdtype(dtype, "complex floating") else g
            return g @ xp.matrix_transpose(h)

        K = sum(map(product, grads, others))
        return xp.reshape(K, (*grads[0].shape[:2], *others[0].shape[:2]))

    def kernel_columns(x1: Any, x2: Any, V: Array) -> Array:
        def values(*leaves: Array) -> Array:
            return t.over_samples(lambda sample: one(leaves, sample))(x1)

        grads = pull_all(x2, V)
        rows = [xp.reshape(g, (g.shape[0] * g.shape[1], *g.shape[2:])) for g in grads]
        Y = push(values, rows)  # (N2 k, N1, O)
        return xp.permute_dims(xp.reshape(Y, (*grads[0].shape[:2], *Y.shape[1:])), (2, 3, 0, 1))

    def flat(g: Array) -> Array:
        return xp.reshape(g, (g.shape[0], math.prod(g.shape[1:])))

    def to(x: Array, wanted: Any) -> Array:
        return xp.astype(x, wanted, copy=False)

    alone = {p.__name__: t.over_samples(p) for p in (squares, kernel, pullback, pushforward)}
    return alone | {"contraction": contraction, "kernel_columns": kernel_columns}


def generic(n: int, xp: Any, device: Any) -> Array:
    """Numbers, (n,), that no structure of a network makes cancel, the same ones each time."""
    return xp.cos(xp.arange(n, dtype=xp.float32, device=device))


def is_complex_linear(pullback: Product, n: int, dtype: Any, xp: Any, device: Any) -> bool:
    """Whether an imaginary unit passes through, as it does where f is holomorphic."""
    U = xp.astype(generic(n, xp, device), dtype)[:, None]
    here, there = pullback(1j * U), 1j * pullback(U)
    size = xp.max(xp.abs(there))
    return bool(xp.max(xp.abs(here - there)) <= float(xp.finfo(dtype).eps) ** 0.5 * size)


def both_parts(push: Product, pull: Product, xp: Any) -> tuple[Product, Product]:
    """Products over the complex numbers of a derivative whose parameters are real.

    `pull` gives the real part of ``J^H u`` alone, as gradients of real parameters do.
    """

    def is_complex(X: Array) -> bool:
        return bool(xp.isdtype(X.dtype, "complex floating"))

    return (
        lambda X: push(xp.real(X)) + 1j * push(xp.imag(X)) if is_complex(X) else push(X),
        lambda U: pull(U) + 1j * pull(-1j * U),  # Im(J^H u) = Re(J^H (-i u))
    )
