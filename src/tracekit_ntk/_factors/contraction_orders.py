"""Two uses of a parameter contracted to a kernel, in the order that costs least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

from tracekit._arrays import Array, conj, namespace

from .contractions import (
    Form,
    Side,
    apply,
    canonical,
    cotangents,
    dots,
    finish,
    gram_gram,
    left_to_right,
    of_jacobians,
    outside_in,
    squares,
)
from .uses import Dense, Lookup, Outer, Use, cotangent, pad, with_cotangent


class Sizes(NamedTuple):
    """Of two uses of one layout, in canonical axes."""

    B: int
    D: int
    g: int
    w: int
    d: int  # 0 for tables: comparing and gathering are free
    N1: int
    R1: int
    S1: int
    N2: int
    R2: int
    S2: int
    same: bool  # whether both are one use

    @property
    def pairs(self) -> int:
        """Pairs of positions."""
        return self.B * self.g * self.N1 * self.S1 * self.N2 * self.S2

    @property
    def kernel(self) -> int:
        """Entries of the kernel."""
        return self.B * self.D * self.N1 * self.N2 * self.R1 * self.R2

    @property
    def half(self) -> int:
        """What is left when the positions of the first use are summed over."""
        return self.B * self.g * self.N1 * self.N2 * self.S2 * self.columns

    @property
    def columns(self) -> int:
        """Cotangents of a sample and position of the first use."""
        return self.D * self.R1 * self.w

    @property
    def jacobians(self) -> tuple[int, int]:
        """Entries of both Jacobians; one that is the other is formed once."""
        one = self.B * self.N1 * self.g * self.d * self.columns
        two = self.B * self.N2 * self.g * self.d * self.D * self.R2 * self.w
        return one, 0 if self.same else two


class Cost(NamedTuple):
    """What a contraction costs."""

    flops: int  # multiply-adds
    numbers: int  # of all intermediate arrays together


class Contraction(NamedTuple):
    """A way to contract two uses that see the parameter alike."""

    name: str
    cost: Callable[[Sizes], Cost]
    run: Callable[[Side, Side], Array]
    by_inputs: bool = False  # whether it asks for what was read: no table has that


def _gram_gram_cost(s: Sizes) -> Cost:
    met = s.pairs * s.D * s.R1 * s.R2
    return Cost(s.pairs * s.d + met * (s.w + 1), s.pairs + met)


def _gram_then_g_cost(s: Sizes) -> Cost:
    work = s.pairs * (s.d + s.columns) + s.kernel * s.g * s.S2 * s.w
    return Cost(work, s.pairs + s.half)


def _outside_in_cost(s: Sizes) -> Cost:
    one, two = s.jacobians
    return Cost(one * s.S1 + two * s.S2 + s.kernel * s.g * s.d * s.w, one + two)


def _left_to_right_cost(s: Sizes) -> Cost:
    one, _ = s.jacobians
    return Cost(one * s.S1 + s.half * s.d + s.kernel * s.g * s.S2 * s.w, one + s.half)


CONTRACTIONS = (
    Contraction("gram-gram", _gram_gram_cost, gram_gram),
    Contraction("gram-then-G", _gram_then_g_cost, partial(finish, apply)),
    Contraction("outside-in", _outside_in_cost, outside_in, by_inputs=True),
    Contraction("left-to-right", _left_to_right_cost, partial(finish, left_to_right), True),
)


class Order(NamedTuple):
    """A way to contract two uses of some sizes."""

    name: str
    flops: int
    numbers: int
    run: Callable[[Any, Any, Form], Array]


def contract(a: Use, b: Use, form: Form) -> Array:
    """The part of the kernel that two uses of one parameter make, by the cheapest order."""
    return cheapest(orders(a, b, form)).run(a, b, form)


class _Sizes(NamedTuple):
    """Stands for an array of which the shape alone is asked."""

    shape: tuple[int, ...]


def sized(use: Use, outputs: int) -> Use:
    """The same use with so many outputs, of which nothing but the work can be told."""
    G = cotangent(use)
    made: Any = _Sizes((G.shape[0], outputs, *G.shape[2:]))
    return with_cotangent(use, made)


def cheapest(found: Sequence[Order]) -> Order:
    """The order of least work, where writing a number counts as eight multiply-adds."""
    return min(found, key=lambda order: order.flops + 8 * order.numbers)


def orders(a: Use, b: Use, form: Form) -> list[Order]:
    """All ways to contract two uses, none of them run yet."""
    if a is b and form.paired and _is_traced_alone(a, form):
        numbers = sum(prod(part.shape) for part in _parts(a))
        return [Order("squares", numbers, numbers, lambda a, *_: squares(a))]
    if isinstance(a, Dense) or isinstance(b, Dense) or not _same_matrix(a, b):
        return [Order("explicit", *_explicit_cost(a, b, form), _explicit)]
    if _input_first(a) == _input_first(b):
        sizes, products = _sizes(a, b, form), isinstance(a, Outer) and isinstance(b, Outer)
        return [
            Order(way.name, *way.cost(sizes), partial(_on_sides, way))
            for way in CONTRACTIONS
            if products or not way.by_inputs
        ]
    return [
        Order("swapped", *_swapped_cost(a, b, form), _swapped),
        Order("explicit", *_explicit_cost(a, b, form), _explicit),
    ]


def _on_sides(way: Contraction, a: Use, b: Use, form: Form) -> Array:
    p = canonical(a, form)
    return way.run(p, p if a is b else canonical(b, form))


def _same_matrix(a: Outer | Lookup, b: Outer | Lookup) -> bool:
    """Whether both see the parameter as the same matrix, up to a transpose."""
    return a.start == b.start and _matrix(a) == _matrix(b)


def _input_first(use: Outer | Lookup) -> bool:
    return use.input_first if isinstance(use, Outer) else True


def _matrix(use: Outer | Lookup) -> tuple[int, int, int]:
    """Groups, rows and columns of the parameter as it lies in memory."""
    if isinstance(use, Lookup):
        return 1, use.rows, int(use.G.shape[3])
    g, d, w = int(use.X.shape[1]), int(use.X.shape[3]), int(use.G.shape[4])
    return (g, d, w) if use.input_first else (g, w, d)


def _sizes(a: Outer | Lookup, b: Outer | Lookup, form: Form) -> Sizes:
    """A table's rows stand for one-hot inputs."""
    B, D, N1, R1, g, S1, w = _axes(a, form)
    _, _, N2, R2, _, S2, _ = _axes(b, form)
    d = int(a.X.shape[3]) if isinstance(a, Outer) and isinstance(b, Outer) else 0
    return Sizes(B, D, g, w, d, N1, R1, S1, N2, R2, S2, a is b)


