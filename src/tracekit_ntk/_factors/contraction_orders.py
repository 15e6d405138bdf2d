"""Two uses of a parameter contracted to a kernel, in the order that costs least."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import array_api_compat

from tracekit._arrays import Array

from .contractions import (
    Form,
    Side,
    apply,
    canonical,
    conjugate,
    cotangents,
    dots,
    finish,
    gram_gram,
    left_to_right,
    of_jacobians,
    outside_in,
    squares,
)
from .uses import Dense, Lookup, Outer, Use, pad

namespace = array_api_compat.array_namespace


class Order(NamedTuple):
    """A way to contract two uses, and what it costs."""

    name: str
    flops: int  # multiply-adds
    numbers: int  # of all intermediate arrays together
    run: Callable[[], Array]


def _sizes(use: Outer | Lookup, form: Form) -> tuple[int, ...]:
    """B, D, N, R, g, S, w in canonical axes."""
    N, M, S, w = (int(use.G.shape[k]) for k in (0, 1, -2, -1))
    D, T, paired = form
    g = use.G.shape[2] if isinstance(use, Outer) else 1
    return N if paired else 1, D, 1 if paired else N, M // (D * T), g, S, T * w


def contract(a: Use, b: Use, form: Form, order: str | None = None) -> Array:
    """The part of the kernel that two uses of one parameter make, by the cheapest order."""
    found = orders(a, b, form)
    chosen = cheapest(found) if order is None else next(o for o in found if o.name == order)
    return chosen.run()


def cheapest(found: list[Order]) -> Order:
    """The order of least work, where writing a number counts as eight multiply-adds."""
    return min(found, key=lambda order: order.flops + 8 * order.numbers)


def orders(a: Use, b: Use, form: Form) -> list[Order]:
    """All ways to contract two uses, none of them run yet."""
    if isinstance(a, Dense) or isinstance(b, Dense) or not _meet(a, b):
        if a is b and isinstance(a, Dense) and form.paired and a.J.shape[1] == form.traced:
            numbers = math.prod(a.J.shape)
            return [Order("squares", numbers, numbers, lambda: squares(a))]
        return [_explicit(a, b, form)]
    if _alike(a, b):
        return _like(a, b, form)
    return [_swapped(a, b, form), _explicit(a, b, form)]


def _meet(a: Outer | Lookup, b: Outer | Lookup) -> bool:
    """Whether both see the parameter as the same matrix, up to a transpose."""
    if a.start != b.start:
        return False
    (g, *first), (h, *second) = _matrix(a), _matrix(b)
    return g == h and first == second


def _alike(a: Outer | Lookup, b: Outer | Lookup) -> bool:
    first = a.input_first if isinstance(a, Outer) else True
    return first == (b.input_first if isinstance(b, Outer) else True)


def _matrix(use: Outer | Lookup) -> tuple[int, int, int]:
    """Groups, rows and columns of the parameter as it lies in memory."""
    if isinstance(use, Lookup):
        return 1, use.rows, int(use.G.shape[3])
    g, d, w = int(use.X.shape[1]), int(use.X.shape[3]), int(use.G.shape[4])
    return (g, d, w) if use.input_first else (g, w, d)


# --- uses that see the parameter alike ----------------------------------------------------------


def _like(a: Outer | Lookup, b: Outer | Lookup, form: Form) -> list[Order]:
    """Orders for two uses of one layout; a table's rows stand for one-hot inputs."""
    B, D, N1, R1, g, S1, w = _sizes(a, form)
    _, _, N2, R2, _, S2, _ = _sizes(b, form)
    multiplied = isinstance(a, Outer) and isinstance(b, Outer)
    depth = int(a.X.shape[3]) if isinstance(a, Outer) else a.rows
    d = depth if multiplied else 0  # comparing and gathering are free
    if isinstance(a, Outer) and a is b and form.paired and S1 == R1 == D == 1:
        read, given = B * g * d, B * g * w
        return [Order("squares", read + given, read + given, lambda: squares(a))]
    pairs = B * g * N1 * S1 * N2 * S2
    columns = D * R1 * w
    kernel = B * D * N1 * N2 * R1 * R2
    half = B * g * N1 * N2 * S2 * columns

    def sides() -> tuple[Side, Side]:
        p = canonical(a, form)
        return p, p if a is b else canonical(b, form)

    found = [
        Order(
            "gram-gram",
            pairs * d + pairs * D * R1 * R2 * (w + 1),
            pairs + pairs * D * R1 * R2,
            lambda: gram_gram(*sides()),
        ),
        Order(
            "gram-then-G",
            pairs * d + pairs * columns + kernel * g * S2 * w,
            pairs + half,
            lambda: finish(apply, *sides()),
        ),
    ]
    if multiplied:
        one = B * N1 * g * d * columns
        two = 0 if a is b else B * N2 * g * d * D * R2 * w
        found += [
            Order(
                "outside-in",
                one * S1 + two * S2 + kernel * g * d * w,
                one + two,
                lambda: outside_in(*sides()),
            ),
            Order(
                "left-to-right",
                one * S1 + half * d + kernel * g * S2 * w,
                one + half,
                lambda: finish(left_to_right, *sides()),
            ),
        ]
    return found


