"""The law of probes, ``E[Omega Omega^H] / m = I``, and what each law adds to it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Library, installed

import tracekit as tk
from tracekit import probes
from tracekit.probes.source import Source

RANDOM = (probes.rademacher, probes.sphere, probes.normal, probes.orthogonal, probes.hadamard)
LAWS = (*RANDOM, probes.basis)
laws = pytest.mark.parametrize("law", RANDOM, ids=lambda law: law.__name__)
fields = pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])


def place(lib: Library, *, cplx: bool = False) -> SimpleNamespace:
    return SimpleNamespace(xp=lib.xp, dtype=lib.complex if cplx else lib.real, device=lib.device)


def draw(law: Any, seed: int, n: int, m: int, *, cplx: bool = False) -> np.ndarray:
    lib = next(installed("numpy"))
    return np.asarray(law(Source(seed, place(lib, cplx=cplx)), n, m))


@laws
@fields
@pytest.mark.parametrize(("n", "m"), [(5, 3), (8, 8), (3, 1)])
def test_second_moment_is_the_identity(law: Any, cplx: bool, n: int, m: int) -> None:
    runs = 800
    second = np.empty((runs, n, n), dtype=complex)
    for seed in range(runs):
        Omega = draw(law, seed, n, m, cplx=cplx)
        second[seed] = Omega @ Omega.conj().T / m
    error = np.abs(second.mean(axis=0) - np.eye(n))
    spread = np.sqrt(second.var(axis=0) / runs)
    assert np.all(error <= 5 * spread + 1e-13), (error / spread).max()


@laws
@fields
def test_first_moment_is_zero_whatever_the_column(law: Any, cplx: bool) -> None:
    runs, n, m = 1500, 4, 3
    blocks = np.stack([draw(law, seed, n, m, cplx=cplx) for seed in range(runs)])
    assert np.all(np.abs(blocks.mean(axis=0)) <= 5 * np.sqrt(blocks.var(axis=0) / runs))


def test_complex_probes_are_circular() -> None:
    """The plain square of a complex probe averages to zero, or non-Hermitian parts would bias."""
    for law in RANDOM:
        blocks = np.stack([draw(law, seed, 4, 2, cplx=True) for seed in range(1500)])
        pseudo = np.einsum("rij,rkj->rik", blocks, blocks) / 2
        assert np.all(np.abs(pseudo.mean(axis=0)) <= 5 * np.sqrt(pseudo.var(axis=0) / 1500)), law


def test_every_sign_vector_is_drawn_equally_often() -> None:
    n, runs = 3, 4000
    drawn = draw(probes.rademacher, 0, n, runs)
    counts = [
        np.sum(np.all(signs == drawn.T, axis=1))
        for signs in itertools.product((-1.0, 1.0), repeat=n)
    ]
    assert sum(counts) == runs
    z = (np.array(counts) - runs / 8) / np.sqrt(runs * 7 / 64)
    assert np.abs(z).max() < 5


@fields
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_blocks_are_at_home(eager: Library, law: Any, cplx: bool) -> None:
    Omega = law(Source(0, place(eager, cplx=cplx)), 6, 6)
    assert tuple(Omega.shape) == (6, 6)
    assert Omega.dtype == (eager.complex if cplx else eager.real)
    assert eager.at_home(Omega)
    assert np.all(np.isfinite(eager.numpy(Omega)))


@laws
@fields
def test_one_seed_gives_one_block_in_every_library(law: Any, cplx: bool) -> None:
    names = ("numpy", "strict:CPU_DEVICE", "strict:device1", "torch", "jax")
    for n, m, last in ((1, 1, 4), (16, 16, 4), (37, 5, 5)):  # JAX compiles for each shape
        blocks = [
            lib.numpy(law(Source(3, place(lib, cplx=cplx)), n, m))
            for lib in installed(*names[:last])
        ]
        for other in blocks[1:]:
            np.testing.assert_allclose(other, blocks[0], rtol=1e-9, atol=1e-9)


@laws
@fields
def test_a_block_in_parts_is_the_block_at_once(law: Any, cplx: bool) -> None:
    for lib in installed("numpy", "strict:device1", "torch"):
        whole = lib.numpy(law(Source(3, place(lib, cplx=cplx)), 20, 12))
        take = probes.stream(law, Source(3, place(lib, cplx=cplx)), 20, 12)
        parts = np.concatenate([lib.numpy(take(k)) for k in (1, 4, 2, 5)], axis=1)
        np.testing.assert_allclose(parts, whole, atol=1e-12)


@laws
def test_attributes_say_what_the_law_is(law: Any) -> None:
    assert law.spherical == (law in (probes.sphere, probes.normal, probes.orthogonal))
    assert law.joint == (law in (probes.orthogonal, probes.hadamard))


@fields
@pytest.mark.parametrize("law", [probes.rademacher, probes.hadamard], ids=lambda law: law.__name__)
def test_signs_have_modulus_one(law: Any, cplx: bool) -> None:
    Omega = draw(law, 1, 21, 9, cplx=cplx)
    np.testing.assert_allclose(np.abs(Omega), 1.0, rtol=1e-14)
    if not cplx:
        assert set(np.unique(Omega)) == {-1.0, 1.0}


@fields
@pytest.mark.parametrize("law", [probes.sphere, probes.orthogonal], ids=lambda law: law.__name__)
def test_columns_lie_on_the_sphere(law: Any, cplx: bool) -> None:
    for n, m in ((1, 1), (2, 2), (17, 9)):
        Omega = draw(law, 1, n, m, cplx=cplx)
        np.testing.assert_allclose(np.sum(np.abs(Omega) ** 2, axis=0), n, rtol=1e-13)


@fields
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (17, 9), (40, 40)])
def test_orthogonal_columns_are_orthogonal(cplx: bool, n: int, m: int) -> None:
    Omega = draw(probes.orthogonal, 2, n, m, cplx=cplx)
    np.testing.assert_allclose(Omega.conj().T @ Omega, n * np.eye(m), atol=1e-11)


@fields
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_hadamard_columns_are_orthogonal_at_powers_of_two(cplx: bool, n: int) -> None:
    Omega = draw(probes.hadamard, 2, n, n, cplx=cplx)
    np.testing.assert_allclose(Omega.conj().T @ Omega, n * np.eye(n), atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 31, 33, 100, 1000])
def test_hadamard_columns_are_distinct_pieces_of_a_hadamard_matrix(n: int) -> None:
    from scipy.linalg import hadamard

    N, m = 1 << (n - 1).bit_length(), min(n, 20)
    Omega = draw(probes.hadamard, 4, n, m)
    assert len({tuple(column) for column in Omega.T}) == m
    # the row signs drop out of the ratio to the first column, which is a row of the matrix again
    allowed = {tuple(row[:n]) for row in hadamard(N).astype(float)}
    assert all(tuple(column / Omega[:, 0]) in allowed for column in Omega.T)


@fields
def test_basis_is_the_scaled_identity(eager: Library, cplx: bool) -> None:
    Omega = probes.basis(Source(0, place(eager, cplx=cplx)), 5, 5)
    np.testing.assert_allclose(eager.numpy(Omega), np.sqrt(5) * np.eye(5), rtol=1e-7)


def test_more_columns_than_there_are_is_refused() -> None:
    for law, n, m in (
        (probes.orthogonal, 3, 4),
        (probes.hadamard, 3, 5),
        (probes.basis, 3, 2),
        (probes.basis, 3, 4),
    ):
        with pytest.raises(ValueError, match=str(m)):
            draw(law, 0, n, m)


VARIANCE = {
    probes.normal: lambda n, m, F2, t, d2: 2 * F2 / m,
    probes.rademacher: lambda n, m, F2, t, d2: 2 * (F2 - d2) / m,
    probes.sphere: lambda n, m, F2, t, d2: 2 * n / ((n + 2) * m) * (F2 - t**2 / n),
    probes.orthogonal: lambda n, m, F2, t, d2: (
        2 * n * (n - m) / (m * (n - 1) * (n + 2)) * (F2 - t**2 / n)
    ),
    probes.hadamard: lambda n, m, F2, t, d2: 2 * (16 - m) / (m * 15) * (F2 - d2),
}


@laws
def test_variance_of_the_trace_is_the_documented_one(law: Any) -> None:
    """N = 13 in a Hadamard matrix of order 16; 4000 runs know a variance to about 2 %."""
    n, m, runs = 13, 5, 4000
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, n))
    A = A + A.T
    values = np.empty(runs)
    for seed in range(runs):
        Omega = draw(law, seed, n, m)
        values[seed] = np.sum(Omega * (A @ Omega)) / m
    expected = VARIANCE[law](n, m, np.sum(A * A), np.trace(A), np.sum(np.diag(A) ** 2))
    deviation = (values - values.mean()) ** 2
    z = (deviation.mean() - expected) / (deviation.std() / np.sqrt(runs))
    assert abs(z) < 5, (deviation.mean(), expected)


def test_complex_orthogonal_variance_is_the_documented_one() -> None:
    n, m, runs = 9, 4, 4000
    rng = np.random.default_rng(1)
    A = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
    A = A + A.conj().T
    values = np.empty(runs)
    for seed in range(runs):
        Omega = draw(probes.orthogonal, seed, n, m, cplx=True)
        values[seed] = np.sum(Omega.conj() * (A @ Omega)).real / m
    F2, t = np.sum(np.abs(A) ** 2), np.trace(A).real
    expected = n * (n - m) / (m * (n**2 - 1)) * (F2 - t**2 / n)
    deviation = (values - values.mean()) ** 2
    assert abs(deviation.mean() - expected) < 5 * deviation.std() / np.sqrt(runs)


# Tiles ----------------------------------------------------------------------------------------

TILED = (probes.orthogonal, probes.basis, probes.rademacher, probes.hadamard, probes.sphere)
tiles_of = pytest.mark.parametrize("law", TILED, ids=lambda law: law.__name__)


def block_diagonal(blocks: int, size: int, *, cplx: bool = False) -> np.ndarray:
    rng, A = np.random.default_rng(0), np.zeros((blocks * size, blocks * size), dtype=complex)
    for i in range(blocks):
        X = rng.standard_normal((size, size)) + 1j * cplx * rng.standard_normal((size, size))
        A[i * size : (i + 1) * size, i * size : (i + 1) * size] = X
    return A if cplx else A.real


@tiles_of
@fields
@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_second_moment_of_tiles_is_the_identity(law: Any, cplx: bool, tiles: int) -> None:
    """Between tiles too, which signs make sure of where the law has none of its own."""
    runs, n = 800, 8
    m = n // tiles if law is probes.basis else 2
    second = np.empty((runs, n, n), dtype=complex)
    for seed in range(runs):
        Omega = draw(probes.tiled(law, tiles), seed, n, m, cplx=cplx)
        second[seed] = Omega @ Omega.conj().T / m
    error = np.abs(second.mean(axis=0) - np.eye(n))
    spread = np.sqrt(second.var(axis=0) / runs)
    assert np.all(error <= 5 * spread + 1e-13), (error / spread).max()


@fields
@pytest.mark.parametrize("law", [probes.orthogonal, probes.basis, probes.hadamard])
def test_joint_tiles_are_exact_on_blocks_once_they_are_full(law: Any, cplx: bool) -> None:
    A = block_diagonal(3, 4, cplx=cplx)
    tiled = probes.tiled(law, 3)
    estimate = tk.hutchinson(A, 4, rng=0, probes=tiled)
    assert complex(estimate.value) == pytest.approx(np.trace(A), rel=1e-12)
    assert float(estimate.standard_error) == 0.0
    assert estimate.num_matvecs == 4
    if law is not probes.basis:
        assert float(tk.hutchinson(A, 3, rng=0, probes=tiled).standard_error) > 0.0


@tiles_of
@fields
def test_tiles_are_drawn_as_the_law_draws(law: Any, cplx: bool) -> None:
    """Orthogonal in every tile, of the law's own norms, and each tile other than the next."""
    Omega = draw(probes.tiled(law, 3), 0, 12, 4, cplx=cplx)
    for i, tile in enumerate(np.split(Omega, 3)):
        if law in (probes.orthogonal, probes.basis, probes.hadamard):
            np.testing.assert_allclose(tile.conj().T @ tile, 4 * np.eye(4), atol=1e-13)
        np.testing.assert_allclose(np.linalg.norm(tile, axis=0), 2, rtol=1e-13)
        assert np.any(tile != np.split(Omega, 3)[i - 1])


