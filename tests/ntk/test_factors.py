"""Factors of Jacobians: every order of contraction against Jacobians that are formed."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest

from tests.conftest import Library
from tracekit_ntk._factors import contractions
from tracekit_ntk._factors.contraction_orders import cheapest, contract, orders
from tracekit_ntk._factors.contractions import Form
from tracekit_ntk._factors.tiles import gram, permuted, tiles
from tracekit_ntk.factors import Dense, Lookup, Outer, dense, stack

tiles_module = importlib.import_module(tiles.__module__)  # the folder hands on the function

D, T = 2, 3  # outputs on the diagonal, and summed over
KINDS = ("first", "last", "lookup", "dense", "grouped", "grouped-last")
MEETING = [
    *itertools.product(("first", "last", "lookup", "dense"), repeat=2),
    *itertools.product(("grouped", "grouped-last", "dense"), repeat=2),
]
every_form = pytest.mark.parametrize("paired", [False, True], ids=["crossed", "paired"])


def make(rng: np.random.Generator, kind: str, N: int, R: int, S: int, real: bool = False) -> Any:
    """One use, as NumPy arrays."""

    def draw(*shape: int) -> np.ndarray:
        x = rng.standard_normal(shape)
        return x if real else x + 1j * rng.standard_normal(shape)

    M, g, d, w = D * T * R, 2 if "grouped" in kind else 1, 3, 4
    if kind == "dense":
        return Dense(draw(N, M, 7), 2)
    if kind == "lookup":
        return Lookup(rng.integers(0, d, (N, S)), draw(N, M, S, w), d)
    if kind.endswith("last"):  # the same matrices, whose columns are read
        return Outer(draw(N, g, S, w), draw(N, M, g, S, d), False)
    return Outer(draw(N, g, S, d), draw(N, M, g, S, w), True)


def there(library: Library, use: Any) -> Any:
    """The same use in another library."""
    if isinstance(use, Dense):
        return Dense(library.array(use.J), use.start)
    G = library.array(use.G)
    if isinstance(use, Lookup):
        return Lookup(library.array(use.ids, "int64"), G, use.rows, use.start)
    return Outer(library.array(use.X), G, use.input_first, use.start)


def naive(a: Any, b: Any, paired: bool) -> np.ndarray:
    """The kernel of formed Jacobians, in canonical axes."""
    size = max(a.start + a.size, b.start + b.size)
    J1, J2 = dense([a], size), dense([b], size)
    J1, J2 = (J.reshape(len(J), D, T, -1, size) for J in (J1, J2))
    K = np.einsum("ndtrp,mdtqp->dnmrq", J1, J2.conj())
    return np.einsum("dnnrq->ndrq", K)[:, :, None, None] if paired else K[None]


def entries(use: Any) -> np.ndarray:
    """A Jacobian written out entry by entry, as the definitions say."""
    if isinstance(use, Dense):
        return use.J
    if isinstance(use, Lookup):
        N, M, S, w = use.G.shape
        J = np.zeros((N, M, use.rows, w), use.G.dtype)
        for n, s in itertools.product(range(N), range(S)):
            J[n, :, use.ids[n, s]] += use.G[n, :, s]
        return J.reshape(N, M, -1)
    order = "nogdw" if use.input_first else "nogwd"
    J = np.einsum(f"ngsd,nogsw->{order}", use.X, use.G)
    return J.reshape(*J.shape[:2], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_is_what_the_definitions_say(kind: str) -> None:
    use = make(np.random.default_rng(0), kind, 3, 1, 2)
    np.testing.assert_allclose(use.dense(), entries(use), atol=1e-12)
    padded = dense([use], use.start + use.size + 3)
    np.testing.assert_array_equal(padded[..., use.start : use.start + use.size], use.dense())
    assert not padded[..., : use.start].any()
    assert not padded[..., use.start + use.size :].any()


@every_form
@pytest.mark.parametrize("kinds", MEETING, ids="-".join)
def test_every_order_gives_the_kernel_of_formed_jacobians(
    kinds: tuple[str, str], paired: bool
) -> None:
    rng = np.random.default_rng(1)
    a = make(rng, kinds[0], 3, 2, 3)
    b = make(rng, kinds[1], 3 if paired else 2, 4, 5)
    expected = naive(a, b, paired)
    found = orders(a, b, Form(D, T, paired))
    for order in found:
        K = order.run(a, b, Form(D, T, paired))
        assert K.shape == expected.shape
        np.testing.assert_allclose(K, expected, atol=1e-10, err_msg=order.name)
    assert cheapest(found) in found


@every_form
@pytest.mark.parametrize("kind", KINDS)
def test_a_use_with_itself(kind: str, paired: bool) -> None:
    use = make(np.random.default_rng(2), kind, 3, 2, 3)
    form = Form(D, T, paired)
    for order in orders(use, use, form):
        np.testing.assert_allclose(order.run(use, use, form), naive(use, use, paired), atol=1e-10)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dense"])
def test_orders_of_like_uses_are_those_that_are_published(kind: str) -> None:
    use = make(np.random.default_rng(3), kind, 3, 2, 3)
    other = make(np.random.default_rng(4), kind, 2, 2, 3)
    names = {order.name for order in orders(use, other, Form(D, T))}
    both = {"gram-gram", "gram-then-G"}
    assert names == both | (set() if kind == "lookup" else {"outside-in", "left-to-right"})


@pytest.mark.parametrize("S", [1, 4])
def test_the_trace_of_single_positions_is_a_product_of_squared_lengths(S: int) -> None:
    rng = np.random.default_rng(5)
    use = Outer(rng.standard_normal((3, 2, S, 5)), rng.standard_normal((3, 6, 2, S, 4)), True)
    form = Form(1, 6, True)
    names = [order.name for order in orders(use, use, form)]
    assert (names == ["squares"]) == (S == 1)
    trace = contract(use, use, form)[:, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(trace, (entries(use) ** 2).sum((1, 2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("N", "M", "S", "d", "w", "name"),
    [
        (16, 16, 1, 256, 256, "gram-gram"),
        (4, 10, 256, 27, 32, "outside-in"),
        (2, 200, 8, 512, 512, "gram-then-G"),
    ],
)
def test_the_order_follows_the_work(N: int, M: int, S: int, d: int, w: int, name: str) -> None:
    X = np.broadcast_to(np.float32(1), (N, 1, S, d))
    a, b = (Outer(X, np.broadcast_to(np.float32(1), (N, M, 1, S, w)), True) for _ in range(2))
    assert cheapest(orders(a, b, Form())).name == name


@every_form
@pytest.mark.parametrize("kinds", MEETING[:16], ids="-".join)
def test_all_libraries_agree(eager: Library, kinds: tuple[str, str], paired: bool) -> None:
    rng = np.random.default_rng(6)
    a, b = make(rng, kinds[0], 2, 1, 3, real=True), make(rng, kinds[1], 2, 1, 2, real=True)
    K = contract(there(eager, a), there(eager, b), Form(D, T, paired))
    assert eager.at_home(K)
    np.testing.assert_allclose(eager.numpy(K), naive(a, b, paired), atol=2000 * eager.eps)


def test_stacking_changes_nothing() -> None:
    rng = np.random.default_rng(7)
    uses = [make(rng, kind, 2, 1, 3) for kind in KINDS for _ in range(2)]
    uses.append(Dense(uses[0].dense()))
    stacked = stack(uses)
    assert len(stacked) == len(KINDS) + 1
    size = max(use.start + use.size for use in uses)
    np.testing.assert_allclose(dense(stacked, size), dense(uses, size), atol=1e-12)
    K = gram({"p": stacked}, {"p": stacked}, Form(D, T))
    J = dense(uses, size).reshape(2, D, T, 1, size)
    expected = np.einsum("ndtrp,mdtqp->nmdrq", J, J.conj())
    np.testing.assert_allclose(K, expected, atol=1e-9)


@pytest.mark.parametrize("same", [True, False])
@every_form
def test_tiles_make_up_the_kernel(
    monkeypatch: pytest.MonkeyPatch, paired: bool, same: bool
) -> None:
    rng = np.random.default_rng(8)
    one, two = ({k: [make(rng, k, 5, 2, 3)] for k in KINDS} for _ in range(2))
    two = one if same else two
    form = Form(D, T, paired)
    whole = gram(one, two, form)
    monkeypatch.setattr(tiles_module, "NUMBERS_AT_ONCE", 100)
    monkeypatch.setattr(contractions, "NUMBERS_AT_ONCE", 100)
    spans = {i for i, _, _ in tiles(one, two, form)}
    assert len(spans) == 5
    if same and not paired:
        assert len(list(tiles(one, two, form))) == 15  # the upper triangle
    np.testing.assert_allclose(gram(one, two, form), whole, atol=1e-10)


def test_large_kernels_leave_out_the_lower_triangle(monkeypatch: pytest.MonkeyPatch) -> None:
    uses = {"p": [make(np.random.default_rng(9), "first", 8, 1, 2)]}
    whole = gram(uses, uses, Form())
    monkeypatch.setattr(tiles_module, "WORTH_HALVING", 1)
    assert len(list(tiles(uses, uses, Form()))) == 10
    np.testing.assert_allclose(gram(uses, uses, Form()), whole, atol=1e-12)


def test_uses_of_disjoint_parts_do_not_meet() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.standard_normal((2, 2, 6, 4))
    uses = {"p": [Dense(a, 0), Dense(b, 4)]}
    assert sum(1 for _ in tiles(uses, uses, Form())) == 1
    J = dense(uses["p"], 8)
    np.testing.assert_allclose(
        gram(uses, uses, Form())[:, :, 0], np.einsum("nop,mqp->nmoq", J, J), atol=1e-12
    )


def test_outputs_in_another_order() -> None:
    uses = {k: [make(np.random.default_rng(11), k, 2, 2, 3)] for k in KINDS}
    shape, axes = (D, T, 2), (2, 0, 1)
    turned = permuted(uses, shape, axes)
    for kind in KINDS:
        J = uses[kind][0].dense().reshape(2, *shape, -1).transpose(0, 3, 1, 2, 4)
        np.testing.assert_array_equal(turned[kind][0].dense(), J.reshape(2, D * T * 2, -1))
    assert permuted(uses, shape, (0, 1, 2)) is uses


def test_a_network_that_reads_nothing_has_no_kernel() -> None:
    assert gram({"p": []}, {"p": []}, Form()) is None
