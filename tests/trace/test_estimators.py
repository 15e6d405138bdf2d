"""Laws of the estimators: unbiased, exact where they should be, naive twins, costs, dtypes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import twins
from conftest import KINDS, PSD, Library, installed, library, matrix

import tracekit as tk
from tracekit import probes
from tracekit._operators import has_plain_form, in_blocks
from tracekit._sketches import nystrom_sketch, range_sketch
from tracekit.testing import benchmark_spectra, known_spectrum, unbiasedness_test

STOCHASTIC = (tk.hutchinson, tk.hutchpp, tk.xtrace, tk.xnystrace)
LAWS = (probes.rademacher, probes.sphere, probes.normal, probes.orthogonal, probes.hadamard)
estimators = pytest.mark.parametrize("estimator", STOCHASTIC, ids=lambda f: f.__name__)
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
# XNysTrace is for positive semidefinite operators
CASES = [(f, kind) for f in STOCHASTIC for kind in KINDS if f is not tk.xnystrace or kind in PSD]
cases = pytest.mark.parametrize(
    ("estimator", "kind"), CASES, ids=lambda x: getattr(x, "__name__", x)
)


def fits(estimator: Callable[..., Any], kind: str = "real") -> str:
    """A kind of matrix that the estimator takes, complex if `kind` is."""
    if estimator is not tk.xnystrace or kind in PSD:
        return kind
    return "complex psd" if kind in ("complex", "hermitian") else "psd"


def laws_of(estimator: Callable[..., Any]) -> list[Any]:
    """The laws that leave the estimator unbiased; it refuses the others."""
    refused = {tk.xtrace: (probes.orthogonal, probes.hadamard), tk.xnystrace: (probes.hadamard,)}
    return [law for law in LAWS if law not in refused.get(estimator, ())]


WITH_LAWS = [(f, kind, law) for f, kind in CASES for law in laws_of(f)]


def name_of(x: Any) -> str:
    return getattr(x, "__name__", str(x))


def recording(law: Any) -> tuple[Any, Callable[[], np.ndarray]]:
    """A law of probes that remembers what it drew."""
    drawn: list[np.ndarray] = []

    def draw(source: Any, n: int, m: int) -> Any:
        drawn.append(law(source, n, m))
        return drawn[-1]

    draw.spherical, draw.joint = law.spherical, law.joint  # type: ignore[attr-defined]
    return draw, lambda: np.concatenate([np.asarray(X) for X in drawn], axis=1)


def fixed(Omega: np.ndarray) -> Any:
    """A law that hands out the columns of Omega in turn."""
    start = 0

    def draw(source: Any, n: int, m: int) -> np.ndarray:
        nonlocal start
        start += m
        assert start <= Omega.shape[1]
        return Omega[:, start - m : start]

    return draw


def samples_of(A: np.ndarray, Omega: np.ndarray, reading: str, *, resphere: bool) -> Any:
    """Spend, then read: leave-one-out samples and the jackknife's replicates."""
    make = range_sketch if reading == "xtrace" else nystrom_sketch
    sketch = make(tk.as_operator(A), Omega)
    got = sketch.samples(resphere=resphere)
    return tuple(None if x is None else x * sketch.unit for x in got)


# Equal to the naive textbook versions ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@every_law
def test_hutchinson_is_its_twin(kind: str, law: Any) -> None:
    A, (draw, drawn) = matrix(kind, 20), recording(law)
    estimate = tk.hutchinson(A, 7, rng=1, probes=draw)
    expected = twins.hutchinson(A, drawn())
    np.testing.assert_allclose(estimate.samples, expected, rtol=1e-10, atol=1e-12)
    assert complex(estimate.value) == pytest.approx(complex(expected.mean()), rel=1e-10)
    correction = np.sqrt(1 - 7 / 20) if law.joint else 1.0
    assert float(estimate.standard_error) == pytest.approx(
        twins.standard_error(expected) * correction, rel=1e-10
    )