@tiles_of
@fields
def test_one_seed_gives_the_same_tiles_in_every_library(law: Any, cplx: bool) -> None:
    tiled, m = probes.tiled(law, 3), 4 if law is probes.basis else 3
    expected = draw(tiled, 5, 12, m, cplx=cplx)
    for lib in installed("strict:device1", "torch", "jax", "cupy"):
        Omega = tiled(Source(5, place(lib, cplx=cplx)), 12, m)
        assert lib.at_home(Omega)
        np.testing.assert_allclose(lib.numpy(Omega), expected, atol=1e-12)


@pytest.mark.parametrize("law", [probes.orthogonal, probes.basis, probes.hadamard])
def test_tiles_in_parts_are_the_tiles_at_once(law: Any) -> None:
    lib, tiled = next(installed("numpy")), probes.tiled(law, 3)
    take = probes.stream(tiled, Source(3, place(lib)), 24, 8)
    parts = np.concatenate([take(k) for k in (1, 4, 3)], axis=1)
    np.testing.assert_allclose(parts, draw(tiled, 3, 24, 8), atol=1e-12)


def test_attributes_of_tiles() -> None:
    for law in TILED:
        tiled = probes.tiled(law, 3)
        assert getattr(tiled, "joint", False) is law.joint
        assert not getattr(tiled, "spherical", False)
        assert probes.population(tiled, 12) == probes.population(law, 4)
    nested = probes.tiled(probes.tiled(probes.orthogonal, 2), 3)
    assert probes.population(nested, 12) == 2
    Omega = draw(nested, 0, 12, 2)
    for tile in np.split(Omega, 6):
        np.testing.assert_allclose(tile.T @ tile, 2 * np.eye(2), atol=1e-14)


def test_bad_tiles_are_refused() -> None:
    for tiles in (0, -1, 2.0, "3", None):
        with pytest.raises(ValueError, match="`tiles` must be"):
            probes.tiled(probes.orthogonal, tiles)  # type: ignore[arg-type]
    A = np.eye(12)
    with pytest.raises(ValueError, match="do not divide"):
        tk.hutchinson(A, 2, rng=0, probes=probes.tiled(probes.orthogonal, 5))
    with pytest.raises(ValueError, match="orthogonal vectors"):
        tk.hutchinson(A, 5, rng=0, probes=probes.tiled(probes.orthogonal, 3))
    with pytest.raises(ValueError, match="basis"):
        tk.hutchinson(A, 3, rng=0, probes=probes.tiled(probes.basis, 3))
    with pytest.raises(TypeError, match="probes="):
        tk.hutchinson(A, 2, rng=0, probes=probes.tiled("signs", 3))  # type: ignore[arg-type]
