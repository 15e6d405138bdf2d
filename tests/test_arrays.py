"""The array operations that the standard lacks, against plain NumPy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import twins
from conftest import Library, installed

from tracekit import _arrays

RNG = np.random.default_rng(0)
X = RNG.standard_normal((7, 3))
Y = RNG.standard_normal((7, 3))
XC = X + 1j * RNG.standard_normal((7, 3))
YC = Y + 1j * RNG.standard_normal((7, 3))


@pytest.mark.parametrize(("x", "y"), [(X, Y), (XC, YC)], ids=["real", "complex"])
def test_column_operations_agree_with_numpy(lib: Library, x: np.ndarray, y: np.ndarray) -> None:
    a, b = lib.array(x), lib.array(y)
    for function, arrays, expected in (
        (_arrays.adjoint, (a,), x.conj().T),
        (_arrays.conj, (a,), x.conj()),
        (_arrays.abs2, (a,), np.abs(x) ** 2),
        (_arrays.coldot, (a, b), np.sum(x.conj() * y, axis=0)),
        (_arrays.colnorm2, (a,), np.sum(np.abs(x) ** 2, axis=0)),
    ):
        got = lib.call(function, *arrays)
        assert lib.at_home(got)
        np.testing.assert_allclose(lib.numpy(got), expected, rtol=20 * lib.eps, atol=20 * lib.eps)


@pytest.mark.parametrize("x", [X, XC], ids=["real", "complex"])
def test_squared_moduli_are_real(lib: Library, x: np.ndarray) -> None:
    assert _arrays.abs2(lib.array(x)).dtype == lib.real
    assert _arrays.colnorm2(lib.array(x)).dtype == lib.real


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_skewness_is_relative_and_zero_of_zero(lib: Library, scale: float) -> None:
    G = np.stack([XC[:3], XC[:3] + XC[:3].conj().T, np.zeros((3, 3))])
    got = lib.numpy(lib.call(_arrays.skew, lib.array(G * scale)))
    expected = np.linalg.norm(G[0] - G[0].conj().T) / np.linalg.norm(G[0])
    np.testing.assert_allclose(got, [expected, 0.0, 0.0], rtol=20 * lib.eps, atol=20 * lib.eps)


@pytest.mark.parametrize(("power", "accepted", "silently"), [(0.3, 0, 0), (0.4, 1, 0), (0.6, 1, 1)])
def test_what_is_a_little_skew_is_not_refused_but_not_taken_for_hermitian(
    eager: Library, power: float, accepted: int, silently: int
) -> None:
    S = X[:3] + X[:3].T
    K = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 0]])
    G = eager.array(S + K * (np.linalg.norm(S) / np.linalg.norm(2 * K) * eager.eps**power))
    assert _arrays.is_hermitian(G) == silently
    if accepted:
        return _arrays.require_hermitian(G, "pass another")
    with pytest.raises(ValueError, match="not Hermitian; pass another"):
        _arrays.require_hermitian(G, "pass another")


ORTHONORMALISE = (_arrays.householder_qr, _arrays.cholesky_qr2, _arrays.orthonormalise)


@pytest.mark.parametrize("qr", ORTHONORMALISE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("x", [X, XC], ids=["real", "complex"])
def test_orthonormalise_factors(eager: Library, qr, x: np.ndarray) -> None:
    Q, R = (eager.numpy(part) for part in qr(eager.array(x)))
    tol = 50 * eager.eps
    np.testing.assert_allclose(Q @ R, x, atol=tol)
    np.testing.assert_allclose(Q.conj().T @ Q, np.eye(3), atol=tol)
    np.testing.assert_allclose(np.tril(R, -1), 0, atol=tol)


def hard_blocks() -> dict[str, np.ndarray]:
    graded = X @ np.diag([1.0, 1e-9, 1e-17])
    return {
        "graded": graded,
        "rank one": np.outer(X[:, 0], [1.0, 2.0, 3.0]),
        "zero": np.zeros((7, 3)),
        "a zero column": X * np.array([1.0, 0.0, 1.0]),
        "tiny": X * 1e-160,
        "huge": X * 1e150,
        "nearly dependent": X[:, :1] + 1e-12 * X,
        "one column": X[:, :1],
        "square": X[:3, :],
    }


@pytest.mark.parametrize("qr", ORTHONORMALISE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", hard_blocks())
def test_orthonormalise_is_orthonormal_whatever_the_rank(qr, name: str) -> None:
    block = hard_blocks()[name]
    for lib in installed("numpy", "strict:device1", "torch", "jax"):
        Q, R = (lib.numpy(part) for part in qr(lib.array(block)))
        size = np.abs(block).max() or 1.0
        np.testing.assert_allclose(Q.conj().T @ Q, np.eye(block.shape[1]), atol=1e-13)
        np.testing.assert_allclose((Q / size) @ R, block / size, atol=1e-13) if size < 1 else (
            np.testing.assert_allclose(Q @ (R / size), block / size, atol=1e-13)
        )


@pytest.mark.parametrize("x", [X, XC], ids=["real", "complex"])
def test_orthonormalise_under_jit(x: np.ndarray) -> None:
    for lib in installed("jax-jit"):
        Q, R = lib.call(_arrays.orthonormalise, lib.array(x))
        np.testing.assert_allclose(lib.numpy(Q @ R), x, atol=1e-13)
        np.testing.assert_allclose(lib.numpy(_arrays.adjoint(Q) @ Q), np.eye(3), atol=1e-13)


def test_dtypes_to_compute_in(lib: Library) -> None:
    xp, default = lib.xp, lib.xp.asarray(0.0, device=lib.device).dtype
    assert _arrays.floating(xp.float32, xp, lib.device) == xp.float32
    assert _arrays.floating(lib.real, xp, lib.device) == lib.real
    assert _arrays.floating(xp.complex64, xp, lib.device) == xp.complex64
    for integer in (xp.int8, xp.int64, xp.uint8, xp.bool):
        assert _arrays.floating(integer, xp, lib.device) == default
    for name in ("float16", "bfloat16"):
        if hasattr(xp, name):
            assert _arrays.floating(getattr(xp, name), xp, lib.device) == xp.float32
    assert _arrays.real_dtype(lib.complex, xp) == lib.real
    assert _arrays.real_dtype(xp.float32, xp) == xp.float32


def test_complexity_is_read_from_the_dtype(lib: Library) -> None:
    assert _arrays.is_complex(lib.array(XC))
    assert not _arrays.is_complex(lib.array(X))


def test_traced_values_are_told_from_known_ones() -> None:
    for lib in installed("numpy", "strict:device1", "torch", "jax"):
        assert not _arrays.is_traced(lib.array(X))
    pytest.importorskip("jax")
    seen: list[bool] = []
    for lib in installed("jax-jit"):
        lib.call(lambda x: (seen.append(_arrays.is_traced(x)), x)[1], lib.array(X))
    assert seen == [True]


def test_device_is_where_arrays_meet(eager: Library) -> None:
    x = eager.array(X)
    y = eager.xp.ones((7, 3), dtype=x.dtype, device=_arrays.device_of(x))
    assert eager.at_home(x + y)


def tall(kind: str) -> np.ndarray:
    """A matrix of 12 columns, of rows that 2, 4 and 8 do not divide."""
    rng = np.random.default_rng(1)
    Y = rng.standard_normal((517, 12))
    if kind == "complex":
        return Y + 1j * rng.standard_normal((517, 12))
    if kind == "condition 1e14":
        U, _, V = np.linalg.svd(Y, full_matrices=False)
        return U * np.logspace(0, -14, 12) @ V
    if kind == "rank 3":
        return Y[:, :3] @ rng.standard_normal((3, 12))
    Y[slice(400) if kind == "zero blocks" else slice(None), 4:6] = 0
    return Y


@pytest.mark.parametrize(
    "kind", ["complex", "condition 1e14", "rank 3", "zero blocks", "zero columns"]
)
@pytest.mark.parametrize("blocks", [1, 2, 4, 8, 60])
def test_qr_by_blocks_of_rows_is_orthonormal_whatever_the_rank(
    lib: Library, kind: str, blocks: int
) -> None:
    Y = tall(kind)
    qr = partial(_arrays.tall_skinny_qr, blocks=blocks)
    Q, R = map(lib.numpy, lib.call(qr, lib.array(Y)))
    assert np.abs(Q.conj().T @ Q - np.eye(12)).max() < 40 * lib.eps
    assert np.abs(Q @ R - Y).max() < 40 * lib.eps * np.abs(Y).max()
    assert np.abs(np.tril(R, -1)).max() == 0
    if kind == "complex":  # of full rank, so that the triangle is unique up to phases
        twin = twins.tall_skinny_qr(Y, min(blocks, 8))[1]
        np.testing.assert_allclose(np.abs(R), np.abs(twin), rtol=0, atol=200 * lib.eps)
