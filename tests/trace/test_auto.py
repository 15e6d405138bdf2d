"""Laws of `trace` and `resume`: what is chosen, what is spent, what ends a run, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from conftest import KINDS, Library, by_products, installed, matrix

import tracekit as tk
from tracekit.testing import benchmark_spectra, known_spectrum

N = 100
SPECTRA = ("i^-2", "i^-0.5", "1+U", "0.7^i")
FLAT, DECAYING = ("i^-0.5", "1+U"), ("i^-2", "0.7^i")
FORMS = ("plain", "psd", "wide factor", "tall factor")
spectra = pytest.mark.parametrize("spectrum", SPECTRA)
forms = pytest.mark.parametrize("form", FORMS)


@cache
def dense(spectrum: str, n: int = N) -> np.ndarray:
    return known_spectrum(benchmark_spectra(n)[spectrum])


def trace(A: Any, **options: Any) -> tk.Estimate:
    """Of a matrix that is known by its products alone: it would not be estimated otherwise."""
    return tk.trace(by_products(A), **options)


def operator(form: str, spectrum: str, n: int = N) -> tuple[Any, Any, dict[str, Any]]:
    """A counted operator that takes no empty blocks, its counter, and the hints that go with it."""
    lam, M = benchmark_spectra(n)[spectrum], dense(spectrum, n)
    if form in ("plain", "psd"):
        A, counter = tk.counted(callable_of(M))
        return A, counter, {"psd": True} if form == "psd" else {}
    U = np.linalg.eigh(M)[1][:, ::-1]
    L = (U * np.sqrt(lam))[:, : n - 20 if form == "tall factor" else n]
    A, counter = tk.counted(tk.gram(callable_of(L)))
    return A, counter, {}


def callable_of(M: np.ndarray, *, at: int = 0, fail: Callable[[], Any] | None = None) -> Any:
    """An operator without other structure; at its call number `at` it fails."""
    calls = 0

    def product(M: np.ndarray, X: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        assert X.shape[1] > 0, "an empty block"
        if calls == at and fail is not None:
            return (M @ X) * fail()
        return M @ X

    products = partial(product, M), partial(product, M.conj().T)
    return tk.LinearOperator(M.shape, *products, dtype=M.dtype)


def interrupt() -> None:
    raise KeyboardInterrupt


def same(a: tk.Estimate, b: tk.Estimate) -> bool:
    """Whether two estimates are the same to the last bit."""
    ends = (complex(e.value) for e in (a, b)), (float(e.standard_error) for e in (a, b))
    return all(x == y for x, y in ends) and a.num_matvecs == b.num_matvecs


# What is chosen -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 10, 64])
def test_small_dimensions_are_exact(kind: str, n: int) -> None:
    A, counter = tk.counted(matrix(kind, n))
    for options in ({}, {"rtol": 1e-3}, {"rtol": 0.0}, {"num_matvecs": n}, {"atol": 5.0}):
        before = counter.total
        estimate = trace(A, **options)
        assert complex(estimate.value) == pytest.approx(complex(np.trace(matrix(kind, n))))
        assert float(estimate.standard_error) == 0
        assert estimate.num_matvecs == counter.total - before == n
        assert (estimate.method, estimate.converged) == ("exact_trace", True)
        assert repr(estimate).endswith(f"exact_trace, {estimate.reason})")
        assert estimate.reason


def test_a_budget_that_reaches_the_exact_trace_gives_it() -> None:
    for options in ({}, {"num_matvecs": N}, {"num_matvecs": 10 * N}):
        A, counter, _ = operator("plain", "i^-2")
        estimate = trace(A, rtol=0.0, **options)
        assert (estimate.method, estimate.converged) == ("exact_trace", True)
        assert estimate.num_matvecs == counter.total == N
        assert float(estimate) == pytest.approx(np.trace(dense("i^-2")), rel=1e-13)
        assert "100 products" in estimate.reason


def test_a_factor_of_few_columns_is_summed_over_them() -> None:
    L = np.random.default_rng(0).standard_normal((500, 3))
    A, counter = tk.counted(tk.gram(L))
    estimate = trace(A)
    assert float(estimate) == pytest.approx(np.sum(L * L), rel=1e-13)
    assert estimate.num_matvecs == counter.total == 3


def test_what_is_known_in_closed_form_is_free() -> None:
    A = tk.LinearOperator((500, 500), lambda X: X, exact={"trace": lambda: np.asarray(500.0)})
    estimate = trace(A, rtol=1e-3)
    assert (float(estimate), estimate.num_matvecs, estimate.converged) == (500.0, 0, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_read_not_estimated(eager: Library, kind: str) -> None:
    M = matrix(kind, N)
    for options in ({}, {"rtol": 1e-9}, {"rtol": 0.0, "num_matvecs": 5}):
        A, counter = tk.counted(eager.array(M))
        estimate = tk.trace(A, **options)
        assert complex(estimate.value) == pytest.approx(complex(np.trace(M)), rel=100 * eager.eps)
        assert (estimate.num_matvecs, counter.total) == (0, 0)
        assert (float(estimate.standard_error), estimate.converged) == (0.0, True)
        assert (estimate.method, "matrix is given" in estimate.reason) == ("sum_of_diagonal", True)
        assert estimate.value.dtype == (eager.complex if np.iscomplexobj(M) else eager.real)
        assert eager.at_home(estimate.value)
    if eager.family == "jax":
        return  # each shape of array is compiled, which takes long
    for estimator in (tk.hutchinson, tk.xtrace):  # named ones do as they are told
        A, counter = tk.counted(eager.array(M))
        assert estimator(A, 8, rng=0).num_matvecs == counter.total == 8
    assert tk.exact_trace(A).num_matvecs == N
    if eager.name == "numpy":
        for other in (A + A, 2 * A, A.H, A @ A, tk.block_diagonal([A, A])):
            assert tk.trace(other, rtol=0.5, rng=0).num_matvecs > 0


def sparse_matrices() -> dict[str, tuple[Any, np.ndarray]]:
    """Of every kind that is read, beside the same entries as a dense array."""
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    M = np.where(rng.random((80, 80)) < 0.1, rng.standard_normal((80, 80)), 0) + np.eye(80)
    S = sp.csr_array(M)
    twice = sp.coo_array((np.r_[S.tocoo().data, 5.0], (np.r_[S.tocoo().row, 3],
                          np.r_[S.tocoo().col, 3])), shape=M.shape)  # fmt: skip
    found = {name: (S.asformat(name), M) for name in ("csr", "csc", "bsr", "lil", "dok")}
    found |= {"repeated": (twice, twice.toarray()), "matrix": (sp.csr_matrix(M), M)}
    found["band"] = sp.diags_array(np.arange(80.0)), np.diag(np.arange(80.0))
    found["integers"] = (S * 10).astype(int), (M * 10).astype(int)
    for lib in installed("torch"):
        A = lib.array(M)
        found |= {"torch coo": (A.to_sparse(), M), "torch csr": (A.to_sparse_csr(), M)}
    for lib in installed("jax"):
        from jax.experimental import sparse

        A = lib.array(M)
        found["bcoo"] = sparse.BCOO.fromdense(A), M
        found["bcoo, padded"] = sparse.BCOO.fromdense(A, nse=6400), M
        found["bcsr"] = sparse.BCSR.fromdense(A), M
    return found


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_sparse_matrices_are_read_too() -> None:
    for name, (A, M) in sparse_matrices().items():
        estimate = tk.trace(A)
        assert estimate.num_matvecs == 0, name
        assert float(estimate) == pytest.approx(np.trace(M), rel=1e-13), name
        assert float(estimate.standard_error) == 0, name


def test_what_is_read_is_as_precise_as_it_is_computed() -> None:
    half, whole = np.eye(99, dtype=np.float16), np.diag(np.arange(99))
    assert tk.trace(half).value.dtype == np.float32
    assert tk.trace(whole).value.dtype == np.float64
    large = tk.trace(np.lib.stride_tricks.as_strided(np.float32([0.1]), (10**6,) * 2, (0, 0)))
    assert float(large) == pytest.approx(1e5, rel=1e-6)
    with pytest.raises(tk.NotFiniteError):
        tk.trace(np.full((99, 99), np.nan))
    for lib in installed("jax"):
        import jax

        A = lib.array(dense("i^-2"))
        found, slope = jax.jit(jax.value_and_grad(lambda A: tk.trace(A).value))(A)
        assert float(found) == pytest.approx(float(np.trace(dense("i^-2"))))
        assert np.array_equal(np.asarray(slope), np.eye(N))
    for lib in installed("torch"):
        A = lib.array(dense("i^-2")).requires_grad_()
        tk.trace(A).value.backward()
        assert np.array_equal(A.grad.numpy(), np.eye(N))


@pytest.mark.parametrize(("form", "spectrum", "options", "method", "reason"), [
    ("plain", "i^-2", {}, "xtrace", "positive semidefinite"),
    ("plain", "i^-0.5", {"rtol": 1e-3, "num_matvecs": 60}, "xtrace", "flat spectrum"),
    ("plain", "1+U", {"rtol": 1e-3, "num_matvecs": 60}, "hutchinson", "vary less than"),
    ("psd", "i^-2", {}, "xnystrace", "psd was declared"),
    ("wide factor", "i^-2", {}, "xnystrace", "L L^H"),
    ("plain", "i^-2", {"num_matvecs": 15}, "hutchinson", "too few"),
    ("psd", "i^-2", {"num_matvecs": 7}, "hutchinson", "too few"),
    ("wide factor", "i^-2", {"num_matvecs": 15}, "hutchinson", "too few"),
    ("plain", "1+U", {"rtol": 0.1}, "hutchinson", "8 plain probes"),
    ("wide factor", "1+U", {"rtol": 0.1}, "hutchinson", "8 plain probes"),
    ("psd", "1+U", {"rtol": 0.1}, "hutchinson", "8 plain probes, which vary less than"),
    ("psd", "i^-0.5", {"rtol": 0.1}, "xnystrace", "psd was declared"),
    ("plain", "i^-0.5", {"rtol": 1e-6}, "exact_trace", "cost more")])  # fmt: skip
def test_method_and_reason(
    form: str, spectrum: str, options: dict[str, Any], method: str, reason: str
) -> None:
    A, _, hints = operator(form, spectrum)
    estimate = trace(A, rng=6, **options, **hints)
    assert estimate.method == method
    assert reason in estimate.reason
    assert repr(estimate).endswith(f", {estimate.reason})")
    assert f", {method}, " in repr(estimate)


@spectra
def test_what_is_sketched_depends_on_what_a_sketch_of_eight_gains(spectrum: str) -> None:
    """Nothing more where signs alone vary less; all, or one of each four products, elsewhere."""
    for m in (40, 60, 88, 400):
        estimate = trace(dense(spectrum, 1000), rtol=0.0, num_matvecs=m, rng=3)
        assert estimate.num_matvecs == m
        samples = estimate.samples.shape[0]
        if spectrum in DECAYING:  # eight sign vectors are no samples from 40 sketched probes on
            assert samples == m // 2 - (8 if m >= 80 else 0)
        elif spectrum == "1+U":
            assert (estimate.method, samples) == ("hutchinson", m - 8)
        else:
            assert m // 2 <= samples <= m - 8


@pytest.mark.parametrize("form", ["plain", "wide factor", "psd"])
def test_eight_plain_probes_are_looked_at_before_any_is_sketched(form: str) -> None:
    """The next step sketches them, unless A is declared psd; steps are a half of what was spent."""
    seen: list[tuple[int, str, int]] = []

    def look(state: tk.Estimate) -> None:
        assert state.samples is not None
        seen.append((state.num_matvecs, state.method, state.samples.shape[0]))

    A, _, hints = operator(form, "i^-2", 300)
    trace(A, rtol=0.0, num_matvecs=90, rng=0, callback=look, **hints)
    if form == "psd":
        assert seen == [(m, "xnystrace", m - 8 * (m >= 40)) for m in (8, 16, 24, 36, 54, 81, 90)]
    else:
        method = "xtrace" if form == "plain" else "xnystrace"
        later = [(m, method, m // 2 - 8 * (m >= 80)) for m in (16, 32, 48, 72, 90)]
        assert seen == [(8, "hutchinson", 8), *later]


def test_an_operator_known_as_a_gram_takes_one_product_a_sketched_pair() -> None:
    A, counter, _ = operator("wide factor", "i^-2")
    trace(A, rtol=0.0, num_matvecs=40, rng=0)
    assert (counter.matvecs, counter.rmatvecs) == (20, 20)


def dominant(n: int, off: float, *, cplx: bool = False) -> np.ndarray:
    """A Hermitian positive definite matrix of a large, uneven diagonal."""
    rng = np.random.default_rng(1)
    G = rng.standard_normal((n, n)) * (rng.random((n, n)) < 3 / n) * off
    G = G + G.T if not cplx else 1j * (G - G.T)
    return np.diag(np.exp(1.5 * rng.standard_normal(n)) + 6 * off) + G


@pytest.mark.parametrize("form", ["plain", "psd", "factor", "inverse", "complex", "Laplacian"])
def test_on_dominant_diagonals_trace_spends_what_plain_signs_spend(form: str) -> None:
    """At most 1.5 times as many products, and within the tolerance; sketches do not help."""
    n, seeds = 500, range(20, 40)
    for off, rtol in ((0.05, 1e-2), (0.5, 2e-2), (2.0, 3e-2)):
        M = dominant(n, off, cplx=form == "complex")
        if form == "Laplacian":
            M = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
        M = np.linalg.inv(M) if form == "inverse" else M
        A = tk.gram(by_products(np.linalg.cholesky(M))) if form == "factor" else by_products(M)
        hint = {"psd": True} if form == "psd" else {}
        ours = [tk.trace(A, rtol=rtol, rng=s, **hint) for s in seeds]
        signs = [tk.hutchinson(A, n, rtol=rtol, rng=s) for s in seeds]
        spent, least = (sum(e.num_matvecs for e in es) for es in (ours, signs))
        assert spent <= 1.5 * least, (off, spent, least)
        truth = float(np.trace(M).real)
        assert sum(abs(complex(e.value) / truth - 1) > rtol for e in ours) <= 1, off


def test_equal_samples_of_signs_are_no_proof() -> None:
    """Of a triangle, three of each four samples are -2: eight equal ones are seen for a tenth."""
    A = np.zeros((N, N))
    A[:3, :3] = 1 - np.eye(3)
    estimates = [trace(A, atol=0.1, rtol=0.0, rng=s, num_matvecs=60) for s in range(60)]
    assert all(float(e.standard_error) > 0 or abs(float(e)) < 1e-12 for e in estimates)
    assert any(np.ptp(tk.hutchinson(A, 8, rng=s).samples) == 0 for s in range(60))
    known = trace(np.diag(np.arange(1.0, N + 1)), rng=0)
    assert (float(known), float(known.standard_error)) == (N * (N + 1) / 2, 0.0)
    assert known.num_matvecs == 8


def test_equal_samples_of_a_factor_are_no_proof() -> None:
    """Squared lengths of two values: eight equal ones are seen once in 128 runs."""
    L = np.eye(N)
    L[0, 1] = 5.0
    truth = float(np.sum(L * L))
    factor = tk.LinearOperator(L.shape, lambda X: L @ X, lambda X: L.T @ X)
    for seed in range(150):
        e = tk.trace(tk.gram(factor), rtol=1e-2, rng=seed)
        assert float(e.standard_error) > 0 or abs(float(e) - truth) < 1e-9 * truth, seed


def with_step(spectrum: str) -> np.ndarray:
    if spectrum == "step":
        return known_spectrum(np.where(np.arange(N) < 30, 1.0, 1e-3))
    return dense(spectrum)


@cache
def plain_errors(spectrum: str) -> dict[int, float]:
    """The root mean square error of plain probes, for each number of products."""
    A = with_step(spectrum)
    truth = float(np.trace(A))
    return {
        m: np.sqrt(np.mean([(float(tk.hutchinson(A, m, rng=s)) - truth) ** 2 for s in range(60)]))
        for m in (10, 20, 40, 80)
    }


@pytest.mark.parametrize("psd", [None, True])
@pytest.mark.parametrize("spectrum", [*SPECTRA, "step"])
def test_never_much_worse_than_hutchinson(spectrum: str, psd: bool | None) -> None:
    A = with_step(spectrum)
    truth = float(np.trace(A))
    plain = plain_errors(spectrum)
    for m in (10, 20, 40, 80):
        ours = [trace(A, rtol=0.0, num_matvecs=m, rng=s, psd=psd) for s in range(60)]
        rms = np.sqrt(np.mean([(float(e) - truth) ** 2 for e in ours]))
        assert rms <= 1.8 * plain[m], m


# What is spent --------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("spectrum", ["i^-2", "1+U"])
def test_spent_is_claimed_and_never_above_the_budget(form: str, spectrum: str) -> None:
    n = 72
    for rtol in (0.0, 1e-2):
        for m in range(1, n + 6):
            A, counter, hints = operator(form, spectrum, n)
            estimate = trace(A, rtol=rtol, num_matvecs=m, rng=0, **hints)
            assert estimate.num_matvecs == counter.total <= m, m
            unit = 1 if form == "psd" else 2  # of a sketched probe
            cost = 52 if form == "tall factor" else n
            if rtol == 0:
                assert min(m, cost) - counter.total < unit, m
            elif not estimate.converged:
                assert min(m, cost - 1) - counter.total < unit, m


@forms
@spectra
def test_spent_is_claimed_without_a_budget(form: str, spectrum: str) -> None:
    for rtol in (5e-2, 1e-2, 1e-4, 1e-13):
        A, counter, hints = operator(form, spectrum)
        estimate = trace(A, rtol=rtol, rng=0, **hints)
        assert estimate.num_matvecs == counter.total
        assert estimate.converged
        assert estimate.num_matvecs < 3 * N


@pytest.mark.parametrize("num_matvecs", [40, 61])
@pytest.mark.parametrize("kind", ["real", "complex psd"])
def test_without_a_tolerance_the_budget_is_spent(num_matvecs: int, kind: str) -> None:
    A, counter = tk.counted(matrix(kind, N))
    psd = True if kind == "complex psd" else None
    estimate = trace(A, rtol=0.0, num_matvecs=num_matvecs, rng=0, psd=psd)
    assert num_matvecs - 1 <= counter.total == estimate.num_matvecs <= num_matvecs
    assert estimate.converged  # no tolerance was missed
    assert "not converged" not in repr(estimate)


def test_odd_numbers_of_products_in_long_runs() -> None:
    for spectrum in SPECTRA:
        A, counter, _ = operator("plain", spectrum, 500)
        estimate = trace(A, rtol=1e-15, num_matvecs=499, rng=0)
        assert estimate.num_matvecs == counter.total


# Tolerances -----------------------------------------------------------------------------------


@spectra
@pytest.mark.parametrize("psd", [None, True])
def test_converged_means_that_the_interval_is_within_the_tolerance(
    spectrum: str, psd: bool | None
) -> None:
    A, truth = dense(spectrum), float(np.trace(dense(spectrum)))
    for options in ({"rtol": 3e-2}, {"rtol": 0.0, "atol": 0.03 * truth},
                    {"rtol": 1e-2, "atol": 0.02 * truth}):  # fmt: skip
        estimate = trace(A, rng=1, psd=psd, **options)
        allowed = options.get("atol", 0.0) + options["rtol"] * abs(float(estimate))
        low, high = (float(end) for end in estimate.confidence_interval(0.95))
        assert estimate.converged
        assert max(high - float(estimate), float(estimate) - low) <= allowed
    few = trace(A, rng=1, psd=psd, rtol=1e-9, num_matvecs=40)
    if float(few.standard_error) > 1e-9 * truth:
        assert not few.converged
        assert "not converged" in repr(few)
        assert "budget is spent" in few.reason


@spectra
@pytest.mark.parametrize("psd", [None, True])
def test_runs_are_within_the_tolerance(spectrum: str, psd: bool | None) -> None:
    """Of 50 runs, on fixed seeds, at most two outside; the looks allow for themselves."""
    A, truth = dense(spectrum), float(np.trace(dense(spectrum)))
    for rtol in (5e-2, 1e-2):
        errors = [abs(float(trace(A, rtol=rtol, rng=s, psd=psd)) / truth - 1) for s in range(50)]
        assert np.sum(np.array(errors) > rtol) <= 2


def test_steps_are_paid_for_only_while_needed() -> None:
    """A rough tolerance costs no more than a fine one, and on fast decay far less than n."""
    for psd in (None, True):
        A = dense("0.7^i", 300)
        spent = [trace(A, rtol=rtol, rng=0, psd=psd).num_matvecs for rtol in (0.1, 1e-3, 1e-6)]
        assert spent == sorted(spent)
        assert spent[-1] < 150


# Hints ----------------------------------------------------------------------------------------


def test_wrong_hints_are_found_out() -> None:
    upper = np.triu(np.ones((N, N)))
    indefinite, negative = np.diag(np.linspace(-1, 1, N)), -dense("i^-2")
    psd, hermitian = {"psd": True}, {"hermitian": True}
    for A, hint, told in (
        (upper, psd, "not Hermitian"),
        (upper, hermitian, "not Hermitian"),
        (upper + 1j * upper, psd, "not Hermitian"),
        (1j * np.eye(N) + upper, hermitian, "not Hermitian"),
        (indefinite, psd, "not positive semidefinite"),
        (negative, psd, "not positive semidefinite"),
        (negative, psd | hermitian, "not positive semidefinite"),
    ):
        with pytest.raises(ValueError, match=told):
            trace(A, rng=0, **hint)


def test_true_hints_are_taken() -> None:
    for kind in ("symmetric", "hermitian", "psd", "complex psd"):
        A = matrix(kind, N)
        plain = trace(A, rng=0, rtol=0.0, num_matvecs=40)
        told = trace(A, rng=0, rtol=0.0, num_matvecs=40, hermitian=True)
        assert same(plain, told)
    for hint in ({"psd": False}, {"hermitian": False}):
        general = trace(matrix("real", N), rtol=0.0, num_matvecs=40, rng=1, **hint)
        assert general.method == "xtrace"


def test_hints_that_contradict_each_other_or_the_operator() -> None:
    for n in (10, N):
        with pytest.raises(ValueError, match="contradiction"):
            trace(np.eye(n), psd=True, hermitian=False)
        for hint in ({"psd": False}, {"hermitian": False}):
            with pytest.raises(ValueError, match="leave out"):
                trace(tk.gram(np.eye(n)), **hint)


@pytest.mark.parametrize("argument", [{"rtol": -1.0}, {"atol": np.nan}, {"rtol": "1e-2"},
                                      {"num_matvecs": 0}, {"num_matvecs": 2.5},
                                      {"num_matvecs": True}], ids=repr)  # fmt: skip
def test_unusable_arguments_are_named(argument: dict[str, Any]) -> None:
    for n in (10, N):
        with pytest.raises(ValueError, match=f"`{next(iter(argument))}` must be"):
            trace(np.eye(n), **argument)
    with pytest.raises(ValueError, match="square"):
        trace(np.ones((3, 4)))


# What ends a run ------------------------------------------------------------------------------


# one run that ends exact, after few steps of sketching, and one that only sketches
ENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("i^-0.5", {"rtol": 1e-9, "rng": 0}),
    "sketch": ("i^-2", {"rtol": 1e-9, "num_matvecs": 90, "rng": 1}),
}
runs = pytest.mark.parametrize(("form", "end"), [(f, e) for f in FORMS[:2] for e in ENDS])


def calls_of(form: str, end: str) -> int:
    """How often an operator is called in a whole run."""
    spectrum, options = ENDS[end]
    widths: list[int] = []

    def product(X: np.ndarray) -> np.ndarray:
        widths.append(X.shape[1])
        return dense(spectrum) @ X

    trace(tk.LinearOperator((N, N), product), psd=form == "psd" or None, **options)
    return len(widths)


@runs
def test_nan_at_any_call_is_an_error_with_what_was_paid_for(form: str, end: str) -> None:
    spectrum, options = ENDS[end]
    M, hint = dense(spectrum), {"psd": True} if form == "psd" else {}
    first = 1  # call before the first estimate
    last = calls_of(form, end)
    assert last >= 5
    for at in range(1, last + 1):
        for bad in (np.nan, np.inf):
            A, counter = tk.counted(callable_of(M, at=at, fail=lambda bad=bad: bad))
            with pytest.raises(tk.NotFiniteError) as caught, np.errstate(invalid="ignore"):
                trace(A, **options, **hint)
            paid = caught.value.estimate
            if at <= first:
                assert paid is None, at
            else:
                assert paid is not None, at
                assert 8 <= paid.num_matvecs < counter.total, at
                assert not paid.converged
                assert float(paid) == pytest.approx(np.trace(M), rel=0.2)


@runs
def test_ctrl_c_at_any_call_gives_what_was_paid_for(form: str, end: str) -> None:
    spectrum, options = ENDS[end]
    M, hint = dense(spectrum), {"psd": True} if form == "psd" else {}
    first = 1
    whole = trace(M, **options, **hint)
    limits = {name: value for name, value in options.items() if name != "rng"}
    for at in range(1, calls_of(form, end) + 1):
        A, counter = tk.counted(callable_of(M, at=at, fail=interrupt))
        with pytest.raises(KeyboardInterrupt) as caught:
            trace(A, **options, **hint)
        estimate = getattr(caught.value, "estimate", None)
        if at <= first:
            assert estimate is None
            continue
        assert 8 <= estimate.num_matvecs < counter.total
        assert not estimate.converged
        assert "KeyboardInterrupt" in estimate.reason
        again, counter = tk.counted(callable_of(M))
        resumed = tk.resume(again, estimate, **limits)
        assert same(resumed, whole), at
        assert counter.total == whole.num_matvecs - estimate.num_matvecs, at


def raises(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


FAILURES = MemoryError(), OSError("the disk is gone"), ValueError("no convergence")


@runs
def test_products_that_fail_end_the_run_with_what_was_paid_for(form: str, end: str) -> None:
    """As Ctrl-C does: the rest can be had later, and nothing is spent twice."""
    spectrum, options = ENDS[end]
    M, hint = dense(spectrum), {"psd": True} if form == "psd" else {}
    whole = trace(M, **options, **hint)
    limits = {name: value for name, value in options.items() if name != "rng"}
    for at in range(1, calls_of(form, end) + 1):
        error = FAILURES[at % 3]
        A, counter = tk.counted(callable_of(M, at=at, fail=raises(error)))
        with pytest.raises(type(error)) as caught:
            trace(A, **options, **hint)
        if at == 1:
            assert getattr(caught.value, "estimate", None) is None
            continue
        estimate = caught.value.estimate
        del error.estimate
        assert 8 <= estimate.num_matvecs < counter.total
        assert not estimate.converged
        assert f"ended by {type(error).__name__}" in estimate.reason
        assert str(error) in estimate.reason
        assert same(tk.resume(callable_of(M), estimate, **limits), whole), at


def test_memory_that_runs_out_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries raise RuntimeErrors of their own."""
    from tracekit._trace import adaptive

    class OutOfMemoryError(RuntimeError):
        """As of torch.cuda."""

    A, sketched = dense("i^-2"), adaptive.sketch_of_products
    for error in (MemoryError(), OutOfMemoryError("CUDA"), RuntimeError("RESOURCE_EXHAUSTED: 9 GB"),
                  RuntimeError("DefaultCPUAllocator: can't allocate memory")):  # fmt: skip
        calls = iter([sketched])

        def second(*given: Any, calls: Any = calls, error: Any = error) -> Any:
            for work in calls:
                return work(*given)
            raise error

        monkeypatch.setattr(adaptive, "sketch_of_products", second)
        with pytest.raises(type(error)) as caught:
            trace(A, rtol=1e-4, rng=0)
        estimate = caught.value.estimate
        assert (estimate.num_matvecs, estimate.converged) == (16, False)


