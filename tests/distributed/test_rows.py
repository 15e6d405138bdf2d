"""Rows that processes hold: every function finds what one process finds, or says why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from capabilities import CASES, Case
from conftest import matrix
from test_capabilities import SEED, positive
from threads import divided, together, whole

import tracekit as tk
from tracekit._arrays import householder_qr, weights

N = 24
CUTS = ((0, 12, 24), (0, 5, 5, 24))  # the second with a process that holds nothing


def agree(found: Sequence[Any], expected: Any, read: Callable[[Any], Any] = np.asarray) -> None:
    wanted = read(expected)
    np.testing.assert_allclose(
        whole([x if isinstance(x, BaseException) else read(x) for x in found]), wanted,
        rtol=1e-10, atol=1e-10 * np.max(np.abs(wanted)),
    )  # fmt: skip


def value(found: Any) -> Any:
    return found if isinstance(found, tk.RowArray) else getattr(found, "value", found)


def by_products(A: np.ndarray) -> tk.LinearOperator:
    """A matrix whose entries are not read."""
    return tk.LinearOperator(A.shape, lambda X: A @ X, lambda X: A.conj().T @ X, dtype=A.dtype)


of_rows = [case for case in CASES if "MPI rows" not in case.lacks]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("case", of_rows, ids=lambda case: case.name)
def test_every_function_finds_what_one_process_finds(case: Case, cuts: Sequence[int]) -> None:
    A = positive()

    def program(layout: tk.RowLayout) -> Any:
        operands = (divided(X, layout) if X.ndim == 2 else X for X in case.operands(A))
        return case.run(*operands, case.budget, rng=SEED)

    operands = (by_products(X) if X.ndim == 2 else X for X in case.operands(A))
    found, alone = together(cuts, program), case.run(*operands, case.budget, rng=SEED)
    agree(found, alone, lambda x: case.read(x, A))
    if isinstance(alone, tk.Estimate):
        agree(found, alone, lambda x: x.standard_error)
        assert {x.num_matvecs for x in found} == {alone.num_matvecs}


@pytest.mark.parametrize("kind", ["real", "complex", "complex psd"])
def test_matrices_of_every_kind(kind: str) -> None:
    A = matrix(kind, N)
    calls: list[Callable[[Any], Any]] = [
        lambda A: tk.hutchinson(A, 6, rng=1), lambda A: tk.hutchpp(A, 9, rng=1),
        lambda A: tk.xtrace(A, 8, rng=1), lambda A: tk.xdiag(A, 8, rng=1),
        lambda A: tk.nuclear_norm(A, 20, rng=1), lambda A: tk.frobenius_norm(A, 9, rng=1),
        lambda A: tk.exact_trace(A), lambda A: tk.trace(A, rtol=0.3, rng=1),
        lambda A: tk.partial_trace(A, (4, 6), 0, 2, rng=1),
    ]  # fmt: skip
    for call in calls:
        found = together(CUTS[1], lambda layout: call(divided(A, layout)))  # noqa: B023
        agree(found, call(A), value)


def test_sketches_of_norms_grow() -> None:
    A = matrix("psd", 60)
    calls: list[Callable[[Any], Any]] = [
        lambda A: tk.frobenius_norm(A, 40, rng=1, rtol=1e-9),
        lambda A: tk.frobenius_norm(tk.gram(A), 40, rng=1, rtol=1e-9),
        lambda A: tk.alignment(A, A, 40, rng=1, rtol=1e-9),
        lambda A: tk.one_sided_summary(A, 40, rng=1, rtol=1e-9).effective_rank,
    ]
    for call in calls:
        found = together((0, 5, 5, 60), lambda layout: call(divided(A, layout)))  # noqa: B023
        agree(found, call(by_products(A)), value)


def test_factors_of_few_columns() -> None:
    L = matrix("real", N)[:, :7]
    calls: list[Callable[[Any], Any]] = [
        lambda L: tk.one_sided(L, 4, rng=1), lambda L: tk.xnystrace(tk.gram(L), 5, rng=1),
        lambda L: tk.hutchpp(tk.gram(L), 6, rng=1), lambda L: tk.exact_trace(tk.gram(L)),
        lambda L: tk.one_sided_summary(L, 6, rng=1).effective_rank,
        lambda L: tk.nuclear_norm(L, 12, rng=1), lambda L: tk.diagonal(tk.gram(L), 5, rng=1),
        lambda L: tk.effective_dimension(tk.gram(L), 0.1, 12, rng=1),
    ]  # fmt: skip
    for call in calls:
        found = together(CUTS[0], lambda layout: call(divided(L, layout)))  # noqa: B023
        agree(found, call(L), value)


@pytest.mark.parametrize(
    "probes",
    [tk.probes.rademacher, tk.probes.normal, tk.probes.sphere, tk.probes.orthogonal,
     tk.probes.hadamard],
    ids=lambda probes: probes.__name__,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [float, complex, np.float32])
def test_probes_are_rows_of_those_of_one_process(probes: Any, dtype: Any) -> None:
    def program(layout: tk.RowLayout | None) -> Any:
        A = tk.LinearOperator((N, N), lambda X: X, dtype=np.dtype(dtype), layout=layout)
        return probes(tk.probes.Source(3, A), N, 5)

    tolerance = 1e-5 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(whole(together(CUTS[1], program)), program(None), atol=tolerance)


def test_probes_that_each_process_makes_whole_are_cut() -> None:
    A = matrix("psd", N)
    for probes in (tk.probes.tiled(tk.probes.rademacher, 2), lambda source, n, m: np.eye(n)[:, :m]):
        found = together(
            CUTS[0],
            lambda rows: tk.hutchinson(divided(A, rows), 4, rng=0, probes=probes),  # noqa: B023
        )
        agree(found, tk.hutchinson(A, 4, rng=0, probes=probes), value)


def test_no_seed_is_one_seed_for_all() -> None:
    A = matrix("real", N)

    def program(layout: tk.RowLayout) -> Any:
        return tk.hutchinson(divided(A, layout), 8).value

    first, second = (whole(together(CUTS[0], program)) for _ in range(2))
    assert first != second


def test_generators_draw_what_one_process_draws() -> None:
    A = matrix("real", N)
    found = together(
        CUTS[0], lambda rows: tk.hutchpp(divided(A, rows), 9, rng=np.random.default_rng(1)).value
    )
    agree(found, tk.hutchpp(A, 9, rng=np.random.default_rng(1)).value)


def test_keys_of_jax_draw_what_one_process_draws() -> None:
    jax = pytest.importorskip("jax")
    key, like = jax.random.key(0), {"xp": jax.numpy, "dtype": jax.numpy.float32}
    for probes in (tk.probes.rademacher, tk.probes.normal, tk.probes.hadamard):

        def program(layout: tk.RowLayout | None, probes: Any = probes) -> Any:
            A = tk.LinearOperator((N, N), lambda X: X, layout=layout, **like)
            return probes(tk.probes.Source(key, A), N, 5)

        np.testing.assert_allclose(whole(together(CUTS[0], program)), program(None), rtol=1e-6)


def test_operations_are_those_of_whole_arrays() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((2, N, 3))
    B, w = rng.standard_normal((3, 4)), rng.standard_normal(N)
    cases: dict[str, Callable[[Any, Any, Any], Any]] = {
        "scalars": lambda xp, X, Y: 2 - X / (1 + Y * Y) ** 0.5,
        "truth": lambda xp, X, Y: xp.where((X > Y) | ~(X <= 0), X, Y),
        "counts": lambda xp, X, Y: xp.sum(xp.astype(X > 0, xp.float64)),
        "rows": lambda xp, X, Y: X * w[:, None] + B[0, :3],
        "sums": lambda xp, X, Y: xp.sum(X, axis=0) + xp.sum(X * Y, axis=-2),
        "kept sums": lambda xp, X, Y: X / xp.sum(X, axis=0, keepdims=True),
        "across": lambda xp, X, Y: xp.sum(X, axis=1),
        "mean": lambda xp, X, Y: xp.mean(X) + xp.mean(Y, axis=0),
        "largest": lambda xp, X, Y: xp.max(X, axis=0) - xp.min(Y),
        "across largest": lambda xp, X, Y: xp.max(X, axis=1),
        "any": lambda xp, X, Y: xp.any(X > 2, axis=0) & xp.all(X < 9),
        "small": lambda xp, X, Y: (X @ B) @ (B.T @ B),
        "inner": lambda xp, X, Y: xp.matrix_transpose(X) @ Y,
        "inner with a whole one": lambda xp, X, Y: w[None, :] @ X,
        "whole at the right": lambda xp, X, Y: X.T @ w[:, None],
        "left": lambda xp, X, Y: B.T @ X.T,
        "stack": lambda xp, X, Y: xp.sum(xp.stack([X, Y])[1, ...] * X, axis=-2),
        "stacked last": lambda xp, X, Y: xp.stack([X, Y], axis=-1)[:, 0, :],
        "beside": lambda xp, X, Y: xp.concat([X, Y], axis=1)[:, 1:5],
        "one column": lambda xp, X, Y: X[:, 0] * Y[:, 2],
        "new axes": lambda xp, X, Y: (X[:, None, :] * B.T[None, :, :])[..., 1],
        "apart": lambda xp, X, Y: xp.permute_dims(xp.reshape(X, (N, 3, 1)), (1, 0, 2)),
        "back": lambda xp, X, Y: xp.reshape(xp.reshape(X, (1, N, -1)), (N, 3)),
        "moved": lambda xp, X, Y: xp.moveaxis(X, 0, 1),
        "wide": lambda xp, X, Y: xp.broadcast_to(X[None, ...], (2, N, 3)),
        "rolled": lambda xp, X, Y: xp.roll(X, 1, axis=0),
        "taken": lambda xp, X, Y: xp.take(X, np.array([2, 0]), axis=1),
        "weights": lambda xp, X, Y: X * weights(X)[:, None],
    }
    numpy = tk.as_operator(np.eye(2)).xp

    def program(layout: tk.RowLayout) -> dict[str, Any]:
        A = tk.LinearOperator((N, N), lambda X: X, layout=layout)
        place: Any = A.layout.place
        return {name: case(A.xp, place(X), place(Y)) for name, case in cases.items()}

    found = together((0, 5, 5, 17, 24), program)
    for name, case in cases.items():
        got = whole([x if isinstance(x, BaseException) else x[name] for x in found])
        np.testing.assert_allclose(got, case(numpy, X, Y), rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["condition 1e14", "rank 5"])
def test_tall_bases_are_orthonormal(count: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    U, _, V = np.linalg.svd(rng.standard_normal((512, 16)), full_matrices=False)
    s = np.logspace(0, -14, 16) if kind != "rank 5" else np.arange(16) < 5
    Y = U * s @ V
    cuts = np.linspace(0, 512, count + 1).astype(int).tolist()

    def program(layout: tk.RowLayout) -> Any:
        A = tk.LinearOperator((512, 512), lambda X: X, layout=layout)
        place: Any = A.layout.place
        Q, R = householder_qr(place(Y))
        return Q.local, R

    found = together(cuts, program)
    Q, R = np.concatenate([Q for Q, _ in found]), found[0][1]
    assert np.abs(Q.T @ Q - np.eye(16)).max() < 1e-14
    assert np.abs(Q @ R - Y).max() < 1e-14


def said(found: Sequence[Any]) -> set[str]:
    """What all processes were told: an error each."""
    assert all(isinstance(error, Exception) for error in found), found
    return {str(error) for error in found}


def test_processes_that_do_not_agree_are_told() -> None:
    A = matrix("psd", N)

    def call(differ: Callable[[Any, int], Any]) -> set[str]:
        return said(together(CUTS[0], lambda rows: differ(divided(A, rows), rows.rank)))

    [seeds] = call(lambda A, rank: tk.hutchinson(A, 6, rng=rank))
    assert "generators differ" in seeds
    [budgets] = call(lambda A, rank: tk.hutchinson(A, 6 + rank, rng=0))
    assert "6 and 7 columns in different processes" in budgets
    [sizes] = said(together(CUTS[0], lambda rows: tk.LinearOperator(
        (N + rows.rank, N + rows.rank), lambda X: X, layout=rows)))  # fmt: skip
    assert "24 and 25 rows" in sizes
    [rows] = said(together((0, 10, 20), lambda rows: tk.LinearOperator(
        (N, N), lambda X: X, layout=rows)))  # fmt: skip
    assert "hold rows [(0, 10), (10, 20)] of 24" in rows


def test_a_process_that_fails_ends_all() -> None:
    def program(rows: tk.RowLayout) -> Any:
        def product(X: np.ndarray) -> np.ndarray:
            if rows.rank:
                raise OSError("the disk is full")
            return X

        return tk.hutchinson(tk.LinearOperator((N, N), product, layout=rows), 4, rng=0)

    assert said(together(CUTS[0], program)) == {"the disk is full", "matmat failed in process 1"}


def test_products_of_other_rows_are_refused() -> None:
    def program(rows: tk.RowLayout) -> Any:
        A = tk.LinearOperator((N, N), lambda X: np.ones((N, X.shape[1])), layout=rows)
        return tk.hutchinson(A, 4, rng=0)

    first, second = together(CUTS[0], program)
    assert "holds rows 0 to 12; it must return an array of shape (12, 4)" in str(first)
    assert "holds rows 12 to 24" in str(second)


def test_what_needs_all_rows_says_so() -> None:
    A = matrix("psd", N)

    def program(rows: tk.RowLayout) -> list[str]:
        B, told = divided(A, rows), []
        d = tk.diagonal(B, 3, rng=0).value
        for call in (
            lambda: np.asarray(d), lambda: B.xp.linalg.svd(B.layout.place(A[:, :5])),  # type: ignore[union-attr]
            lambda: B.xp.linalg.vector_norm(d), lambda: B.xp.linalg.solve(np.eye(N), d[:, None]),
            lambda: B.xp.sort(d), lambda: d[3], lambda: B.xp.concat([d, d], axis=0),
            lambda: d[:, None] * d[None, :], lambda: d[:, None] @ d[None, :],
            lambda: B.xp.reshape(d, (4, 6)), lambda: tk.vstack([B, B]).matmat(B.layout.place(A)),  # type: ignore[union-attr]
        ):  # fmt: skip
            with pytest.raises((TypeError, ValueError)) as caught:
                call()
            told.append(str(caught.value))
        return told

    for told in together(CUTS[0], program):
        assert not isinstance(told, BaseException), told
        assert "gather them" in told[0]
        assert all("row" in line or "dims" in line for line in told), told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((slice(None), abs, 0, 1), r"`rows` must be slice\(start, stop\)"),
        ((slice(0, 4), abs, 1, 1), "`rank` must be below `size`"),
        ((slice(0, 4), 1, 0, 1), "`allsum` must be a function"),
    ],
)
def test_layouts_that_cannot_be(arguments: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        tk.RowLayout(*arguments)


M = 48
CALLS: dict[str, Callable[[Any], Any]] = {
    "hutchinson": lambda A: tk.hutchinson(A, M, rng=0),
    "hutchpp": lambda A: tk.hutchpp(A, M, rng=0),
    "nahutchpp": lambda A: tk.nahutchpp(A, M, rng=0),
    "xtrace": lambda A: tk.xtrace(A, M, rng=0),
    "xnystrace": lambda A: tk.xnystrace(A, M, rng=0),
    "trace": lambda A: tk.trace(A, rtol=0.01, num_matvecs=M, rng=0),
    "trace, psd": lambda A: tk.trace(A, rtol=1e-4, num_matvecs=M, rng=0, psd=True),
    "diagonal": lambda A: tk.diagonal(A, M, rng=0),
    "xdiag": lambda A: tk.xdiag(A, M, rng=0),
    "xnysdiag": lambda A: tk.xnysdiag(A, M, rng=0),
    "block_traces": lambda A: tk.block_traces(A, (4, A.shape[0] // 4), 1, M, rng=0),
    "partial_trace": lambda A: tk.partial_trace(A, (8, A.shape[0] // 8), 1, 3, rng=0),
    "partial_trace, of the first": lambda A: tk.partial_trace(A, (A.shape[0] // 8, 8), 0, 3, rng=0),
    "frobenius_norm": lambda A: tk.frobenius_norm(A, M, rng=0),
    "effective_rank": lambda A: tk.effective_rank(A, M, rng=0),
    "logdet": lambda A: tk.logdet(A, M, rng=0),
    "logdet, shift": lambda A: tk.logdet(A, M, rng=0, shift=0.01),
    "logdet, bounds": lambda A: tk.logdet(A, M, rng=0, bounds=(0.01, 1.02)),
    "logdet, general": lambda A: tk.logdet(A, 2 * M, rng=0, hermitian=False),
    "trace_inverse": lambda A: tk.trace_inverse(A, M, rng=0),
    "effective_dimension": lambda A: tk.effective_dimension(A, 0.1, M, rng=0),
    "nuclear_norm": lambda A: tk.nuclear_norm(A, M, rng=0),
    "entropy_rank": lambda A: tk.entropy_rank(A, M, rng=0),
    "exp, undeflated": lambda A: tk.trace_function(A, np.exp, M, rng=0, deflate=0),
    "exp, deflated": lambda A: tk.trace_function(A, np.exp, M, rng=0, deflate=5),
    "exp, Chebyshev": lambda A: tk.trace_function(
        A, np.exp, M, rng=0, quadrature=tk.quadrature.chebyshev()),
    "exp, three terms": lambda A: tk.trace_function(
        A, np.exp, M, rng=0, quadrature=tk.quadrature.lanczos(reorthogonalise=False)),
    "merged": lambda A: tk.merge([tk.hutchpp(A, 24, rng=seed) for seed in (0, 1)]),
    "exp, Arnoldi": lambda A: tk.trace_function(A, np.exp, M, rng=0, hermitian=False),
    "spectral_run": lambda A: tk.spectral_run(A, M, rng=0).trace(tk.functions.log),
    "spectral_run, observable": lambda A: tk.spectral_run(
        A, M, rng=0, observable=A @ A).expectation(np.exp),
    "spectral_density": lambda A: tk.spectral_density(A, M, rng=0).density(np.array([0.02, 0.5])),
    "spectral_run, extended": lambda A: tk.spectral_run(A, 24, rng=0).extend(
        num_matvecs=24).trace(np.exp),
    "function_operator": lambda A: tk.hutchinson(
        tk.function_operator(A, tk.functions.sqrt, 12), 4, rng=0),
}  # fmt: skip


def decaying(n: int, layout: tk.RowLayout | None = None) -> tk.LinearOperator:
    rows = slice(0, n) if layout is None else layout.rows
    d = np.arange(1.0, n + 1)[rows, None] ** -1.0 + 0.01
    return tk.LinearOperator((n, n), lambda X: d * X, lambda X: d * X, layout=layout)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_sent_does_not_grow_with_the_rows(name: str) -> None:
    """On 2 processes; values are those of one process."""

    def program(layout: tk.RowLayout) -> Any:
        sent: list[int] = []

        def allsum(x: np.ndarray) -> np.ndarray:
            sent.append(x.size)
            return np.asarray(layout.allsum(x))

        counted = tk.RowLayout(layout.rows, allsum, layout.rank, layout.size)
        found = CALLS[name](decaying(layout.size * n // 2, counted))
        return value(found), getattr(found, "standard_error", 0.0), sent

    largest = {}
    for n in (256, 1024):
        found = together((0, n // 3, n), program)
        alone = CALLS[name](decaying(n))
        for i, expected in enumerate((value(alone), getattr(alone, "standard_error", 0.0))):
            np.testing.assert_allclose(
                whole([x if isinstance(x, BaseException) else x[i] for x in found]), expected,
                rtol=1e-10 if i == 0 else 1e-6, atol=1e-10 * np.max(np.abs(value(alone))),
            )  # fmt: skip
        largest[n] = max(found[0][2])
    kept = 8 * 8 * 3 if name.startswith("partial") else 0
    assert largest[1024] <= max(4 * M * M, kept)


ODD = ((0, 1, 89, 90), (0, 45, 90, 90), (0, 90, 90, 90), (0, 31, 61, 90))  # of 90 rows


@pytest.mark.parametrize("cuts", ODD, ids=str)
@pytest.mark.parametrize(("dims", "axis"), [((45, 2), 0), ((45, 2), 1), ((2, 45), 0), ((2, 45), 1),
                                            ((2, 15, 3), (0, 2)), ((3, 15, 2), 1)])  # fmt: skip
def test_partial_traces_where_rows_are_cut_anywhere(
    cuts: Sequence[int], dims: Any, axis: Any
) -> None:
    rng = np.random.default_rng(0)
    L, A = rng.standard_normal((90, 5)), rng.standard_normal((90, 90))
    calls: list[Callable[[Any, Any], Any]] = [
        lambda L, A: tk.partial_trace(A, dims, axis, 3, rng=0),
        lambda L, A: tk.partial_trace(A, dims, axis),
        lambda L, A: tk.partial_trace(tk.gram(L), dims, axis),
        lambda L, A: tk.block_traces(A, dims, axis, 3, rng=0),
    ]
    for call in calls:
        found = together(cuts, lambda rows: call(divided(L, rows), divided(A, rows)))  # noqa: B023
        agree(found, call(L, by_products(A)), value)


def test_budgets_that_pay_for_all_columns() -> None:
    A = matrix("psd", N) + np.eye(N)
    calls: list[Callable[[Any], Any]] = [
        lambda A: tk.logdet(A, 60, rng=0), lambda A: tk.trace_inverse(A, 60, rng=0),
        lambda A: tk.effective_dimension(A, 0.1, 60, rng=0),
        lambda A: tk.estrada_index(A, 60, rng=0),
        lambda A: tk.spectral_run(A, 60, rng=0).logdet(), lambda A: tk.nuclear_norm(A, 99, rng=0),
        lambda A: tk.spectral_density(A, 60, rng=0).density(np.array([1.5])),
        lambda A: tk.merge([tk.diagonal(A, 8, rng=0), tk.diagonal(A, 8, rng=1)]),
    ]  # fmt: skip
    for call in calls:
        found = together(CUTS[1], lambda rows: call(divided(A, rows)))  # noqa: B023
        agree(found, call(by_products(A)), value)
    tall = matrix("real", N)[:, :7]
    found = together(CUTS[1], lambda rows: tk.frobenius_norm(divided(tall, rows), 60, rng=0))
    agree(found, tk.frobenius_norm(tall, 60, rng=0), value)
    wide = np.random.default_rng(0).standard_normal((90, 120)) / np.arange(1, 121)
    found = together(ODD[3], lambda rows: tk.trace(tk.gram(divided(wide, rows)), rtol=0.05, rng=0))
    agree(found, tk.trace(tk.gram(wide), rtol=0.05, rng=0), value)


def test_arguments_and_results_of_products_are_checked() -> None:
    def program(rows: tk.RowLayout, product: Any) -> Any:
        return tk.hutchinson(tk.LinearOperator((N, N), product, layout=rows), 4, rng=0)

    def writes(X: np.ndarray) -> np.ndarray:
        X *= 2
        return X

    for error in together(CUTS[0], lambda rows: program(rows, writes)):
        assert "wrote into its argument" in str(error)
    first, second = together(
        CUTS[0], lambda rows: program(rows, lambda X: X * (1j if rows.rank else 1))
    )
    assert str(first) == "matmat failed in process 1"
    assert "returned dtype complex128 where float64 is declared" in str(second)


def test_rows_have_no_truth_value_and_no_masks() -> None:
    layout = tk.RowLayout(slice(0, N), abs, 0, 1)
    A = tk.LinearOperator((N, N), lambda X: X, layout=layout)
    d = tk.diagonal(A, 3, rng=0).value
    with pytest.raises(ValueError, match="truth value of a RowArray"):
        bool(d < 0)
    with pytest.raises(TypeError, match="indexed by slices"):
        d[d > 1]
