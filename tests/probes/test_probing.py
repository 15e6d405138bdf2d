"""Probing: colours of graphs and grids, levels, Kronecker products, and the errors they bring."""

from __future__ import annotations

import itertools
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import Library, library, matrix

import tracekit as tk
from tracekit import probes
from tracekit.probes.colourings import Grid, read_pattern


def chain(*dims: int, shift: float = 0.5) -> sp.csr_array:
    """The Laplacian of a grid, plus a multiple of the identity."""
    A = sp.csr_array((1, 1))
    for m in dims:
        T = sp.diags_array([-np.ones(m - 1), 2 * np.ones(m), -np.ones(m - 1)], offsets=[-1, 0, 1])
        A = sp.kron(A, sp.eye_array(m)) + sp.kron(sp.eye_array(A.shape[0]), T)
    return sp.csr_array(A + shift * sp.eye_array(A.shape[0]))


def colours_of(law: Any, n: int, m: int | None = None) -> np.ndarray:
    m = n if m is None else m
    return law.plan(n, m, tk.probes.Source(0, tk.as_operator(np.eye(n)))).colours


def within(A: Any, distance: int) -> np.ndarray:
    """Pairs of vertices within a distance, by powers of a dense matrix."""
    step = np.asarray((abs(A) + abs(A.T)).toarray() > 0, dtype=int) + np.eye(A.shape[0], dtype=int)
    near = np.linalg.matrix_power(np.minimum(step, 1), distance) > 0
    return near & ~np.eye(A.shape[0], dtype=bool)


def same(colours: np.ndarray) -> np.ndarray:
    return (colours[:, None] == colours) & ~np.eye(len(colours), dtype=bool)


def given(X: np.ndarray) -> Any:
    """A source of these signs."""
    return SimpleNamespace(
        xp=tk.as_operator(np.eye(2)).xp, dtype=X.dtype, device=None, rows=None, signs=lambda _: X
    )


# --- colours --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(7,), (6, 5), (1, 6), (4, 1, 3), (2, 2), (1,)])
@pytest.mark.parametrize("distance", [1, 2, 3, 5])
def test_no_two_within_the_distance_share_a_colour(dims: Any, distance: int) -> None:
    A = chain(*dims)
    for pattern in (A, probes.grid(dims)):
        colours = colours_of(probes.coloured(pattern, distance), A.shape[0])
        assert not np.any(same(colours) & within(A, distance))
        assert set(colours) == set(range(colours.max() + 1))


@pytest.mark.parametrize(
    ("dims", "known"),
    [((9,), [2, 3, 4, 5, 6]), ((20, 20), [2, 5, 8, 13, 18]), ((9, 9, 9), [2, 7, 12, 27])],
)
def test_lattices_have_the_least_colours_that_are_known(dims: Any, known: list[int]) -> None:
    levels = itertools.islice(probes.grid(dims).levels(), len(known))
    assert [int(colours.max()) + 1 for colours, _ in levels] == known


def test_stencils_of_further_neighbours() -> None:
    dims, offsets = (8, 7), [(0, 1), (2, -1)]
    x = np.stack(np.indices(dims).reshape(2, -1), axis=1)
    steps = x[:, None] - x[None]
    A = sp.csr_array(sum(np.all(steps == o, axis=-1) for o in offsets).astype(float))
    for distance in (1, 2, 3):
        law = probes.coloured(probes.grid(dims, offsets), distance)
        assert not np.any(same(colours_of(law, 56)) & within(A, distance))


def test_patterns_that_are_not_symmetric_and_store_zeros() -> None:
    A = sp.csr_array(sp.diags_array([np.ones(5)], offsets=[1]))
    stored = sp.coo_array((np.array([1.0, 0.0]), ([0, 2], [1, 5])), shape=(6, 6))
    assert not np.any(same(colours_of(probes.coloured(A, 2), 6)) & within(A, 2))
    colours = colours_of(probes.coloured(stored, 3), 6)
    assert colours.max() == 1
    assert colours_of(probes.coloured(stored.toarray(), 1), 6).max() == 1


def test_hubs_have_colours_of_their_own() -> None:
    nx = pytest.importorskip("networkx")
    star = nx.star_graph(30)
    assert colours_of(probes.coloured(star, 2), 31).max() == 30
    colours = colours_of(probes.coloured(star, 2, hubs=1), 31)
    assert colours.max() == 1
    assert np.sum(colours == colours[0]) == 1


