"""Networks whose samples are held by several processes: kernels are those of all samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from threads import together, whole

import tracekit as tk
import tracekit_ntk as tkn

OUTPUTS = 2
X = np.random.default_rng(0).standard_normal((9, 3))
CUTS = ((0, 8, 18), (0, 2, 10, 18))  # rows of outputs, in three sizes: each is compiled

KERNEL: dict[str, Callable[[Any], Any]] = {
    "trace": tk.trace,  # exact, from factors
    "diagonal": tk.diagonal,
    "target alignment": lambda K: tk.target_alignment(K, K.xp.asarray(np.arange(18.0)), 6, rng=0),
}
PRODUCTS: dict[str, Callable[[Any], Any]] = {
    "exact": tk.exact_trace, "hutchinson": lambda K: tk.hutchinson(K, 5, rng=0),
    "hutchpp": lambda K: tk.hutchpp(K, 9, rng=0), "xnystrace": lambda K: tk.xnystrace(K, 9, rng=0),
    "norm": lambda K: tk.frobenius_norm(K, 12, rng=0),
    "rank": lambda K: tk.effective_rank(K, 12, rng=0),
    "diagonal": lambda K: tk.diagonal(K, 6, rng=0),
    "one sided": lambda K: tk.one_sided(K.factor, 6, rng=0),
    "outputs": lambda K: tk.partial_trace(K, K.dims, 0, 3, rng=0),
    "exact outputs": lambda K: tk.partial_trace(K, K.dims, 0),
}  # fmt: skip


def agree(found: Sequence[Any], alone: Any) -> None:
    """What processes found, and the products that it took, are those of one process."""
    for error in found:
        if isinstance(error, BaseException):
            raise error
    assert {x.num_matvecs for x in found} == {alone.num_matvecs}
    values, wanted = [x.value for x in found], np.asarray(alone.value)
    if not isinstance(values[0], tk.RowArray):
        values = [np.asarray(x) for x in values]
    np.testing.assert_allclose(whole(values), wanted, rtol=1e-10, atol=1e-10 * abs(wanted).max())


def said(found: Sequence[Any]) -> list[str]:
    assert all(isinstance(error, Exception) for error in found), found
    return [str(error) for error in found]


def network(hidden: int = 4) -> tuple[Any, dict[str, Any], Any]:
    """A network in JAX, its parameters and all samples."""
    jnp = pytest.importorskip("jax.numpy")
    rng = np.random.default_rng(1)
    shapes = {"w": (3, hidden), "b": (hidden,), "v": (hidden, OUTPUTS)}
    params = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    return (lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]), params, jnp.asarray(X)


def held(x: Any, layout: tk.RowLayout) -> Any:
    return x[layout.rows.start // OUTPUTS : layout.rows.stop // OUTPUTS]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("name", KERNEL)
def test_what_factors_know_of_all_samples(name: str, cuts: Sequence[int]) -> None:
    f, params, x = network()
    call = KERNEL[name]
    found = together(cuts, lambda rows: call(tkn.ntk(f, params, held(x, rows), layout=rows)))
    agree(found, call(tkn.ntk(f, params, x)))


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_kernels_are_those_of_all_samples(name: str, cuts: Sequence[int]) -> None:
    f, params, x = network()
    call = PRODUCTS[name]

    def program(rows: tk.RowLayout | None) -> Any:
        mine = x if rows is None else held(x, rows)
        K = tkn.ntk(lambda p: f(p, mine), params, layout=rows)
        assert K.dims == (9, OUTPUTS)
        return call(K)

    agree(together(cuts, program), program(None))


def test_exact_traces_are_summed() -> None:
    f, params, x = network()

    def program(rows: tk.RowLayout) -> Any:
        mine = held(x, rows)
        parts = tkn.ntk_trace(f, params, mine, per_parameter=True, layout=rows)
        return parts | {"all": tkn.ntk_trace(f, params, mine, layout=rows)}

    alone = tkn.ntk_trace(f, params, x, per_parameter=True)
    alone |= {"all": tkn.ntk_trace(f, params, x)}
    for found in together(CUTS[1], program):
        assert found.keys() == alone.keys()
        for name in alone:
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-12)


@pytest.mark.parametrize("parameters", [5, 18, 40])  # fewer than outputs, as many, and more
def test_jacobians_by_hand(parameters: int) -> None:
    """Columns are those that are claimed; each block of the pullback is summed once."""
    matrix = np.random.default_rng(2).standard_normal((18, parameters))
    calls: dict[str, Callable[[Any], Any]] = {
        "hutchpp": lambda J: tk.hutchpp(tk.gram(J), 9, rng=0),
        "one sided": lambda J: tk.one_sided(J, 5, rng=0),
        "parameters": lambda J: tk.hutchinson(tk.gram(J.H), 5, rng=0),
        "nuclear norm": lambda J: tk.nuclear_norm(J, 8, rng=0),
    }

    def program(rows: tk.RowLayout | None) -> Any:
        A, told, columns = matrix if rows is None else matrix[rows.rows], [], [0, 0]

        def push(T: Any) -> Any:
            columns[0] += T.shape[1]
            return A @ T

        def pull(U: Any) -> Any:
            columns[1] += U.shape[1]
            return A.T @ U

        J = tkn.jacobian_from_pair(push, pull, A.shape, chunk_size=3, layout=rows)
        for call in calls.values():
            before = sum(columns)
            told.append(call(J))
            assert sum(columns) - before == told[-1].num_matvecs
        return told

    found, alone = together(CUTS[1], program), program(None)
    for error in found:
        if isinstance(error, BaseException):
            raise error
    for k in range(len(calls)):
        agree([told[k] for told in found], alone[k])


def test_pullbacks_are_summed_once_a_block() -> None:
    f, params, x = network(hidden=30)
    sizes: list[list[int]] = [[], []]

    def program(rows: tk.RowLayout) -> None:
        def allsum(v: Any) -> Any:
            sizes[rows.rank].append(v.size)
            return rows.allsum(v)

        watched = tk.RowLayout(rows.rows, allsum, rows.rank, rows.size)
        mine = held(x, rows)
        J = tkn.jacobian(lambda p: f(p, mine), params, chunk_size=2, layout=watched)
        tk.hutchinson(tk.gram(J), 5, rng=0)

    assert together(CUTS[0], program) == [None, None]
    P = 3 * 30 + 30 + 30 * OUTPUTS
    for told in sizes:
        assert [size for size in told if size > 20] == [5 * P]
        assert len(told) < 20


def test_what_cannot_be_is_told_to_all() -> None:
    f, params, x = network()

    def call(**other: Any) -> list[str]:
        def program(rows: tk.RowLayout) -> Any:
            mine = {"params": params, "x": held(x, rows), "layout": rows}
            if rows.rank == 1:
                mine |= other
            return tkn.ntk(f, mine["params"], mine["x"], layout=mine["layout"])

        return said(together(CUTS[0], program))

    moved = {name: p + (1e-9 if name == "v" else 0) for name, p in params.items()}
    for error in call(params=moved):
        assert "process 1 has other parameters than process 0" in error
    failed = "process 1 failed; its own error says why"
    first, second = call(x=X[:3])
    assert (first, "8 to 18 for 6 outputs" in second) == (failed, True)
    first, second = call(x=np.full((5, 3), np.nan))
    assert (first, "NaN or infinity" in second) == (failed, True)
    first, second = call(x=X[:0])
    assert (first, "empty" in second) == (failed, True)
    swapped = said(together((0, 18), lambda rows: tkn.ntk(
        f, params, x[:4], layout=tk.RowLayout(slice(10, 18), rows.allsum, 0, 1))))  # fmt: skip
    assert "hold rows [(10, 18)] of 8" in swapped[0]


def test_pairs_of_other_parameters_are_refused() -> None:
    def program(rows: tk.RowLayout) -> Any:
        A = np.ones((rows.rows.stop - rows.rows.start, 5 + rows.rank))
        return tkn.jacobian_from_pair(lambda T: A @ T, lambda U: A.T @ U, A.shape, layout=rows)

    for error in said(together(CUTS[0], program)):
        assert "5 and 6 parameters in different processes" in error


def test_kernels_are_tracked() -> None:
    f, params, x = network()

    def program(rows: tk.RowLayout | None) -> Any:
        mine, tracker = x if rows is None else held(x, rows), tk.Tracker(12, rng=0)
        for scale in (1.0, 1.1):
            moved = {name: scale * p for name, p in params.items()}
            K = tkn.ntk(lambda p: f(p, mine), moved, layout=rows)
            found = tracker.update(K, step=int(10 * scale))
        return found.alignment

    agree(together(CUTS[0], program), program(None))


def test_exact_numbers_need_the_rules_of_all() -> None:
    """Where samples mix in one process, all estimate."""
    f, params, x = network()

    def program(rows: tk.RowLayout) -> Any:
        def g(p: Any, x: Any) -> Any:
            y = f(p, x)
            return y - y.mean(axis=0) if rows.rank else y

        return tkn.ntk(g, params, held(x, rows), layout=rows).exact

    assert together(CUTS[0], program) == [None, None]


def test_layouts_of_other_kinds_are_refused() -> None:
    f, params, x = network()
    with pytest.raises(TypeError, match=r"`layout` must be a tracekit\.RowLayout of outputs"):
        tkn.ntk_trace(f, params, x, layout=slice(0, 18))