# --- uses that see the parameter transposed, or as other matrices -------------------------------


def _swapped(a: Outer | Lookup, b: Outer | Lookup, form: Form) -> Order:
    """One reads the rows of the matrix that the other reads by columns: X meets G."""
    apart = Form(form.diagonal * form.traced, 1, form.paired)
    B, D, N1, R1, g, S1, w1 = _sizes(a, apart)
    _, _, N2, R2, _, S2, w2 = _sizes(b, apart)
    pairs = B * D * g * N1 * S1 * N2 * S2
    first = 0 if isinstance(a, Lookup) else w2
    second = 0 if isinstance(b, Lookup) else w1

    def run() -> Array:
        p, q = canonical(a, apart), canonical(b, apart)
        xp = namespace(p.G, q.G)
        C1 = dots(p, cotangents(conjugate(q.G)))  # B g (N1 S1) (D N2 R2 S2)
        C1 = xp.reshape(C1, (B, g, N1, S1, D, N2, R2, S2))
        C1 = xp.permute_dims(C1, (0, 4, 2, 5, 1, 3, 7, 6))
        C2 = conjugate(dots(q, cotangents(conjugate(p.G))))  # B g (N2 S2) (D N1 R1 S1)
        C2 = xp.reshape(C2, (B, g, N2, S2, D, N1, R1, S1))
        C2 = xp.permute_dims(C2, (0, 4, 5, 2, 6, 1, 7, 3))
        K = xp.matmul(
            xp.reshape(C2, (B, D, N1, N2, R1, g * S1 * S2)),
            xp.reshape(C1, (B, D, N1, N2, g * S1 * S2, R2)),
        )
        return _sum_traced(K, form)

    flops = pairs * (R2 * first + R1 * second + R1 * R2)
    return Order("swapped", flops, pairs * (R1 + R2), run)


def _explicit(a: Use, b: Use, form: Form) -> Order:
    """Both Jacobians formed, where the uses have nothing in common."""
    low = min(a.start, b.start)
    size = max(a.start + a.size, b.start + b.size) - low
    N1, O1 = _samples_outputs(a)
    N2, O2 = _samples_outputs(b)
    met = math.prod(form[:2])
    kernel = N1 * (1 if form.paired else N2) * O1 * O2 // met

    def run() -> Array:
        p = canonical(Dense(pad(a.dense(), a.start - low, size)), form)
        q = p if a is b else canonical(Dense(pad(b.dense(), b.start - low, size)), form)
        return of_jacobians(p.G[..., 0, 0, :], q.G[..., 0, 0, :])

    formed = sum(N * M * u.size for N, M, u in ((N1, O1, a), (N2, O2, b)) if u.size != size)
    formed += sum(
        N * M * size for N, M, u in ((N1, O1, a), (N2, O2, b)) if not isinstance(u, Dense)
    )
    work = sum(_forming(u) for u in (a, b))
    return Order("explicit", work + kernel * size, formed, run)


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
