"""Laws of the readings of traces, norms and inner products: each equals its naive twin."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import twins_moments as naive
from conftest import Library, matrix
from twins import haar

from tracekit._sketches import moments

N, B = 14, 4
FIELDS = ("real", "complex")
fields = pytest.mark.parametrize("field", FIELDS)


def probes(field: str, n: int = N, b: int = B, *, seed: int = 5) -> np.ndarray:
    """Columns of the sphere of radius sqrt(n)."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, b)) + (
        1j * rng.standard_normal((n, b)) if field == "complex" else 0
    )
    return X * np.sqrt(n / np.sum(np.abs(X) ** 2, axis=0))


def hermitian(field: str, *, seed: int = 0) -> np.ndarray:
    return matrix("hermitian" if field == "complex" else "symmetric", N, seed=seed)


def psd(field: str, *, seed: int = 0) -> np.ndarray:
    return matrix("complex psd" if field == "complex" else "psd", N, seed=seed)


def read(lib: Library, reading: Any, *arrays: np.ndarray) -> Any:
    """A reading in the library of `lib`, compiled where that stands for compiled code."""
    out = lib.call(reading, *(lib.array(x) for x in arrays))
    one = not isinstance(out, tuple)
    assert all(lib.at_home(x) for x in ((out,) if one else out))
    return lib.numpy(out) if one else tuple(lib.numpy(x) for x in out)


def close(lib: Library, got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert np.max(np.abs(expected)) > 0.1
    assert np.ptp(np.abs(expected)) > 1e-3  # the probes differ: no constant passes
    tol = 1e-9 if lib.eps < 1e-10 else 2e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=tol * np.max(np.abs(expected)))


# Block Krylov ---------------------------------------------------------------------------------


def krylov_data(A: np.ndarray, Omega: np.ndarray) -> tuple[np.ndarray, ...]:
    """H, W and C, in a basis of which nothing special is known."""
    Q, C = np.linalg.qr(np.concatenate([Omega, A @ Omega], axis=1))
    return Q.conj().T @ A @ Q, Q.conj().T @ Omega, C


@fields
def test_krylov_is_its_twin(lib: Library, field: str) -> None:
    A, Omega = hermitian(field), probes(field)
    got = read(lib, lambda H, W, C: moments.krylov(H, W, C, N), *krylov_data(A, Omega))
    for mine, twin in zip(got, naive.krylov(A, Omega), strict=True):
        assert not np.iscomplexobj(mine)
        close(lib, mine, np.real(twin))