@pytest.mark.parametrize("kind", KINDS)
@every_law
def test_hutchpp_is_its_twin(kind: str, law: Any) -> None:
    for m in (4, 9, 13):
        A, (draw, drawn) = matrix(kind, 20), recording(law)
        estimate = tk.hutchpp(A, m, rng=1, probes=draw)
        k = m - drawn().shape[1]  # sketched columns cost two products, the others one
        assert k == m // 3
        expected = twins.hutchpp(A, drawn()[:, :k], drawn()[:, k:])
        assert complex(estimate.value) == pytest.approx(complex(expected.mean()), rel=1e-10)
        if len(expected) > 1 and not law.joint:
            assert float(estimate.standard_error) == pytest.approx(
                twins.standard_error(expected), rel=1e-9
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "law", [probes.rademacher, probes.sphere, probes.normal], ids=lambda law: law.__name__
)
def test_xtrace_is_its_twin(kind: str, law: Any) -> None:
    A, (draw, drawn) = matrix(kind, 20), recording(law)
    estimate = tk.xtrace(A, 14, rng=1, probes=draw)
    twin = partial(twins.xtrace, A, resphere=law.spherical)
    expected = twin(drawn())
    assert drawn().shape == (20, 7)
    np.testing.assert_allclose(estimate.samples, expected, rtol=1e-10, atol=1e-11)
    assert complex(estimate.value) == pytest.approx(complex(expected.mean()), rel=1e-10)
    error = twins.combined_error(twin, drawn())
    assert float(estimate.standard_error) == pytest.approx(error, rel=1e-7)


@pytest.mark.parametrize("kind", PSD)
@pytest.mark.parametrize(
    "law", [probes.rademacher, probes.sphere, probes.normal], ids=lambda law: law.__name__
)
def test_xnystrace_is_its_twin(kind: str, law: Any) -> None:
    A, (draw, drawn) = matrix(kind, 20), recording(law)
    estimate = tk.xnystrace(A, 7, rng=1, probes=draw)
    twin = partial(twins.xnystrace, A, resphere=law.spherical)
    expected = twin(drawn())
    assert drawn().shape == (20, 7)
    np.testing.assert_allclose(estimate.samples, expected, rtol=1e-10, atol=1e-11)
    assert complex(estimate.value) == pytest.approx(complex(expected.mean()), rel=1e-10)
    error = twins.combined_error(twin, drawn())
    assert float(estimate.standard_error) == pytest.approx(error, rel=1e-7)


@pytest.mark.parametrize("kind", PSD)
def test_estimators_of_a_gram_operator_are_the_twins_of_its_matrix(kind: str) -> None:
    L = matrix(kind, 20) @ matrix("complex" if kind in ("complex psd",) else "real", 20)[:, :18]
    A, K = L @ L.conj().T, tk.gram(L)
    for estimator, budget in ((tk.xtrace, 16), (tk.xnystrace, 10)):
        draw, drawn = recording(probes.sphere)
        estimate = estimator(K, budget, rng=2, probes=draw)
        expected = getattr(twins, estimator.__name__)(A, drawn(), resphere=True)
        assert drawn().shape[1] >= 4
        assert complex(estimate.value) == pytest.approx(complex(expected.mean()), rel=1e-10)
    draw, drawn = recording(probes.rademacher)
    estimate = tk.hutchpp(K, 14, rng=2, probes=draw)
    k = (
        14 - drawn().shape[1]
    ) // 2  # a sketched column costs three single products, the others one
    expected = twins.hutchpp(A, drawn()[:, :k], drawn()[:, k:])
    assert complex(estimate.value) == pytest.approx(complex(expected.mean()), rel=1e-10)
    draw, drawn = recording(probes.rademacher)
    estimate = tk.hutchinson(K, 6, rng=2, probes=draw)
    assert complex(estimate.value) == pytest.approx(
        complex(twins.hutchinson(A, drawn()).mean()), rel=1e-10
    )