def test_the_distance_is_chosen_for_two_draws() -> None:
    law = probes.coloured(probes.grid((20, 20)))
    for m, C in [(1, 1), (3, 1), (4, 2), (10, 5), (25, 8), (26, 13), (27, 13)]:
        assert colours_of(law, 400, m).max() + 1 == C
    isolated = probes.coloured(sp.eye_array(9))
    assert colours_of(isolated, 9).max() == 0


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_unbiased_with_the_variance_of_pairs_of_one_colour(n: int) -> None:
    """Exactly, over all sign vectors."""
    B = matrix("psd", n)
    plan = probes.coloured(chain(n), 1).plan(n, n, given(np.ones((n, 1))))
    traces, moments = [], np.zeros((n, n))
    for signs in itertools.product([-1.0, 1.0], repeat=n):
        V = plan.stream(given(np.array(signs)[:, None]), n, plan.size)(plan.size)
        traces.append(np.sum(V * (B @ V)) / plan.size)
        moments += V @ V.T / plan.size / 2**n
    assert np.allclose(moments, np.eye(n))
    assert np.isclose(np.mean(traces), np.trace(B))
    assert np.isclose(np.var(traces), 2 * np.sum(B**2 * same(plan.colours)))


LAWS = {
    "coloured": probes.coloured(probes.grid((4, 5)), 2),
    "hierarchical": probes.hierarchical((4, 5)),
    "kronecker": probes.kronecker((4, 5)),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("cplx", [False, True])
def test_columns_do_not_depend_on_how_many_are_taken(name: str, cplx: bool) -> None:
    A = tk.as_operator(np.eye(20, dtype=complex if cplx else float))
    plan = LAWS[name].plan(20, 10, tk.probes.Source(0, A))
    take = plan.stream(tk.probes.Source(0, A), 20, 10)
    parts = np.concatenate([take(k) for k in (1, 2, 1, 3, 3)], axis=1)
    whole = plan.stream(tk.probes.Source(0, A), 20, 10)(10)
    assert np.array_equal(parts, whole)
    assert whole.dtype == A.dtype


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_one_seed_one_answer_in_every_library(but_jax: Library, name: str, kind: str) -> None:
    A = matrix(kind, 20)
    expected = tk.hutchinson(A, 10, rng=0, probes=LAWS[name])
    found = tk.hutchinson(but_jax.array(A), 10, rng=0, probes=LAWS[name])
    assert but_jax.at_home(found.value)
    assert np.isclose(float(found), float(expected), rtol=1e3 * but_jax.eps)
    error = float(found.standard_error)
    assert np.isclose(error, float(expected.standard_error), rtol=1e5 * but_jax.eps)
    entries = tk.diagonal(but_jax.array(A), 10, rng=0, probes=LAWS[name])
    expected = tk.diagonal(A, 10, rng=0, probes=LAWS[name])
    assert np.allclose(but_jax.numpy(entries.value), expected.value, rtol=1e5 * but_jax.eps)


def test_compiled_is_the_same() -> None:
    jax = pytest.importorskip("jax")
    A = library("jax").array(matrix("psd", 20))

    def value(A: Any) -> Any:
        found = tk.hutchinson(A, 10, rng=0, probes=LAWS["coloured"])
        return jax.numpy.stack([found.value, found.standard_error])

    assert np.allclose(jax.jit(value)(A), value(A), rtol=1e-5)


def test_levels_contain_the_lower_ones_and_are_as_good_as_colours() -> None:
    B, law = matrix("psd", 16), probes.hierarchical((4, 4))
    A = tk.as_operator(B)
    source = tk.probes.Source(0, A)
    more, less = (law(tk.probes.Source(0, A), 16, m) for m in (32, 8))
    assert np.array_equal(more[:, :8], less)
    plan = law.plan(16, 8, source)
    signs = less[:, :2]  # the first column of a Hadamard matrix is of ones
    found = tk.hutchinson(B, 8, rng=0, probes=law)
    classes = plan.codes & 3
    forms = [x @ (B * (classes[:, None] == classes)) @ x for x in signs.T]
    assert np.allclose(found.samples, forms)
    assert np.allclose(
        tk.hutchinson(B[:15, :15], 14, rng=0, probes=probes.hierarchical((3, 5))).dof, 1
    )


@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_kronecker_products_have_the_variance_of_their_notes(kind: str) -> None:
    dims, A = (2, 3), matrix(kind, 6)
    T, expected = A.reshape(2, 3, 2, 3), 0.0
    for part in (A.reshape(6, 6), np.einsum("abcb->ac", T), np.einsum("abac->bc", T)):
        off = ~np.eye(len(part), dtype=bool)
        if len(part) == 6:
            i, j = np.divmod(np.arange(6), 3)
            off = (i[:, None] != i) & (j[:, None] != j)
        expected += np.sum(np.abs(part[off]) ** 2)
    law, size = probes.kronecker(dims), 2 if kind == "psd" else 1
    found = tk.hutchinson(tk.LinearOperator((6, 6), lambda X: A @ X, dtype=A.dtype), 5, rng=0)
    assert found.num_matvecs == 5
    V = law(tk.probes.Source(0, tk.as_operator(A)), 6, 8000 * size)
    forms = np.sum(V.conj() * (A @ V), axis=0).reshape(-1, size).mean(axis=1)
    assert abs(np.mean(forms) - np.trace(A)) < 4 * np.sqrt(expected / 8000)
    assert np.isclose(np.var(forms), expected, rtol=0.08)
    if kind == "complex psd":
        assert all(np.linalg.matrix_rank(v.reshape(dims), tol=1e-9) == 1 for v in V.T[:20])


# --- errors ---------------------------------------------------------------------------------------


def test_the_error_is_that_of_the_colours() -> None:
    """The naive twin: a variance for each colour."""
    B, law = np.linalg.inv(chain(6, 6).toarray()), probes.coloured(probes.grid((6, 6)), 2)
    for R in (2, 3):
        found = tk.hutchinson(B, 5 * R + 4, rng=1, probes=law)
        V = law(tk.probes.Source(1, tk.as_operator(B)), 36, 5 * R)
        forms = np.sum(V * (B @ V), axis=0).reshape(R, 5) / 5
        v = forms.var(axis=0, ddof=1)
        assert np.isclose(found.value, forms.sum(axis=1).mean())
        assert np.isclose(found.standard_error, np.sqrt(v.sum() / R))
        assert found.dof == int((R - 1) * v.sum() ** 2 / np.sum(v**2))
        assert np.allclose(found.samples, forms.sum(axis=1))
        assert found.num_matvecs == 5 * R
        assert "4 of" in found.reason


def test_intervals_cover() -> None:
    B, law = np.linalg.inv(chain(8, 8).toarray()), probes.coloured(probes.grid((8, 8)))
    inside = []
    for seed in range(200):
        low, high = tk.hutchinson(B, 16, rng=seed, probes=law).confidence_interval()
        inside.append(low <= np.trace(B) <= high)
    assert np.mean(inside) >= 0.92


def test_diagonals_by_draws_are_those_of_the_entries_of_one_colour() -> None:
    B, law = np.linalg.inv(chain(5, 6).toarray()), probes.coloured(chain(5, 6), 2)
    found = tk.diagonal(B, 29, rng=0, probes=law)
    colours, R = colours_of(law, 30), 29 // (colours_of(law, 30).max() + 1)
    x = tk.probes.Source(0, tk.as_operator(B)).signs((30, R))
    naive = x * ((B * (colours[:, None] == colours)) @ x)
    assert np.allclose(found.value, naive.mean(axis=1))
    assert found.num_matvecs == R * (colours.max() + 1)
    known = np.isfinite(found.standard_error)
    error = naive.std(axis=1, ddof=1) / np.sqrt(R)
    assert np.allclose(found.standard_error[known], error[known])


def test_one_draw_has_no_error() -> None:
    B, law = matrix("psd", 20), LAWS["coloured"]
    for estimate in (
        tk.hutchinson(B, 9, rng=0, probes=law),
        tk.hutchinson(B, 1, rng=0, probes=probes.coloured(chain(20))),
        tk.diagonal(B, 9, rng=0, probes=law),
    ):
        assert np.all(np.isinf(estimate.standard_error))
        assert "one" in estimate.reason or "no error" in estimate.reason


def test_equal_draws_are_exact_when_that_is_no_chance() -> None:
    """Of the pattern itself, which the products do not know of."""
    A, law = chain(60), probes.coloured(chain(60), 1)
    few, many = (tk.hutchinson(A, m, rng=0, probes=law) for m in (4, 14))
    assert np.isclose(few.value, A.trace())
    assert np.isinf(few.standard_error)
    assert (many.standard_error, many.num_matvecs) == (0, 14)


def test_what_is_spent_is_claimed_and_runs_go_on() -> None:
    B = np.linalg.inv(chain(12, 12).toarray())
    for law in (probes.coloured(chain(12, 12)), probes.coloured(probes.grid((12, 12)), 2),
                probes.hierarchical((12, 12)), probes.kronecker((12, 12))):  # fmt: skip
        A, counter = tk.counted(B)
        estimate = tk.hutchinson(A, 33, rng=0, probes=law)
        assert estimate.num_matvecs == counter.total <= 33
        A, counter = tk.counted(B)
        found = tk.hutchinson(A, 120, rng=0, probes=law, rtol=1e-2)
        assert found.num_matvecs == counter.total <= 120
        A, counter = tk.counted(B)
        again = tk.diagonal(A, 33, rng=0, probes=law)
        assert again.num_matvecs == counter.total <= 33


def test_with_a_tolerance_a_run_that_is_resumed_is_the_same() -> None:
    B, law = np.linalg.inv(chain(12, 12).toarray()), probes.coloured(chain(12, 12), 1)
    whole = tk.hutchinson(B, 100, rng=0, probes=law, rtol=1e-3)
    first = tk.hutchinson(B, 100, rng=0, probes=law, rtol=3e-2)
    again = tk.resume(B, first, num_matvecs=100, rtol=1e-3)
    assert first.num_matvecs < again.num_matvecs == whole.num_matvecs
    assert again.value == whole.value


def test_merged_runs_are_weighted_by_what_they_spent() -> None:
    B, law = np.linalg.inv(chain(12, 12).toarray()), probes.coloured(chain(12, 12), 2)
    runs = [tk.hutchinson(B, m, rng=seed, probes=law) for seed, m in [(0, 21), (1, 42)]]
    both = tk.merge(runs)
    m = np.array([r.num_matvecs for r in runs])
    assert np.isclose(both.value, np.average([float(r) for r in runs], weights=m))
    squares = [float(r.standard_error) ** 2 for r in runs]
    assert np.isclose(both.standard_error, np.sqrt(np.sum((m / m.sum()) ** 2 * squares)))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: probes.coloured(chain(9)[:3]), ValueError, "square"),
        (lambda: probes.coloured("grid"), TypeError, "must be a sparse matrix"),
        (lambda: probes.coloured(chain(9), 0), ValueError, "positive integer"),
        (lambda: probes.coloured(chain(9), True), ValueError, "positive integer"),
        (lambda: probes.coloured(chain(9), hubs=-1), ValueError, "0 or more"),
        (lambda: probes.coloured(probes.grid((9,)), hubs=1), ValueError, "no hubs"),
        (lambda: probes.grid((3, 0)), ValueError, "`dims`"),
        (lambda: probes.grid((3, 3), [(1,)]), ValueError, "`offsets`"),
        (lambda: probes.kronecker(6), ValueError, "`dims`"),
        (lambda: probes.hierarchical((4, 4), draws=0), ValueError, "`draws`"),
    ],
)
def test_bad_patterns(call: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        call()


B9 = matrix("psd", 9)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: tk.hutchinson(B9, 6, probes=probes.coloured(chain(8))), ValueError, "8 points"),
        (lambda: tk.hutchinson(B9, 6, probes=probes.hierarchical((4, 2))), ValueError, "8 points"),
        (lambda: tk.diagonal(B9, 6, probes=probes.kronecker((4, 2))), ValueError, "8 points"),
        (
            lambda: tk.hutchinson(B9, 2, probes=probes.coloured(chain(9), 2)),
            ValueError,
            "3 colours",
        ),
        (lambda: tk.hutchinson(B9, 1, probes=probes.kronecker((3, 3))), ValueError, "2 probes"),
        (lambda: tk.hutchinson(B9, 1, probes=probes.hierarchical((9,))), ValueError, "2 draws"),
        (lambda: tk.xtrace(B9, 8, probes=probes.coloured(chain(9))), ValueError, "depend"),
        (
            lambda: tk.hutchpp(B9, 8, probes=probes.coloured(chain(9))),
            (ValueError, TypeError),
            "whole|depend",
        ),
        (
            lambda: tk.block_traces(B9, (3, 3), 1, 6, probes=probes.coloured(chain(9))),
            TypeError,
            "whole draws",
        ),
    ],
)
def test_bad_calls(call: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        call()


def test_laws_are_pickled() -> None:
    for law in LAWS.values():
        again = pickle.loads(pickle.dumps(law))
        B = matrix("psd", 20)
        first, second = (tk.hutchinson(B, 12, rng=0, probes=p) for p in (law, again))
        assert first.value == second.value


def test_grids_are_read_as_they_are() -> None:
    grid = probes.grid((3, 4))
    assert isinstance(grid, Grid)
    assert read_pattern(grid, 0) is grid
    assert grid.size == 12


def test_products_of_a_factor_are_counted() -> None:
    L = np.random.default_rng(0).standard_normal((20, 30))
    for law in LAWS.values():
        A, counter = tk.counted(tk.gram(L))
        found = tk.diagonal(A, 19, rng=0, probes=law)
        assert found.num_matvecs == counter.total <= 19
        same = tk.diagonal(L @ L.T, 9, rng=0, probes=law)
        assert np.allclose(found.value, same.value)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_dimensions_are_exact(n: int) -> None:
    B = np.eye(n) + 0.1
    for law in (probes.coloured(np.eye(n)), probes.hierarchical((n,)), probes.kronecker((n,))):
        for f in (tk.hutchinson, tk.diagonal, tk.trace_inverse):
            assert np.all(f(B, n, rng=0, probes=law).standard_error == 0)
        assert np.isclose(tk.hutchinson(B, rtol=0.1, rng=0, probes=law).value, 1.1 * n)