@fields
@pytest.mark.parametrize("b", [1, 2, 3, N // 2])
def test_krylov_of_any_number_of_probes(field: str, b: int) -> None:
    """Also of one, and where both blocks together fill the space."""
    A, Omega = hermitian(field), probes(field, b=b)
    got = moments.krylov(*krylov_data(A, Omega), N)
    for mine, twin in zip(got, naive.krylov(A, Omega), strict=True):
        np.testing.assert_allclose(mine, np.real(twin), rtol=1e-8, atol=1e-8)


@fields
def test_krylov_does_not_depend_on_the_basis(field: str) -> None:
    A, Omega = hermitian(field), probes(field)
    H, W, C = krylov_data(A, Omega)
    phases = np.exp(2j * np.arange(2 * B)) if field == "complex" else (-1.0) ** np.arange(2 * B)
    Uh = np.diag(phases)
    turned = Uh @ H @ Uh.conj().T, Uh @ W, Uh @ C
    for one, other in zip(moments.krylov(H, W, C, N), moments.krylov(*turned, N), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)


@fields
def test_the_jackknife_of_krylov_is_its_twin(lib: Library, field: str) -> None:
    A, Omega = hermitian(field), probes(field)
    data = krylov_data(A, Omega)
    got = read(lib, lambda H, W, C: moments.krylov_left_out(H, W, C, N), *data)
    for mine, twin in zip(got, naive.krylov_left_out(A, Omega), strict=True):
        close(lib, mine, np.real(twin))


# Shared sketches ------------------------------------------------------------------------------


@fields
@pytest.mark.parametrize("both", ["same", "different"])
def test_shared_is_its_twin(lib: Library, field: str, both: str) -> None:
    A, Omega = matrix(field, N), probes(field)
    other = A if both == "same" else matrix(field, N, seed=3)
    Y = A @ Omega + other @ Omega
    Q, R = np.linalg.qr(Y)

    def reading(Omega: Any, Q: Any, R: Any, *products: Any) -> Any:
        return moments.shared(Omega, Q, R, products[:2], products[2:])

    products = A @ Omega, A @ Q, other @ Omega, other @ Q
    got = read(lib, reading, Omega, Q, R, *products)
    twin = naive.shared(A, other, Y, Omega)
    close(lib, got, twin if field == "complex" else twin.real)


@fields
def test_nystrom_pairs_are_their_twin(lib: Library, field: str) -> None:
    Omega = probes(field)
    pairs = []
    for seed in (0, 3):
        A = psd(field, seed=seed)
        L = np.linalg.cholesky(A)
        V, R = np.linalg.qr(L.conj().T @ Omega)
        pairs += [L @ V, R]

    def reading(Omega: Any, F1: Any, R1: Any, F2: Any, R2: Any) -> Any:
        return moments.nystrom_pairs(Omega, (F1, R1), (F2, R2))

    got = read(lib, reading, Omega, *pairs)
    close(lib, got, naive.nystrom_pairs(psd(field), psd(field, seed=3), Omega).real)


@fields
def test_nystrom_pairs_of_one_operator_are_squared_norms_of_it(field: str) -> None:
    A, Omega = psd(field), probes(field, b=N)
    L = np.linalg.cholesky(A)
    V, R = np.linalg.qr(L.conj().T @ Omega)
    squares = moments.nystrom_pairs(Omega, (L @ V, R), (L @ V, R))
    assert np.all(squares > 0.9 * naive.size2(A))  # all but one of n probes
    assert np.all(squares < 1.1 * naive.size2(A))


# Zonal polynomials ----------------------------------------------------------------------------


def zonal(V: np.ndarray, A: np.ndarray, B: np.ndarray) -> tuple[float, float]:
    n, m = V.shape
    K1, K2 = V.conj().T @ A @ V, V.conj().T @ B @ V
    tau, kappa = np.real(np.trace(K1) * np.trace(K2)), np.real(np.vdot(K1, K2))
    return moments.zonal(tau, kappa, m, n, complex_=np.iscomplexobj(V))


def complements(design: np.ndarray) -> list[np.ndarray]:
    """Orthonormal bases of the planes orthogonal to the unit vectors of a design."""
    return [np.linalg.svd(v[:, None])[0][:, 1:] for v in design]


def icosahedron() -> np.ndarray:
    """A spherical 5-design in three dimensions: its mean of quartic polynomials is that of all."""
    g = (1 + 5**0.5) / 2
    corners = [(0.0, a, g * b) for a, b in itertools.product((1, -1), repeat=2)]
    V = np.array([np.roll(corner, k) for corner in corners for k in range(3)])
    return V / np.linalg.norm(V, axis=1, keepdims=True)


def cell_24() -> np.ndarray:
    """A spherical 5-design in four dimensions."""
    V = [
        np.eye(4)[i] * a + np.eye(4)[j] * b
        for i, j in itertools.combinations(range(4), 2)
        for a, b in itertools.product((1.0, -1.0), repeat=2)
    ]
    return np.array(V) / 2**0.5


def hesse() -> np.ndarray:
    """A complex 2-design in three dimensions: nine equiangular lines."""
    w = np.exp(2j * np.pi / 3)
    V = [np.roll((0, 1, -(w**k)), shift) for k in range(3) for shift in range(3)]
    return np.array(V) / 2**0.5


@pytest.mark.parametrize("design", [icosahedron(), cell_24(), hesse()], ids=["3", "4", "complex 3"])
def test_zonal_means_over_a_whole_design_are_exact(design: np.ndarray) -> None:
    n = design.shape[1]
    kind = "hermitian" if np.iscomplexobj(design) else "symmetric"
    A, B = matrix(kind, n), matrix(kind, n, seed=1)
    values = np.array([zonal(V, A, B) for V in complements(design)])
    exact = np.vdot(A, B).real, (np.trace(A) * np.trace(B)).real
    np.testing.assert_allclose(values.mean(axis=0), exact, rtol=1e-12, atol=1e-13)
    assert np.all(values.std(axis=0) > 1e-2)
    plain = np.array([np.vdot(V.conj().T @ A @ V, V.conj().T @ B @ V) for V in complements(design)])
    assert abs(plain.mean() * (n / (n - 1)) ** 2 - exact[0]) > 1e-3  # as scaling alone is not


@fields
@pytest.mark.parametrize(("n", "m"), [(9, 2), (9, 5), (9, 9), (40, 3)])
def test_zonal_is_its_twin(lib: Library, field: str, n: int, m: int) -> None:
    kind = "hermitian" if field == "complex" else "symmetric"
    A, B = matrix(kind, n), matrix(kind, n, seed=1)
    V = haar(np.random.default_rng(0), n, m, cplx=field == "complex")
    K1, K2 = V.conj().T @ A @ V, V.conj().T @ B @ V
    sums = np.real(np.trace(K1) * np.trace(K2)), np.real(np.vdot(K1, K2))
    got = read(
        lib,
        lambda tau, kappa: moments.zonal(tau, kappa, m, n, complex_=field == "complex"),
        *(np.asarray(x) for x in sums),
    )
    tol = 1e-9 if lib.eps < 1e-10 else 2e-3
    twin = naive.zonal(V, A, B)
    np.testing.assert_allclose(got, twin, rtol=0, atol=tol * np.max(np.abs(twin)) * (n / m) ** 2)


@fields
@pytest.mark.parametrize(("n", "m"), [(9, 2), (12, 5)])
def test_zonal_means_over_many_draws_are_unbiased(field: str, n: int, m: int) -> None:
    kind = "hermitian" if field == "complex" else "symmetric"
    A, B = matrix(kind, n) + np.eye(n) / 2, matrix(kind, n, seed=1)
    rng = np.random.default_rng(7)
    values = np.array([zonal(haar(rng, n, m, cplx=field == "complex"), A, B) for _ in range(1500)])
    exact = np.array([np.vdot(A, B).real, (np.trace(A) * np.trace(B)).real])
    z = (values.mean(axis=0) - exact) / (values.std(axis=0) / 1500**0.5)
    assert np.all(np.abs(z) < 4.5)


@fields
def test_zonal_is_exact_from_all_of_the_space(field: str) -> None:
    kind = "hermitian" if field == "complex" else "symmetric"
    A, B = matrix(kind, 6), matrix(kind, 6, seed=1)
    V = haar(np.random.default_rng(0), 6, 6, cplx=field == "complex")
    exact = np.vdot(A, B).real, (np.trace(A) * np.trace(B)).real
    np.testing.assert_allclose(zonal(V, A, B), exact, rtol=1e-12)