def _axes(use: Outer | Lookup, form: Form) -> tuple[int, ...]:
    """B, D, N, R, g, S, w in canonical axes."""
    N, M, S, w = (int(use.G.shape[k]) for k in (0, 1, -2, -1))
    D, T, paired = form
    g = use.G.shape[2] if isinstance(use, Outer) else 1
    return N if paired else 1, D, 1 if paired else N, M // (D * T), g, S, T * w


# --- traces of one use alone --------------------------------------------------------------------


def _is_traced_alone(use: Use, form: Form) -> bool:
    """Whether all outputs are summed over, of an explicit Jacobian or single outer products."""
    if isinstance(use, Dense):
        return bool(use.J.shape[1] == form.traced)
    one = form.diagonal == 1 and use.G.shape[1] == form.traced and use.G.shape[-2] == 1
    return isinstance(use, Outer) and bool(one)


def _parts(use: Any) -> tuple[Array, ...]:
    return (use.J,) if isinstance(use, Dense) else (use.X, use.G)


# --- uses that see the parameter transposed, or as other matrices -------------------------------


def _swapped_cost(a: Outer | Lookup, b: Outer | Lookup, form: Form) -> Cost:
    apart = Form(form.diagonal * form.traced, 1, form.paired)
    B, D, N1, R1, g, S1, w1 = _axes(a, apart)
    _, _, N2, R2, _, S2, w2 = _axes(b, apart)
    pairs = B * D * g * N1 * S1 * N2 * S2
    first = 0 if isinstance(a, Lookup) else w2
    second = 0 if isinstance(b, Lookup) else w1
    return Cost(pairs * (R2 * first + R1 * second + R1 * R2), pairs * (R1 + R2))