def held(estimate: tk.Estimate, A: Any) -> int:
    """Probes that a run keeps."""
    state, _ = estimate.paused.read(tk.as_operator(A))
    return state.Omega.shape[1]


@pytest.mark.parametrize("form", FORMS[:3])
def test_memory_is_bounded_and_the_rest_streamed(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right whatever may be held, unbiased, covered, and resumed and repeated as ever."""
    from tracekit._trace import state

    truth = float(np.trace(dense("i^-2", 300)))
    room = 16
    monkeypatch.setattr(state, "HELD", room * 4 * 300 * 8)
    z, covered = [], 0
    for seed in range(40):
        A, counter, hints = operator(form, "i^-2", 300)
        estimate = tk.trace(A, rtol=0.0, num_matvecs=150, rng=seed, **hints)
        assert 149 <= estimate.num_matvecs == counter.total <= 150
        assert held(estimate, A) == room
        assert "memory is bounded: 16 of" in estimate.reason
        assert estimate.samples.shape[0] > 100
        low, high = estimate.confidence_interval()
        covered += bool(low <= truth <= high)
        z.append((float(estimate) - truth) / float(estimate.standard_error))
    assert covered >= 35
    assert abs(np.mean(z)) < 4 / np.sqrt(40)
    A, counter, hints = operator(form, "i^-2", 300)
    half = tk.trace(A, rtol=0.0, num_matvecs=90, rng=39, **hints)
    assert tk.resume(A, half, rtol=0.0, num_matvecs=150).num_matvecs == counter.total >= 149
    A = tk.as_operator(callable_of(dense("1+U", 300)))
    signs = tk.trace(A, rtol=0.0, num_matvecs=150, rng=0)
    assert held(signs, A) == 8  # of plain probes only samples are kept


def test_the_bound_is_what_the_documentation_says() -> None:
    from tracekit._sketches import RangeSketch
    from tracekit._trace import state

    assert "512 MB" in str(tk.trace.__doc__)
    assert state.HELD == 512 * 2**20
    for n, itemsize, dtype in ((500_000, 8, "float64"), (500_000, 16, "complex128"),
                               (10**6, 4, "float32"), (10**8, 8, "float64")):  # fmt: skip
        A = tk.LinearOperator((n, n), lambda X: X, dtype=dtype)
        request = state.Request(A, 0.0, 0.0, np.inf, n, RangeSketch, False, None, None)
        assert request.room == max(8, 2**29 // (4 * n * itemsize))


@forms
def test_callbacks_see_every_step_and_may_end_the_run(form: str) -> None:
    seen: list[tk.Estimate] = []
    A, counter, hints = operator(form, "i^-0.5")
    whole = trace(A, rtol=1e-9, rng=0, callback=seen.append, **hints)
    assert all(isinstance(state, tk.Estimate) for state in seen)
    spent = [state.num_matvecs for state in seen]
    assert spent == sorted(set(spent))
    assert spent[-1] <= whole.num_matvecs == counter.total
    for stop in range(1, len(seen) + 1):
        left = iter([False] * (stop - 1) + [True])
        A, counter, hints = operator(form, "i^-0.5")
        estimate = trace(A, rtol=1e-9, rng=0, callback=lambda _, left=left: next(left), **hints)
        assert estimate.num_matvecs == counter.total == spent[stop - 1]
        if estimate.method != "exact_trace":
            assert not estimate.converged
            assert "callback" in estimate.reason
            assert float(estimate) == float(seen[stop - 1])
            resumed = tk.resume(A, estimate, rtol=1e-9)
            assert same(resumed, whole), stop
            assert counter.total == whole.num_matvecs, stop


# Going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "psd", "wide factor"])
@pytest.mark.parametrize("spectrum", ["i^-2", "0.7^i"])
def test_resuming_to_a_finer_tolerance(form: str, spectrum: str) -> None:
    """It repeats no product; it ends as one call does where that takes the same steps."""
    A, counter, hints = operator(form, spectrum, 300)
    whole, total = trace(A, rtol=1e-4, rng=0, **hints), counter.total
    A, counter, hints = operator(form, spectrum, 300)
    estimate = trace(A, rtol=0.3, rng=0, **hints)
    for rtol in (1e-2, 1e-3, 1e-4):
        estimate = tk.resume(A, estimate, rtol=rtol)
        assert estimate.converged
        assert estimate.num_matvecs == counter.total
        assert float(estimate) == pytest.approx(np.trace(dense(spectrum, 300)), rel=rtol)
    if form == "psd":  # the others may begin with more plain probes where these are near
        assert same(estimate, whole)
    assert counter.total <= 1.5 * total


def test_one_estimate_can_be_resumed_twice() -> None:
    A = dense("i^-2", 300)
    rng = np.random.default_rng(3)
    rough = trace(A, rtol=0.1, rng=rng)
    first = tk.resume(A, rough, rtol=1e-3)
    rng.standard_normal(100)
    assert same(first, tk.resume(A, rough, rtol=1e-3))
    assert same(rough, tk.resume(A, rough, rtol=0.1))


def test_resuming_within_a_budget() -> None:
    A, counter, _ = operator("plain", "i^-0.5", 400)
    estimate = trace(A, rtol=0.0, num_matvecs=50, rng=0)
    for budget in (51, 80, 123):
        estimate = tk.resume(A, estimate, rtol=0.0, num_matvecs=budget)
        assert budget - 1 <= estimate.num_matvecs == counter.total <= budget
    assert tk.resume(A, estimate, rtol=0.0, num_matvecs=20).num_matvecs == counter.total


def test_a_run_is_not_continued_with_an_operator_of_another_form() -> None:
    """What is kept of L L^H is not what is kept of its matrix."""
    A, L = dense("i^-2"), np.linalg.cholesky(dense("i^-2"))
    for before, after, hints in ((A, tk.gram(L), {}), (tk.gram(L), A, {}),
                                 (A, tk.gram(L), {"psd": True})):  # fmt: skip
        estimate = trace(before, rtol=0.5, rng=0, **hints)
        with pytest.raises(ValueError, match="pass the operator"):
            tk.resume(after, estimate, rtol=1e-3)


def test_only_what_can_be_continued_is_resumed() -> None:
    A = dense("i^-2")
    for estimate in (replace(tk.hutchinson(A, 5, rng=0), paused=None), 3.0, None):
        with pytest.raises((TypeError, ValueError), match=r"what an estimator gave|to go on from"):
            tk.resume(A, estimate)
    exact, counter = trace(A, rtol=0.0), tk.counted(A)
    assert float(tk.resume(counter[0], exact, rtol=1e-9)) == float(exact)
    assert counter[1].total == 0
    estimate = trace(A, rtol=0.1, rng=0)
    with pytest.raises(ValueError, match=r"shape \[100, 100\].*pass the operator"):
        tk.resume(A[:99, :99], estimate)
    with pytest.raises(ValueError, match="square"):
        tk.resume(A[:99], estimate)
    with pytest.raises(ValueError, match="`rtol` must be"):
        tk.resume(A, estimate, rtol=-1.0)


# Every kind of operator, in every library -----------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_in_every_library(but_jax: Library, kind: str) -> None:
    A = matrix(kind, 80)
    for psd in (None, True) if kind.endswith("psd") else (None,):
        one = trace(but_jax.array(A), rtol=0.0, num_matvecs=48, rng=5, psd=psd)
        assert but_jax.at_home(one.value)
        assert one.value.dtype == (but_jax.complex if np.iscomplexobj(A) else but_jax.real)
        assert one.standard_error.dtype == but_jax.real
        plain = trace(A, rtol=0.0, num_matvecs=48, rng=5, psd=psd)
        assert complex(one.value) == pytest.approx(complex(plain.value), rel=1e5 * but_jax.eps)
        assert one.num_matvecs == plain.num_matvecs
        assert abs(complex(plain.value) - np.trace(A)) < 6 * float(plain.standard_error)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_end_exact_in_every_library(kind: str) -> None:
    for lib in installed("numpy", "strict:device1", "strict:no_float64", "torch"):
        A = matrix(kind, 80)
        exact = trace(lib.array(A), rtol=100 * lib.eps, rng=5)
        assert complex(exact.value) == pytest.approx(complex(np.trace(A)), rel=1e4 * lib.eps)
        assert (exact.method, exact.converged) == ("exact_trace", True)
        assert exact.num_matvecs < 160
        assert lib.at_home(exact.value)


def test_single_precision_stays_single() -> None:
    for lib in installed("numpy", "strict:device1", "torch"):
        A = lib.array(dense("i^-2"), "float32")
        estimate = trace(A, rng=0)
        assert estimate.value.dtype == lib.xp.float32
        assert float(estimate) == pytest.approx(np.trace(dense("i^-2")), rel=1e-2)


def generator(lib: Library, seed: int) -> Any:
    """A generator of the library itself."""
    if lib.family == "torch":
        import torch

        return torch.Generator().manual_seed(seed)
    import jax

    return jax.random.key(seed)


def test_generators_of_the_libraries() -> None:
    for lib in installed("torch"):
        A, truth = lib.array(dense("i^-2")), float(np.trace(dense("i^-2")))
        first, again, other = (
            trace(A, rtol=0.05, rng=generator(lib, seed), psd=True) for seed in (0, 0, 1)
        )
        assert same(first, again)
        assert float(first) != float(other)
        assert float(first) == pytest.approx(truth, rel=0.05)
        rough = trace(A, rtol=1.0, rng=generator(lib, 0), psd=True)
        assert rough.num_matvecs < first.num_matvecs
        assert same(tk.resume(A, rough, rtol=0.05), first)


def test_every_budget_with_a_torch_generator() -> None:
    """A last step may be too small to draw a new probe."""
    for lib in installed("torch"):
        for spectrum in ("i^-2", "1+U"):
            for m in range(16, 60):
                A, counter = tk.counted(lib.array(dense(spectrum)))
                estimate = trace(A, rtol=0.0, num_matvecs=m, rng=generator(lib, 2))
                assert m - 1 <= estimate.num_matvecs == counter.total <= m


@pytest.mark.parametrize("options", [{}, {"psd": True}, {"num_matvecs": 7}], ids=repr)
def test_compiled_code_is_told_what_to_call(options: dict[str, Any]) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    A, key = jax.numpy.asarray(dense("i^-2")), jax.random.key(0)
    with pytest.raises(TypeError, match=r"jax\.jit"):
        jax.jit(lambda A, key: trace(A, rng=key, **options))(A, key)
    small = jax.jit(lambda A, key: trace(A, rng=key, **options))(A[:5, :5], key)
    assert float(small) == pytest.approx(float(np.trace(dense("i^-2")[:5, :5])))


@pytest.mark.parametrize("psd", [None, True])
def test_zero_and_scaled_operators(psd: bool | None) -> None:
    zero = trace(np.zeros((N, N)), rng=0, psd=psd)
    assert (float(zero), float(zero.standard_error)) == (0.0, 0.0)
    base = trace(dense("i^-2"), rng=0, psd=psd)
    for exponent in (-531, 498):
        scaled = trace(dense("i^-2") * 2.0**exponent, rng=0, psd=psd)
        assert float(scaled) * 2.0**-exponent == pytest.approx(float(base), rel=1e-9)
        assert scaled.num_matvecs == base.num_matvecs
