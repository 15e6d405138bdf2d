"""Numbers of a seed: functions of law, column and row, whoever draws them and however."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from conftest import Library, installed

import tracekit as tk
from tracekit import probes
from tracekit.probes import counters
from tracekit.probes.source import Source

LAWS = {"signs": 1, "normal": 2, "uniform": 3}
DRAWS = ("signs", "normal")

laws = pytest.mark.parametrize("law", LAWS)
draws = pytest.mark.parametrize("draw", DRAWS)
fields = pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])


def place(lib: Library, *, cplx: bool = False, dtype: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        xp=lib.xp, dtype=dtype or (lib.complex if cplx else lib.real), device=lib.device
    )


def numpy(**kwargs: Any) -> SimpleNamespace:
    return place(next(installed("numpy")), **kwargs)


def twin(seed: Any, law: str, row: int, column: int) -> float:
    """One number, by a generator of its own."""
    first, second = (int(word) for word in np.random.SeedSequence(seed).generate_state(2, "u8"))
    step, within = divmod(row, 256 if law == "signs" else 8)
    key = np.array([first, second ^ LAWS[law]], dtype=np.uint64)
    philox = np.random.Philox(key=key, counter=[step, 0, column, 0])
    words = [int(word) for word in philox.random_raw(4)]
    if law == "signs":
        return 1 - 2 * (words[within // 64] >> within % 64 & 1)
    word = words[within // 2]
    low, high = ((half + 0.5) / 2**32 for half in (word % 2**32, word >> 32))
    if law == "uniform":
        return (low, high)[within % 2]
    angle = 2 * math.pi * high
    return math.sqrt(-2 * math.log(low)) * (math.cos, math.sin)[within % 2](angle)


def block(law: str, rows: range, columns: range, seed: int = 5) -> Any:
    key = counters.key_of(np.random.SeedSequence(seed))
    return counters.draw(key, counters.Block(law, rows, columns))


@laws
def test_numbers_are_those_of_one_generator_each(law: str) -> None:
    rows, columns = range(250, 530), range(3, 6)
    found = block(law, rows, columns)
    expected = [[twin(5, law, i, j) for j in columns] for i in rows]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-14 if law == "normal" else 0)


@draws
def test_sources_draw_these_numbers(draw: str) -> None:
    for seed in (5, np.int64(5), np.random.SeedSequence(5), np.random.SeedSequence([5, 7])):
        of = seed.entropy if isinstance(seed, np.random.SeedSequence) else 5
        found = getattr(Source(seed, numpy()), draw)((9, 2))
        expected = [[twin(of, draw, i, j) for j in range(2)] for i in range(9)]
        np.testing.assert_allclose(found, expected, atol=2e-14)
    turns = np.array([twin(5, "uniform", i, 0) for i in range(9)])
    normal = np.array([twin(5, "normal", i, 0) for i in range(18)]) / math.sqrt(2)
    found = getattr(Source(5, numpy(cplx=True)), draw)((9, 1))[:, 0]
    expected = np.exp(2j * np.pi * turns) if draw == "signs" else normal[::2] + 1j * normal[1::2]
    np.testing.assert_allclose(found, expected, atol=2e-14)


@draws
@fields
def test_rows_and_columns_drawn_in_pieces_are_those_of_the_whole(draw: str, cplx: bool) -> None:
    n, m = 3001, 7
    rng = np.random.default_rng(0)
    for lib in installed("numpy", "torch", "jax"):
        whole = lib.numpy(getattr(Source(3, place(lib, cplx=cplx)), draw)((n, m)))
        cuts = [0, 0, *sorted(rng.integers(0, n, 3).tolist()), n]
        for a, b in itertools.pairwise(cuts):
            source = Source(3, place(lib, cplx=cplx), rows=slice(a, b))
            parts = [lib.numpy(getattr(source, draw)((n, k))) for k in (1, 0, 4, 2)]
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[a:b])


@draws
@fields
def test_rows_do_not_depend_on_how_many_there_are(draw: str, cplx: bool) -> None:
    long, short = (getattr(Source(3, numpy(cplx=cplx)), draw)((n, 3)) for n in (1500, 77))
    np.testing.assert_array_equal(long[:77], short)


@draws
@fields
def test_rows_of_any_generator_are_the_cut_of_its_whole_draw(draw: str, cplx: bool) -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    for name, make in (
        ("numpy", lambda: np.random.default_rng(5)),
        ("torch", lambda: torch.Generator().manual_seed(5)),
        ("jax", lambda: jax.random.key(5)),
    ):
        (lib,) = installed(name)
        for rows in (slice(0, 4), slice(5, None), slice(-3, None), slice(4, 4), slice(6, 2)):
            whole = getattr(Source(make(), place(lib, cplx=cplx)), draw)((9, 2))
            part = getattr(Source(make(), place(lib, cplx=cplx), rows=rows), draw)((9, 2))
            np.testing.assert_array_equal(lib.numpy(part), lib.numpy(whole)[rows])


@fields
@pytest.mark.parametrize("law", [probes.rademacher, probes.normal, probes.hadamard])
def test_distributions_of_some_rows_are_the_cut_of_the_whole(law: Any, cplx: bool) -> None:
    whole = probes.draw(law, Source(3, numpy(cplx=cplx)), 300, 5)
    for rows in (slice(0, 100), slice(37, 251), slice(299, 300), slice(100, 100)):
        part = probes.draw(law, Source(3, numpy(cplx=cplx), rows=rows), 300, 5)
        np.testing.assert_array_equal(part, whole[rows])


@pytest.mark.parametrize(
    "law",
    [probes.sphere, probes.orthogonal, probes.tiled(probes.normal, 2)],
    ids=lambda law: law.__name__,
)
def test_distributions_that_need_whole_columns_say_so(law: Any) -> None:
    with pytest.raises(ValueError, match=r"needs whole columns.* rows 2 to 5 of 8"):
        law(Source(0, numpy(), rows=slice(2, 5)), 8, 2)
    assert law(Source(0, numpy(), rows=slice(0, 8)), 8, 2).shape == (8, 2)


def test_rows_that_are_no_range_are_refused() -> None:
    with pytest.raises(TypeError, match="`rows` must be a slice"):
        Source(0, numpy(), rows=range(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step of 1"):
        Source(0, numpy(), rows=slice(0, 8, 2))


@laws
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_programs_draw_the_same_numbers(law: str, dtype: str) -> None:
    jax = pytest.importorskip("jax")
    key = counters.key_of(np.random.SeedSequence(5))
    for rows, columns in ((range(2000), range(9)), (range(1001, 1300), range(2**20, 2**20 + 3))):
        wanted = counters.Block(law, rows, columns)
        expected = counters.draw(key, wanted)
        plain = counters.program(key, wanted, np.dtype(dtype), np)
        compiled, in_parts = (
            jax.jit(
                lambda wanted=wanted, parts=parts: counters.program(
                    key, wanted, dtype, jax.numpy, jax, parts
                )
            )()
            for parts in (1, 4 if len(rows) % 4 == 0 else 13)
        )
        tolerance = {"float32": 4e-6, "float64": 1e-13}[dtype] * (law != "signs")
        for found in (plain, compiled, in_parts):
            assert found.dtype == (np.int8 if law == "signs" else dtype)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@draws
@fields
@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
def test_what_is_compiled_draws_what_is_drawn_outside(draw: str, cplx: bool, single: bool) -> None:
    jax = pytest.importorskip("jax")
    (lib,) = installed("jax")
    dtypes = ("complex64" if cplx else "float32") if single else (lib.complex if cplx else lib.real)
    where = place(lib, dtype=jax.numpy.dtype(dtypes))

    def both() -> list[Any]:
        source = Source(7, where, rows=slice(10, 500))
        return [getattr(source, draw)((600, k)) for k in (2, 3)]

    for found, expected in zip(jax.jit(both)(), both(), strict=True):
        assert found.dtype == expected.dtype == where.dtype
        exact = draw == "signs" and not cplx
        atol = 0 if exact else 4e-6 if single else 1e-13
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=atol)


def constants(jaxpr: Any) -> list[int]:
    """Sizes of all arrays that a program holds."""
    sizes = [int(np.size(x)) for x in getattr(jaxpr, "consts", ())]
    for equation in jaxpr.eqns:
        sizes += [int(np.size(x.val)) for x in equation.invars if hasattr(x, "val")]
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                sizes += constants(inner) if hasattr(inner, "eqns") else []
    return sizes


@pytest.mark.parametrize("law", [probes.rademacher, probes.normal, probes.sphere, probes.hadamard])
def test_programs_hold_no_draws(law: Any) -> None:
    jax = pytest.importorskip("jax")
    n = 5000

    def estimate(d: Any) -> Any:
        A = tk.LinearOperator((n, n), lambda X: d[:, None] * X, dtype=d.dtype, xp=jax.numpy)
        return tk.hutchinson(A, 8, rng=0, probes=law).value

    d = jax.numpy.ones(n)
    assert max(constants(jax.make_jaxpr(jax.jit(estimate))(d))) < 100
    assert n in constants(jax.make_jaxpr(jax.jit(lambda x: x + np.arange(n)))(d))
    np.testing.assert_allclose(float(jax.jit(estimate)(d)), float(estimate(d)), rtol=1e-12)


@draws
def test_a_program_holds_few_arrays_at_a_time(draw: str) -> None:
    jax = pytest.importorskip("jax")
    (lib,) = installed("jax")
    n, m = 100_000, 8
    program = jax.jit(lambda: getattr(Source(0, place(lib)), draw)((n, m))).lower().compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes <= 4 * n * m * 8


def test_normals_are_normal_to_their_tails() -> None:
    X = block("normal", range(2_000_000), range(6), seed=0)
    for j in range(6):
        assert scipy.stats.kstest(X[: 200_000 * (j + 1) // 6, j], "norm").pvalue > 1e-3
    for c in (1, 2, 3, 4, 5):
        share = 2 * scipy.stats.norm.sf(c)
        count = scipy.stats.binom(X.size, share)
        assert count.ppf(1e-4) <= np.sum(np.abs(X) > c) <= count.ppf(1 - 1e-4), c
    assert 5 < np.abs(X).max() < 6.8
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = np.std(X**power) / math.sqrt(X.size)
        assert abs(np.mean(X**power) - moment) < 4 * spread, power


@laws
def test_uniform_and_signs_take_each_value_equally_often(law: str) -> None:
    X = block(law, range(200_000), range(5), seed=1)
    edges = {"signs": 2, "uniform": 64, "normal": 64}[law]
    U = scipy.stats.norm.cdf(X) if law == "normal" else (X + 1) / 2.5 if law == "signs" else X
    counts = np.histogram(U, bins=edges, range=(0, 1))[0]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_rows_columns_laws_and_seeds_are_independent() -> None:
    n, found = 200_000, []
    for seed, law in itertools.product((0, 1, 2, 2**40), LAWS):
        X = block(law, range(n), range(4), seed).astype(float)
        X = X - 0.5 if law == "uniform" else X
        found += [X, np.roll(X, 1, axis=0)[:, :1], np.roll(X, 8, axis=0)[:, :1]]
    Z = np.concatenate(found, axis=1)
    for W in (Z, np.sign(Z), np.abs(Z)[:, np.ptp(np.abs(Z), axis=0) > 0]):
        W = W - W.mean(axis=0)
        correlations = np.corrcoef(W.T)[np.triu_indices(W.shape[1], 1)] * math.sqrt(n)
        assert np.abs(correlations).max() < 5
        assert abs(np.std(correlations) - 1) < 5 / math.sqrt(2 * correlations.size)


def test_distinct_numbers_do_not_depend_on_what_else_is_drawn_but_on_the_column() -> None:
    alone, after = Source(0, numpy()), Source(0, numpy())
    after.signs((5, 1))
    first, second = alone.distinct(1000, 9), alone.distinct(1000, 9)
    np.testing.assert_array_equal(second, after.distinct(1000, 9))
    assert not np.array_equal(first, second)


def test_the_state_of_a_seed_is_its_key_and_the_count_of_columns() -> None:
    for seed in (5, None, np.random.SeedSequence(8)):
        source = Source(seed, numpy())
        source.normal((9, 3))
        source.distinct(9, 3)
        state = json.loads(json.dumps(source.state()))
        assert state["columns"] == 4
        later = Source(None, numpy())
        later.restore(state)
        np.testing.assert_array_equal(later.signs((70, 2)), source.signs((70, 2)))