@pytest.mark.parametrize("resphere", [False, True])
@pytest.mark.parametrize(
    ("reading", "kind"), [("xtrace", kind) for kind in KINDS] + [("nystrom", kind) for kind in PSD]
)
def test_readings_are_their_twins_for_every_number_of_probes(
    reading: str, kind: str, resphere: bool
) -> None:
    A = matrix(kind, 12)
    rng = np.random.default_rng(5)
    for k in (2, 3, 4, 8):
        Omega = rng.standard_normal((12, k))
        Omega = Omega + 1j * rng.standard_normal((12, k)) if np.iscomplexobj(A) else Omega
        twin = partial(
            twins.xtrace if reading == "xtrace" else twins.xnystrace, A, resphere=resphere
        )
        samples, replicates = samples_of(A, Omega, reading, resphere=resphere)
        np.testing.assert_allclose(samples, twin(Omega), rtol=1e-9, atol=1e-11)
        if k >= 4:
            without = np.array([twin(np.delete(Omega, i, axis=1)).mean() for i in range(k)])
            np.testing.assert_allclose(replicates, without, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("lib_name", ["strict:device1", "torch", "jax-jit"])
def test_readings_agree_in_every_library(lib_name: str) -> None:
    """The same probes, read by compiled code and on other devices."""
    for lib in installed(lib_name):
        for kind in ("real", "complex psd") if lib.jit else ("complex psd",):
            A, Omega = matrix(kind, 12), matrix(kind, 12, seed=9)[:, :5]
            Omega = Omega * np.sqrt(12) / np.linalg.norm(Omega, axis=0)

            def law(source: Any, n: int, m: int, Omega: Any = Omega, lib: Library = lib) -> Any:
                return lib.array(Omega)[:, :m]

            law.spherical = True  # type: ignore[attr-defined]
            estimate = lib.estimate(tk.xtrace, lib.array(A), 10, probes=law)
            expected = twins.xtrace(A, Omega, resphere=True).mean()
            assert complex(estimate.value) == pytest.approx(complex(expected), rel=1e-10)
            if kind in PSD:
                estimate = lib.estimate(tk.xnystrace, lib.array(A), 5, probes=law)
                expected = twins.xnystrace(A, Omega, resphere=True).mean()
                assert complex(estimate.value) == pytest.approx(complex(expected), rel=1e-10)


# Unbiased -------------------------------------------------------------------------------------


def sign_blocks(n: int, m: int) -> Any:
    """All blocks of sign vectors, each once."""
    for entries in itertools.product((-1.0, 1.0), repeat=n * m):
        yield np.reshape(entries, (n, m))


@pytest.mark.parametrize(
    ("estimator", "n", "m", "columns"),
    [
        (tk.hutchinson, 3, 2, 2),
        (tk.hutchpp, 3, 2, 2),
        (tk.hutchpp, 4, 3, 2),
        (tk.xtrace, 3, 2, 2),
        (tk.xnystrace, 3, 2, 2),
        (tk.xnystrace, 2, 1, 1),
        (tk.xtrace, 2, 1, 1),
        (tk.hutchpp, 2, 1, 1),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_mean_over_all_sign_vectors_is_the_trace(
    estimator: Any, n: int, m: int, columns: int
) -> None:
    A = matrix("psd" if estimator is tk.xnystrace else "real", n, seed=1)
    values = [
        float(estimator(A, m, probes=fixed(Omega)).value) for Omega in sign_blocks(n, columns)
    ]
    assert np.mean(values) == pytest.approx(np.trace(A), rel=1e-11)
    assert np.std(values) > 1e-3  # the enumeration did vary something


@pytest.mark.parametrize(
    ("reading", "n"), [("xtrace", 4), ("xtrace", 5), ("nystrom", 4), ("nystrom", 5)]
)
def test_mean_of_leave_one_out_over_all_sign_vectors_is_the_trace(reading: str, n: int) -> None:
    """With duplicate probes among them, whose sketches are of rank one."""
    A = matrix("psd" if reading == "nystrom" else "real", n, seed=1)
    means = [samples_of(A, Omega, reading, resphere=False)[0].mean() for Omega in sign_blocks(n, 2)]
    assert np.mean(means) == pytest.approx(np.trace(A), rel=1e-9)
    assert np.std(means) > 1e-3


def test_mean_over_all_phases_is_the_trace_of_a_complex_operator() -> None:
    A = matrix("complex", 3, seed=1)
    blocks = [np.array(w)[:, None] for w in itertools.product((1, 1j, -1, -1j), repeat=3)]
    for estimator in (tk.hutchinson, tk.hutchpp, tk.xtrace):
        values = [complex(estimator(A, 1, probes=fixed(Omega)).value) for Omega in blocks]
        assert abs(np.mean(values) - np.trace(A)) < 1e-13
    values = [
        complex(tk.hutchpp(A, 2, probes=fixed(np.hstack(pair))).value)
        for pair in itertools.product(blocks, repeat=2)
    ]
    assert abs(np.mean(values) - np.trace(A)) < 1e-12


@pytest.mark.parametrize(
    ("estimator", "kind", "law"),
    [case for case in WITH_LAWS if case[1] not in ("symmetric", "hermitian")],
    ids=name_of,
)
def test_mean_of_many_runs_is_the_trace(estimator: Any, kind: str, law: Any) -> None:
    A = matrix(kind, 13, seed=2)
    assert unbiasedness_test(partial(estimator, num_matvecs=9, probes=law), A, seeds=range(300)) < 5


@pytest.mark.parametrize("estimator", [tk.xtrace, tk.xnystrace], ids=name_of)
def test_laws_that_would_bias_are_refused(estimator: Any) -> None:
    for law in LAWS:
        if law not in laws_of(estimator):
            with pytest.raises(ValueError, match=f"{law.__name__}.*pass probes"):
                estimator(matrix("psd", 13), 9, rng=0, probes=law)


@estimators
def test_mean_of_many_runs_is_the_trace_of_a_gram_operator(estimator: Any) -> None:
    L = matrix("complex", 13, seed=3)[:, :11]
    unbiasedness_test(
        partial(estimator, num_matvecs=10),
        tk.gram(L),
        exact=np.sum(np.abs(L) ** 2),
        seeds=range(300),
    )


# Exact where it should be ---------------------------------------------------------------------


@estimators
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_exact_where_the_rank_fits(lib: Library, estimator: Any, kind: str) -> None:
    if estimator is tk.hutchinson:
        pytest.skip("Hutchinson keeps no sketch")
    factor = matrix(fits(estimator, kind), 20)[:, :3]
    other = factor if estimator is tk.xnystrace else matrix(kind, 20, seed=4)[:, :3]
    A = factor @ other.conj().T
    # signs: six that all find nothing beside the range are no chance any more
    budget = {tk.hutchpp: 18, tk.xtrace: 16, tk.xnystrace: 8}[estimator]
    estimate = lib.estimate(estimator, lib.array(A), budget)
    size = np.linalg.norm(A, "nuc")
    assert abs(complex(estimate.value) - np.trace(A)) < 2000 * lib.eps * size
    assert float(estimate.standard_error) < 2000 * lib.eps * size
    assert lib.at_home(estimate.value)


@estimators
def test_exact_on_rank_one_of_small_integers(estimator: Any) -> None:
    """The ranges are exhausted to the last bit: zeros on the diagonal of R."""
    v = np.arange(30.0)
    for A in (np.outer(v, v), np.ones((30, 30)), np.diag([1.0] + [0.0] * 29)):
        estimate = estimator(A, 12, rng=0)
        if estimator is not tk.hutchinson:
            assert float(estimate) == pytest.approx(np.trace(A), rel=1e-11)
        assert np.isfinite(float(estimate.standard_error))


@cases
@pytest.mark.parametrize("n", [1, 2, 6])
def test_budget_of_the_dimension_is_exact(estimator: Any, kind: str, n: int) -> None:
    A = matrix(kind, n)
    for budget in (n, n + 1, 10 * n, 10**9):
        estimate = estimator(A, budget, rng=0)
        assert complex(estimate.value) == pytest.approx(complex(np.trace(A)), rel=1e-13)
        assert float(estimate.standard_error) == 0
        assert estimate.num_matvecs <= n
        assert estimate.converged


@pytest.mark.parametrize("kind", KINDS)
def test_exact_trace(lib: Library, kind: str) -> None:
    A = matrix(kind, 9)
    for chunk_size in (None, 1, 4, 100):
        estimate = lib.call(partial(tk.exact_trace, chunk_size=chunk_size), lib.array(A))
        assert complex(estimate.value) == pytest.approx(complex(np.trace(A)), rel=100 * lib.eps)
        assert float(estimate.standard_error) == 0
        assert estimate.num_matvecs == 9
        assert tuple(estimate.value.shape) == tuple(estimate.standard_error.shape) == ()
        assert lib.at_home(estimate.value)


def test_exact_trace_of_a_factor_takes_its_shorter_side() -> None:
    for shape, cost in (((9, 4), 4), ((4, 9), 4), ((5, 5), 5)):
        L = np.random.default_rng(0).standard_normal(shape)
        A, counter = tk.counted(tk.gram(L))
        estimate = tk.exact_trace(A)
        assert float(estimate) == pytest.approx(np.sum(L**2), rel=1e-13)
        assert estimate.num_matvecs == counter.total <= shape[0]
        assert estimate.num_matvecs == cost


def test_what_is_known_in_closed_form_costs_nothing() -> None:
    def product(X: np.ndarray) -> np.ndarray:
        raise AssertionError("no product is needed")

    A = tk.LinearOperator((5, 5), product, exact={"trace": lambda: np.asarray(7.0)})
    estimate = tk.exact_trace(A)
    assert (float(estimate), float(estimate.standard_error), estimate.num_matvecs) == (7.0, 0.0, 0)


def test_basis_probes_make_hutchinson_exact() -> None:
    for kind in KINDS:
        A = matrix(kind, 6)
        estimate = tk.hutchinson(A, 6, probes=probes.basis)
        assert complex(estimate.value) == pytest.approx(complex(np.trace(A)), rel=1e-13)
        with pytest.raises(ValueError, match="6"):
            tk.hutchinson(A, 5, probes=probes.basis)


@pytest.mark.parametrize("law", [probes.orthogonal, probes.hadamard], ids=lambda law: law.__name__)
def test_joint_probes_near_the_dimension_are_near_exact(law: Any) -> None:
    A = matrix("real", 16)
    errors = [
        abs(float(tk.hutchinson(A, 15, rng=seed, probes=law)) - np.trace(A)) for seed in range(20)
    ]
    plain = [abs(float(tk.hutchinson(A, 15, rng=seed)) - np.trace(A)) for seed in range(20)]
    assert np.median(errors) < 0.5 * np.median(plain)


# Operators at the edge ------------------------------------------------------------------------


@estimators
@pytest.mark.parametrize("name", ["numpy", "jax-jit"])
def test_zero_operator(name: str, estimator: Any) -> None:
    lib = library(name)
    for n, budget in ((1, 1), (2, 1), (2, 2), (20, 18 if estimator is tk.hutchpp else 7)):
        estimate = lib.estimate(estimator, lib.array(np.zeros((n, n))), budget)
        assert float(estimate.value) == 0.0
        if budget > 1:
            assert float(estimate.standard_error) == 0.0
    if estimator is tk.hutchpp:  # three signs that all find nothing may be chance
        assert float(lib.estimate(estimator, lib.array(np.zeros((n, n))), 7).standard_error) > 0


@cases
def test_one_by_one(estimator: Any, kind: str) -> None:
    A = matrix(kind, 1)
    estimate = estimator(A, 1, rng=0)
    assert complex(estimate.value) == complex(A[0, 0])
    assert float(estimate.standard_error) == 0
    assert estimate.num_matvecs == 1


@cases
def test_two_by_two(estimator: Any, kind: str) -> None:
    A = matrix(kind, 2)
    one = estimator(A, 1, rng=0)
    assert np.isfinite(complex(one.value))
    assert float(one.standard_error) == np.inf
    assert one.num_matvecs == 1
    low, high = one.confidence_interval()
    assert (float(low), float(high)) == (-np.inf, np.inf)
    assert complex(estimator(A, 2, rng=0).value) == pytest.approx(complex(np.trace(A)), rel=1e-14)


@cases
def test_every_budget_of_small_operators_gives_a_finite_answer(estimator: Any, kind: str) -> None:
    for n in (3, 4, 5, 8):
        for budget in range(1, n + 2):
            for deficient in (False, True):
                A = matrix(kind, n)
                A = (
                    A - A
                    if deficient and n == 3
                    else A @ np.diag(np.arange(n) < 1) @ A.conj().T
                    if deficient
                    else A
                )
                estimate = estimator(A, budget, rng=budget)
                assert np.isfinite(complex(estimate.value)), (n, budget)
                error = float(estimate.standard_error)
                assert error >= 0
                chance = estimator is tk.hutchpp and deficient and not np.iscomplexobj(A)
                assert error < np.inf or budget <= 3 or chance, (n, budget)


@estimators
def test_tiny_and_large_parts_together(estimator: Any) -> None:
    """A spectrum that spans 300 orders of magnitude."""
    A = known_spectrum(10.0 ** -np.linspace(0, 300, 24))
    estimate = estimator(A, 18, rng=0)
    assert np.isfinite(float(estimate.standard_error))
    if estimator is not tk.hutchinson:
        assert float(estimate) == pytest.approx(np.trace(A), rel=1e-9)


# What it costs --------------------------------------------------------------------------------


@estimators
@pytest.mark.parametrize("n", [1, 2, 7, 12])
@pytest.mark.parametrize("form", ["plain", "wide factor", "tall factor"])
def test_spent_is_claimed_and_never_above_the_budget(estimator: Any, n: int, form: str) -> None:
    M = matrix(fits(estimator, "complex"), n)
    for budget in range(1, n + 4):
        if form == "plain":
            A, counter = tk.counted(M)
        else:
            L = M[:, : max(1, n - 2)] if form == "tall factor" else np.hstack([M, M])
            A, counter = tk.counted(tk.gram(L))
        estimate = estimator(A, budget, rng=0)
        assert estimate.num_matvecs == counter.total
        assert 1 <= estimate.num_matvecs <= min(budget, n)
        assert estimate.num_matvecs > min(budget, n, *L.shape if form != "plain" else (n,)) - 3, (
            "products left over"
        )


@estimators
def test_adjoints_are_not_needed_of_plain_operators(estimator: Any) -> None:
    A, counter = tk.counted(matrix(fits(estimator), 20))
    estimator(A, 10, rng=0)
    assert counter.rmatvecs == 0
    M = matrix(fits(estimator), 20)
    one_way = tk.LinearOperator((20, 20), lambda X: M @ X)
    assert float(estimator(one_way, 10, rng=0)) == pytest.approx(
        float(estimator(M, 10, rng=0)), rel=1e-12
    )


def test_the_residual_of_hutchpp_costs_one_reverse_pass() -> None:
    L, counter = tk.counted(matrix("real", 20)[:, :15])
    estimate = tk.hutchpp(tk.gram(L), 12, rng=0)
    assert estimate.num_matvecs == counter.total == 12
    assert (counter.matvecs, counter.rmatvecs) == (3, 9)


# One seed, one answer -------------------------------------------------------------------------


@estimators
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_one_seed_one_answer_in_every_library(estimator: Any, kind: str) -> None:
    A = matrix(fits(estimator, kind), 30)
    found: dict[str, tuple[complex, float]] = {}
    for lib in installed(
        "numpy", "numpy-readonly", "strict:CPU_DEVICE", "strict:device1", "torch", "cupy"
    ):
        for law in laws_of(estimator):
            estimate = lib.estimate(estimator, lib.array(A), 16, seed=7, probes=law)
            value, error = complex(estimate.value), float(estimate.standard_error)
            first = found.setdefault(law.__name__, (value, error))
            assert value == pytest.approx(first[0], rel=1e-9), f"{lib} {law.__name__}"
            assert error == pytest.approx(first[1], rel=1e-6), f"{lib} {law.__name__}"
    for (one, (x, _)), (other, (y, _)) in itertools.combinations(found.items(), 2):
        lengths = {one, other} == {"normal", "sphere"}  # a sketch has directions alone
        equal = lengths and estimator in (tk.xtrace, tk.xnystrace)
        assert (x == pytest.approx(y, rel=1e-9)) == equal, (one, other)


# Values live where the operator lives ---------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "dtype"),
    [
        (tk.xtrace, "float32"),
        (tk.xnystrace, "complex64"),
        *((tk.hutchinson, dtype) for dtype in ("int64", "float16", "bool")),
    ],
    ids=name_of,
)
def test_dtypes_are_kept_in_compiled_code(estimator: Any, dtype: str) -> None:
    lib = library("jax-jit")
    expected = {"int64": "float64", "bool": "float64"}.get(dtype, "float32")
    A = np.eye(12) * (1 if dtype == "bool" else 3)
    estimate = lib.estimate(estimator, lib.array(A, dtype), 8)
    assert estimate.value.dtype == ("complex64" if dtype == "complex64" else expected)
    assert estimate.standard_error.dtype == expected
    if estimator is tk.hutchinson:
        assert complex(estimate.value) == pytest.approx(np.trace(A), rel=1e-5)


@cases
def test_estimates_say_what_they_are(estimator: Any, kind: str) -> None:
    estimate = estimator(matrix(kind, 20), 12, rng=0)
    assert estimate.method == estimator.__name__
    assert estimate.num_matvecs == 12
    assert estimate.value.shape == estimate.standard_error.shape == ()
    assert estimate.converged
    assert np.iscomplexobj(estimate.value) == (kind in ("complex", "hermitian", "complex psd"))
    if estimator is not tk.hutchpp:
        assert complex(estimate.value) == pytest.approx(
            complex(np.mean(estimate.samples)), rel=1e-12
        )


# Honest errors --------------------------------------------------------------------------------


@every_law
def test_standard_error_of_hutchinson_is_that_of_its_law(law: Any) -> None:
    """The mean of its square is the variance, for a symmetric operator."""
    A, runs = matrix("symmetric", 21), 3000
    estimates = [tk.hutchinson(A, 14, rng=seed, probes=law) for seed in range(runs)]
    values = np.array([float(e.value) for e in estimates])
    claimed = np.array([float(e.standard_error) for e in estimates]) ** 2
    seen = (values - np.trace(A)) ** 2
    difference = seen - claimed
    assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(runs), (
        seen.mean(),
        claimed.mean(),
    )


@estimators
@pytest.mark.parametrize("name", ["i^-2", "i^-0.5", "1+U", "0.7^i"])
def test_intervals_cover(estimator: Any, name: str) -> None:
    n, runs = 100, 150
    A = known_spectrum(benchmark_spectra(n)[name])
    trace = np.trace(A)
    covered = 0
    for seed in range(runs):
        low, high = estimator(A, 30, rng=seed).confidence_interval()
        covered += low - 1e-12 * trace <= trace <= high + 1e-12 * trace
    assert covered / runs >= 0.89


REACHED = {tk.hutchinson: 9e-2, tk.hutchpp: 1.3e-3, tk.xtrace: 6.9e-4, tk.xnystrace: 5.4e-4}


@estimators
def test_accuracy_on_a_decaying_spectrum(estimator: Any) -> None:
    """Published medians at i^-2, n = 512, 60 products; 31 seeds know a median to about 30 %."""
    A = known_spectrum(benchmark_spectra(512)["i^-2"])
    errors = [abs(float(estimator(A, 60, rng=seed)) / np.trace(A) - 1) for seed in range(31)]
    assert np.median(errors) < 1.5 * REACHED[estimator]


# Tolerances -----------------------------------------------------------------------------------

TOLERANT = (tk.hutchinson, tk.xtrace, tk.xnystrace)


@pytest.mark.parametrize("estimator", TOLERANT, ids=lambda f: f.__name__)
def test_a_tolerance_stops_early_and_keeps_what_was_spent(estimator: Any) -> None:
    A, counter = tk.counted(known_spectrum(benchmark_spectra(200)["i^-2"]))
    loose = estimator(A, 150, rng=0, rtol=0.5)
    assert loose.converged
    assert loose.num_matvecs == counter.total < 150
    assert abs(float(loose) - 1.64) < 0.5 * 1.64
    A, counter = tk.counted(A)
    tight = estimator(A, 60, rng=0, rtol=1e-15)
    assert not tight.converged
    assert tight.num_matvecs == counter.total <= 60
    assert float(tight) == pytest.approx(float(estimator(A, 60, rng=0)), rel=1e-9)
    absolute = estimator(A, 150, rng=0, atol=0.8)
    assert absolute.converged
    assert absolute.num_matvecs < 150
    exact = estimator(A, 500, rng=0, rtol=1e-15)
    assert exact.converged
    assert float(exact) == pytest.approx(float(tk.exact_trace(A)), rel=1e-12)


@pytest.mark.parametrize("estimator", TOLERANT, ids=lambda f: f.__name__)
def test_not_a_number_ends_the_search_and_keeps_what_was_paid_for(estimator: Any) -> None:
    M, columns = known_spectrum(benchmark_spectra(200)["i^-2"]), 0

    def product(X: np.ndarray) -> np.ndarray:
        nonlocal columns
        columns += X.shape[1]
        return M @ X * (np.nan if columns > 40 else 1.0)

    A = tk.LinearOperator((200, 200), product)
    with pytest.raises(ValueError, match=r"NaN|finite") as caught:
        estimator(A, 150, rng=0, rtol=1e-15)
    assert 0 < caught.value.estimate.num_matvecs <= 40
    assert np.isfinite(float(caught.value.estimate))


@pytest.mark.parametrize("form", ["products", "adjoint", "gram", "own form"])
def test_an_operator_in_blocks_keeps_its_structure(form: str) -> None:
    """Factor, dims, exact values and the kind of quadratic form; no product is wider than asked."""
    M, widths = np.random.default_rng(0).standard_normal((12, 12)), list[int]()

    def noted(M: np.ndarray) -> Any:
        def product(X: np.ndarray) -> np.ndarray:
            widths.append(X.shape[1])
            return M @ X

        return product

    back = None if form == "products" else noted(M.T)
    quad = None if form != "own form" else lambda X: np.sum(X * noted(M)(X), axis=0)
    known = {"trace": lambda: np.asarray(1.0)}
    A = tk.LinearOperator(M.shape, noted(M), back, quad, dims=(3, 4), exact=known)
    A = tk.gram(A) if form == "gram" else A
    B = in_blocks(A, 5)
    assert (B.dims, B.exact) == (A.dims, A.exact)
    assert (B.factor is None, B.rmatmat is None) == (A.factor is None, A.rmatmat is None)
    assert has_plain_form(B) == has_plain_form(A) == (form in ("products", "adjoint"))
    assert in_blocks(B, 5) is B
    assert in_blocks(A, None) is A
    X = np.random.default_rng(1).standard_normal((12, 11))
    pairs = [(A.matmat, B.matmat), (A.quad, B.quad)]
    pairs += [] if A.rmatmat is None else [(A.H.matmat, B.H.matmat)]
    pairs += [] if A.factor is None else [(A.factor.H.matmat, B.factor.H.matmat)]
    for whole, cut in pairs:
        expected = whole(X)
        widths.clear()
        np.testing.assert_allclose(cut(X), expected, rtol=1e-12)
        assert set(widths) == {5, 1}