def _swapped(a: Outer | Lookup, b: Outer | Lookup, form: Form) -> Array:
    """One reads the rows of the matrix that the other reads by columns: X meets G."""
    apart = Form(form.diagonal * form.traced, 1, form.paired)
    p, q = canonical(a, apart), canonical(b, apart)
    xp = namespace(p.G, q.G)
    B, D, N1, R1, g, S1, _ = p.sizes
    _, _, N2, R2, _, S2, _ = q.sizes
    C1 = dots(p, cotangents(conj(q.G)))  # B g (N1 S1) (D N2 R2 S2)
    C1 = xp.reshape(C1, (B, g, N1, S1, D, N2, R2, S2))
    C1 = xp.permute_dims(C1, (0, 4, 2, 5, 1, 3, 7, 6))
    C2 = conj(dots(q, cotangents(conj(p.G))))  # B g (N2 S2) (D N1 R1 S1)
    C2 = xp.reshape(C2, (B, g, N2, S2, D, N1, R1, S1))
    C2 = xp.permute_dims(C2, (0, 4, 5, 2, 6, 1, 7, 3))
    K = xp.matmul(
        xp.reshape(C2, (B, D, N1, N2, R1, g * S1 * S2)),
        xp.reshape(C1, (B, D, N1, N2, g * S1 * S2, R2)),
    )
    return _sum_traced(K, form)


def _explicit_cost(a: Use, b: Use, form: Form) -> Cost:
    _, size = _span(a, b)
    (N1, O1), (N2, O2) = _samples_outputs(a), _samples_outputs(b)
    kernel = N1 * (1 if form.paired else N2) * O1 * O2 // (form.diagonal * form.traced)
    formed = 0
    for N, M, use in ((N1, O1, a), (N2, O2, b)):
        formed += N * M * use.size if use.size != size else 0
        formed += N * M * size if not isinstance(use, Dense) else 0
    return Cost(_forming(a) + _forming(b) + kernel * size, formed)


def _explicit(a: Use, b: Use, form: Form) -> Array:
    """Both Jacobians formed, where the uses have nothing in common."""
    low, size = _span(a, b)
    p = canonical(Dense(pad(a.dense(), a.start - low, size)), form)
    q = p if a is b else canonical(Dense(pad(b.dense(), b.start - low, size)), form)
    return of_jacobians(p.G[..., 0, 0, :], q.G[..., 0, 0, :])


def _span(a: Use, b: Use) -> tuple[int, int]:
    """Start and size of what both uses cover of the parameter."""
    low = min(a.start, b.start)
    return low, max(a.start + a.size, b.start + b.size) - low


def _forming(use: Use) -> int:
    if isinstance(use, Dense):
        return 0
    N, M, S = use.G.shape[0], use.G.shape[1], use.G.shape[-2]
    return int(N * M * S * use.size)


def _samples_outputs(use: Use) -> tuple[int, int]:
    shape = (use.J if isinstance(use, Dense) else use.G).shape
    return int(shape[0]), int(shape[1])


def _sum_traced(K: Array, form: Form) -> Array:
    if form.traced == 1:
        return K
    xp = namespace(K)
    K = xp.reshape(K, (K.shape[0], form.diagonal, form.traced, *K.shape[2:]))
    return xp.sum(K, axis=2)
