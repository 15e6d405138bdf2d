"""The public checks find what is wrong, and pass what is right."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import Library, matrix

import tracekit as tk
from tracekit.testing import adjoint_test, benchmark_spectra, known_spectrum, unbiasedness_test


@pytest.mark.parametrize("shape", [(6, 6), (6, 4), (1, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_right_adjoints_pass(but_jax: Library, shape: tuple[int, int], cplx: bool) -> None:
    rng = np.random.default_rng(0)
    M = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if cplx else 0)
    assert 0 <= adjoint_test(but_jax.array(M)) < 100 * but_jax.eps
    assert 0 <= adjoint_test(tk.gram(but_jax.array(M)), rng=3, num_probes=1) < 100 * but_jax.eps


def test_right_adjoints_pass_at_every_scale() -> None:
    M = matrix("complex", 9)
    for scale in (1e-160, 1e-30, 1e150):
        assert adjoint_test(M * scale) < 1e-13
    assert adjoint_test(np.zeros((4, 3))) == 0
    assert (
        adjoint_test(sp.random_array((200, 100), density=0.01, rng=np.random.default_rng(0)))
        < 1e-13
    )


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("real", lambda M: M),
        ("complex", lambda M: M.T),
        ("complex", lambda M: M.conj()),
        ("real", lambda M: 1.001 * M.T),
        ("real", lambda M: -M.T),
        ("complex", lambda M: M.conj().T + 1e-3),
        ("real", lambda M: np.roll(M.T, 1, axis=0)),
        ("real", lambda M: np.nan * M),
    ],
    ids=["same", "transpose", "conjugate", "scaled", "sign", "shifted", "rolled", "nan"],
)
def test_wrong_adjoints_are_found(kind: str, wrong: Any) -> None:
    M = matrix(kind, 30)
    A = tk.LinearOperator(M.shape, lambda X: M @ X, lambda X: wrong(M) @ X, dtype=M.dtype)
    with pytest.raises(AssertionError, match="not adjoints") as caught:
        adjoint_test(A)
    assert "30 by 30" in str(caught.value)
    if wrong(M) is not None and np.all(np.isfinite(wrong(M))):
        assert adjoint_test(A, rtol=1e9) > 1e-8


def test_an_operator_without_an_adjoint_cannot_be_tested() -> None:
    with pytest.raises(TypeError, match="rmatmat"):
        adjoint_test(tk.LinearOperator((3, 3), lambda X: X))


@pytest.mark.parametrize(
    "estimator", [tk.hutchinson, tk.hutchpp, tk.xtrace, tk.xnystrace], ids=lambda f: f.__name__
)
def test_unbiased_estimators_pass(estimator: Any) -> None:
    A = matrix("psd", 12)
    assert 0 <= unbiasedness_test(partial(estimator, num_matvecs=8), A) < 5


def test_exact_estimators_pass() -> None:
    for A in (matrix("complex", 12), np.zeros((3, 3)), np.diag([1e150, -1e150])):
        assert unbiasedness_test(partial(tk.hutchinson, num_matvecs=12), A, seeds=range(5)) < 1


def test_biased_estimators_are_found() -> None:
    A = matrix("psd", 12)

    def shrunk(A: Any, rng: Any) -> float:
        return 0.8 * float(tk.hutchpp(A, 8, rng=rng))

    def constant(A: Any, rng: Any) -> float:
        return float(np.trace(A)) * (1 + 1e-9)

    def broken(A: Any, rng: Any) -> float:
        return float("nan")

    def imaginary(A: Any, rng: Any) -> complex:
        return complex(tk.hutchinson(A, 8, rng=rng)) + 0.5j

    for estimator in (shrunk, constant, broken, imaginary):
        with pytest.raises(AssertionError, match="biased"):
            unbiasedness_test(estimator, A)
    with pytest.raises(AssertionError, match="max_z=1e-09"):
        unbiasedness_test(partial(tk.hutchinson, num_matvecs=2), A, max_z=1e-9)


def test_what_unbiasedness_is_compared_with() -> None:
    A = matrix("psd", 12)
    run = partial(tk.hutchinson, num_matvecs=4)
    assert unbiasedness_test(run, A, exact=np.trace(A)) == pytest.approx(
        unbiasedness_test(run, A), rel=1e-6
    )
    with pytest.raises(AssertionError, match="standard errors"):
        unbiasedness_test(run, A, exact=2 * np.trace(A))
    with pytest.raises(ValueError, match="seeds"):
        unbiasedness_test(run, A, seeds=[0])


def test_unbiasedness_in_every_library(but_jax: Library) -> None:
    A = but_jax.array(matrix("complex", 10))
    assert unbiasedness_test(partial(tk.xtrace, num_matvecs=8), A, seeds=range(40)) < 5


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_known_spectrum_is_known(but_jax: Library, cplx: bool) -> None:
    values = np.array([3.0, -2.0, 0.5, 1e-6, 0.0])
    A = known_spectrum(but_jax.array(values), dtype=but_jax.complex if cplx else None)
    assert but_jax.at_home(A)
    assert A.dtype == (but_jax.complex if cplx else but_jax.real)
    M = but_jax.numpy(A)
    np.testing.assert_array_equal(M, M.conj().T)
    np.testing.assert_allclose(np.linalg.eigvalsh(M), np.sort(values), atol=20 * but_jax.eps)
    assert np.iscomplexobj(M) == cplx
    assert np.abs(M - np.diag(np.diag(M))).max() > 0.1


def test_known_spectrum_of_complex_eigenvalues_is_normal() -> None:
    values = np.array([1.0 + 1j, -2j, 3.0])
    M = known_spectrum(values)
    np.testing.assert_allclose(M @ M.conj().T, M.conj().T @ M, atol=1e-13)
    assert np.trace(M) == pytest.approx(values.sum(), rel=1e-13)


def test_known_spectrum_takes_numbers_and_seeds() -> None:
    first, same, other = (known_spectrum([1.0, 2.0, 3.0], rng=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-2
    assert known_spectrum([1, 2]).dtype == np.float64
    assert known_spectrum(np.ones(2, dtype=np.float32)).dtype == np.float32
    assert float(known_spectrum([4.0])[0, 0]) == 4.0
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        known_spectrum(np.eye(2))
    with pytest.raises(ValueError, match="complex"):
        known_spectrum(np.array([1j, 2.0]), dtype=np.dtype("float64"))


@pytest.mark.parametrize(
    "law", [tk.probes.sphere, tk.probes.orthogonal, tk.probes.normal], ids=lambda f: f.__name__
)
def test_eigenvectors_are_not_the_probes_of_the_same_seed(law: Any) -> None:
    n = 60
    A = known_spectrum(np.diag(np.eye(n)) * np.arange(n), rng=4)
    _, vectors = np.linalg.eigh(A)
    Omega = law(tk.probes.Source(4, tk.as_operator(A)), n, 10) / np.sqrt(n)
    assert np.abs(vectors.T @ Omega).max() < 0.7


def test_eigenvectors_are_uniform() -> None:
    """The squared entries of a uniform vector average to 1 / n."""
    squares = np.array(
        [known_spectrum([1.0, 0.0, 0.0], rng=seed).diagonal() for seed in range(600)]
    )
    z = (squares.mean(axis=0) - 1 / 3) / (squares.std(axis=0) / np.sqrt(600))
    assert np.abs(z).max() < 5


def test_benchmark_spectra_are_those_of_the_tables() -> None:
    spectra = benchmark_spectra(50)
    i = np.arange(1, 51)
    assert set(spectra) == {"i^-2", "i^-0.5", "1+U", "0.7^i"}
    np.testing.assert_allclose(spectra["i^-2"], 1 / i**2, rtol=1e-14)
    np.testing.assert_allclose(spectra["i^-0.5"], 1 / np.sqrt(i), rtol=1e-14)
    np.testing.assert_allclose(spectra["0.7^i"], np.exp(i * np.log(0.7)), rtol=1e-12)
    assert spectra["1+U"].min() >= 1
    assert spectra["1+U"].max() < 2
    assert not np.array_equal(spectra["1+U"], benchmark_spectra(50, rng=1)["1+U"])
    assert all(values.dtype == np.float64 and values.shape == (50,) for values in spectra.values())
