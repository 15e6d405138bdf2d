"""Random columns from whichever generator the caller holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Library, installed

import tracekit
from tracekit.probes.source import Source

DRAWS = ("normal", "signs")
HOST = ("numpy", "strict:CPU_DEVICE", "strict:device1", "torch", "jax")


def place(lib: Library, dtype: Any = None) -> SimpleNamespace:
    return SimpleNamespace(xp=lib.xp, dtype=dtype or lib.real, device=lib.device)


def generators(lib: Library) -> dict[str, Callable[[], Any]]:
    """Every kind of rng that this library takes, as functions that make it anew."""
    kinds: dict[str, Callable[[], Any]] = {
        "int": lambda: 5,
        "numpy int": lambda: np.int64(5),
        "SeedSequence": lambda: np.random.SeedSequence(5),
        "numpy Generator": lambda: np.random.default_rng(5),
    }
    if lib.family == "torch":
        import torch

        kinds["torch.Generator"] = lambda: torch.Generator().manual_seed(5)
        if lib.device.type == "emulated":
            from accelerator import Generator

            kinds["torch.Generator of the device"] = lambda: Generator().manual_seed(5)
        elif lib.device.type != "cpu":
            kinds["torch.Generator of the device"] = lambda: torch.Generator(
                lib.device
            ).manual_seed(5)
    if lib.family == "jax":
        import jax

        kinds["new key"] = lambda: jax.random.key(5)
        kinds["old key"] = lambda: jax.random.PRNGKey(5)
    if lib.name == "cupy":
        import cupy

        kinds["cupy Generator"] = lambda: cupy.random.default_rng(5)
    return kinds


def drawn(lib: Library, make: Callable[[], Any], call: Callable[[Any], Any]) -> Any:
    """What a call draws with a generator; with a key of JAX, in one program."""
    rng = make()
    if lib.family != "jax" or not hasattr(rng, "dtype") or isinstance(rng, np.integer):
        return call(rng)
    return transforms().jit(call)(rng)


def transforms() -> Any:
    return pytest.importorskip("jax", reason="JAX is not installed")


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_one_seed_gives_the_same_numbers_in_every_library(draw: str, cplx: bool) -> None:
    found = []
    for lib in installed(*HOST):
        source = Source(5, place(lib, lib.complex if cplx else lib.real))
        found.append(lib.numpy(getattr(source, draw)((33, 4))))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_draws_are_at_home_whatever_the_generator(eager: Library, draw: str, cplx: bool) -> None:
    dtype = eager.complex if cplx else eager.real
    for make in generators(eager).values():
        X = getattr(Source(make(), place(eager, dtype)), draw)((9, 4))
        assert tuple(X.shape) == (9, 4)
        assert X.dtype == dtype
        assert eager.at_home(X)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_columns_do_not_depend_on_how_many_are_drawn_at_a_time(draw: str, cplx: bool) -> None:
    for lib in installed("numpy", "torch", "jax", "cupy"):
        where = place(lib, lib.complex if cplx else lib.real)
        for kind, make in generators(lib).items():

            def of(widths: tuple[int, ...], rng: Any, where: Any = where) -> list[Any]:
                source = Source(rng, where)
                return [getattr(source, draw)((65, k)) for k in widths]

            (together,) = drawn(lib, make, partial(of, (70,)))
            parts = [lib.numpy(X) for X in drawn(lib, make, partial(of, (1, 2, 30, 37)))]
            np.testing.assert_array_equal(
                np.concatenate(parts, axis=1), lib.numpy(together), err_msg=f"{lib} {kind}"
            )


def test_generators_advance_and_seeds_do_not() -> None:
    for lib in installed("numpy", "torch", "jax"):
        for kind, make in generators(lib).items():
            rng = make()
            first, second = (lib.numpy(Source(rng, place(lib)).normal((5, 2))) for _ in range(2))
            advances = kind in ("numpy Generator", "torch.Generator")
            assert np.array_equal(first, second) != advances, f"{lib} {kind}"


def test_no_seed_draws_afresh(eager: Library) -> None:
    first, second = (eager.numpy(Source(None, place(eager)).normal((5, 2))) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("n", [1, 7, 64, 65, 1000])
def test_signs_are_fair_for_every_length(n: int) -> None:
    for lib in installed("numpy", "torch", "jax"):
        for kind, make in generators(lib).items():

            def signs(rng: Any, lib: Library = lib) -> Any:
                return Source(rng, place(lib)).signs((n, 64_000 // n))

            S = lib.numpy(drawn(lib, make, signs))
            assert set(np.unique(S)) == {-1.0, 1.0}
            z = S.sum() / np.sqrt(S.size)
            row = S.sum(axis=1) / np.sqrt(S.shape[1])
            assert abs(z) < 5, f"{lib} {kind}: {z}"
            assert np.abs(row).max() < 6, f"{lib} {kind}"


def test_phases_and_normals_have_the_moments_of_their_law() -> None:
    size = (200, 500)
    root = np.sqrt(size[0] * size[1])
    for lib in installed("numpy", "torch", "jax"):
        for kind, make in generators(lib).items():

            def three(rng: Any, lib: Library = lib) -> tuple[Any, Any, Any]:
                of_complex = place(lib, lib.complex)
                P, N = Source(rng, of_complex).signs(size), Source(rng, of_complex).normal(size)
                return P, N, Source(rng, place(lib)).normal(size)

            P, N, R = (lib.numpy(X) for X in drawn(lib, make, three))
            np.testing.assert_allclose(np.abs(P), 1.0, rtol=1e-14)
            # each mean below has expectation zero and a standard deviation of at most 3 / root
            for mean in (
                P.mean(),
                (P**2).mean(),
                (P**4).mean(),
                N.mean(),
                (N**2).mean(),
                (np.abs(N) ** 2 - 1).mean(),
                R.mean(),
                (R**2 - 1).mean(),
                (R**3).mean() / 4,
            ):
                assert abs(mean) < 5 * 1.5 / root, f"{lib} {kind}: {mean}"


def test_distinct_numbers_are_distinct_and_uniform() -> None:
    for lib in installed("numpy", "torch", "jax", "strict:device1"):
        for kind, make in generators(lib).items():
            found = lib.numpy(Source(make(), place(lib)).distinct(64, 20))
            assert len(set(found.tolist())) == 20, f"{lib} {kind}"
            assert found.min() >= 0
            assert found.max() < 64
    counts = np.zeros(8)
    for seed in range(400):
        counts += np.bincount(
            Source(seed, place(next(installed("numpy")))).distinct(8, 3), minlength=8
        )
    z = (counts - 150) / np.sqrt(400 * 3 / 8 * 5 / 8)
    assert np.abs(z).max() < 5


def test_a_saved_state_goes_on_where_it_was_taken() -> None:
    for lib in installed("numpy", "torch", "jax"):
        for kind, make in generators(lib).items():
            source = Source(make(), place(lib))
            source.normal((9, 3))
            state = source.state()
            expected = lib.numpy(source.normal((9, 5)))
            later = Source(make(), place(lib))
            later.restore(state)
            np.testing.assert_array_equal(
                lib.numpy(later.normal((9, 5))), expected, err_msg=f"{lib} {kind}"
            )


@pytest.mark.parametrize(
    "rng", ["seed", 1.5, True, -1, [1, 2], object()], ids=lambda x: type(x).__name__
)
def test_what_is_no_generator_is_refused(eager: Library, rng: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="rng"):
        Source(rng, place(eager))


def test_generators_of_another_library_are_refused() -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    key, generator = jax.random.key(0), torch.Generator().manual_seed(0)
    for rng, names in (
        (key, ("numpy", "torch", "strict:CPU_DEVICE")),
        (generator, ("numpy", "jax")),
    ):
        for lib in installed(*names):
            with pytest.raises(TypeError, match="generator of the operator's own library"):
                tracekit.hutchinson(lib.array(np.eye(4)), 2, rng=rng)


@pytest.mark.parametrize("fresh", [False, True], ids=["numpy Generator", "None"])
def test_what_draws_once_is_refused_under_jit(fresh: bool) -> None:
    jax = pytest.importorskip("jax")
    A = jax.numpy.eye(6)

    def estimate(A: Any) -> Any:
        rng = None if fresh else np.random.default_rng(0)
        return tracekit.hutchinson(A, 3, rng=rng).value

    for call in (estimate, lambda A: jax.lax.map(lambda c: estimate(c * A), jax.numpy.ones(2))):
        with pytest.raises(TypeError, match=r"jax\.random\.key"):
            jax.jit(call)(A)
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        jax.jit(lambda: estimate(A))()  # an operator that is itself known does not make it right
    assert float(estimate(A)) == 6.0


# one call for each way to a random source; what is exact draws nothing, and needs none
DRAWN: dict[str, Callable[[Any], Any]] = {
    "hutchinson": lambda A: tracekit.hutchinson(A, 3),
    "hutchpp": lambda A: tracekit.hutchpp(A, 6),
    "nahutchpp": lambda A: tracekit.nahutchpp(A, 16),
    "xtrace": lambda A: tracekit.xtrace(A, 8),
    "xnystrace": lambda A: tracekit.xnystrace(A, 8),
    "xdiag": lambda A: tracekit.xdiag(A, 8),
    "xnysdiag": lambda A: tracekit.xnysdiag(A, 8),
    "diagonal": lambda A: tracekit.diagonal(A, 3),
    "block_traces": lambda A: tracekit.block_traces(A, (4, 5), 1, 3),
    "partial_trace": lambda A: tracekit.partial_trace(A, (4, 5), 1, 3),
    "one_sided": lambda A: tracekit.one_sided(A, 3),
    "frobenius_norm": lambda A: tracekit.frobenius_norm(A, 8),
    "effective_rank": lambda A: tracekit.effective_rank(A, 8),
    "inner": lambda A: tracekit.inner(A, A, 8),
    "alignment": lambda A: tracekit.alignment(A, A, 8),
    "target_alignment": lambda A: tracekit.target_alignment(A, A[:, 0], 8),
    "trace_function": lambda A: tracekit.trace_function(A, tracekit.functions.exp, 8),
    "logdet": lambda A: tracekit.logdet(A, 8),
    "trace": lambda A: tracekit.trace(tracekit.LinearOperator(A.shape, A.__matmul__, xp=jnp())),
    "trace, few": lambda A: tracekit.trace(
        tracekit.LinearOperator((99, 99), lambda X: X, xp=jnp()), num_matvecs=3
    ),
}


def jnp() -> Any:
    return pytest.importorskip("jax").numpy


@pytest.mark.parametrize("name", DRAWN)
def test_no_public_function_bakes_fresh_draws_into_compiled_code(name: str) -> None:
    jax = pytest.importorskip("jax")
    A = jax.numpy.eye(70 if name == "trace" else 20)
    with pytest.raises(TypeError, match=r"rng=None draws once.*jax\.random\.key\(0\)") as caught:
        jax.jit(lambda A: DRAWN[name](A).value)(A)
    assert "\n" not in str(caught.value)


def test_old_and_new_keys_of_one_seed_draw_alike() -> None:
    jax = pytest.importorskip("jax")
    (lib,) = installed("jax")
    old, new = (
        Source(key, place(lib)).normal((6, 3)) for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    np.testing.assert_array_equal(np.asarray(old), np.asarray(new))


def test_random_columns_under_jit_are_those_outside() -> None:
    jax = pytest.importorskip("jax")
    (lib,) = installed("jax")
    for draw in DRAWS:

        def f(key: Any, draw: str = draw) -> Any:
            return getattr(Source(key, place(lib)), draw)((40, 3))

        key = jax.random.key(1)
        np.testing.assert_allclose(np.asarray(jax.jit(f)(key)), np.asarray(f(key)), rtol=1e-14)
