"""Laws of ratios, differences and linear combinations of estimates that share their probes."""

from __future__ import annotations

import itertools
from functools import wraps

import numpy as np
import pytest
from conftest import Library, library

import tracekit as tk
from tracekit._estimates import ErrorParts, mean, of_probes

N = 60


def psd(seed: int = 0, *, cplx: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, N)) + (1j * rng.standard_normal((N, N)) if cplx else 0)
    return X @ X.conj().T / N + np.eye(N)


def of(samples: np.ndarray, draws: str = "a", **more) -> tk.Estimate:
    """The mean of samples, as if each were of a probe of one seed."""
    found = mean(np.asarray(samples), np.shape(samples)[-1], "hutchinson")
    told = [f"{np.shape(samples)[-1]} probes"]
    estimate = of_probes(found, told)
    fields = {name: getattr(estimate, name) for name in estimate.__dataclass_fields__}
    return tk.Estimate(**fields | {"origin": estimate.origin | {"draws": [draws]}} | more)


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cplx", [False, True])
def test_ratios_are_those_of_the_naive_twin(cplx):
    A, B = psd(0, cplx=cplx), psd(1, cplx=cplx)
    A = A + (0.3j * B if cplx else 0)
    a, b = (tk.hutchinson(X, 9, rng=3) for X in (A, B))
    D, Z, m = a.samples, b.samples, 9
    R = np.mean(D) / np.mean(Z)
    apart = (D - R * Z) / np.mean(Z)
    found = tk.ratio(a, b)
    spread = np.sqrt(np.sum(np.abs(apart) ** 2) / (m * (m - 1)))
    bias = np.sum(apart * (Z - np.mean(Z))) / (m * (m - 1) * np.mean(Z))
    assert np.isclose(found.value, R + bias, rtol=1e-12)
    assert np.isclose(found.standard_error, spread, rtol=1e-10)
    assert np.isclose(np.mean(found.samples), found.value)
    assert (found.num_matvecs, found.dof, found.method) == (18, 8, "ratio")


@pytest.mark.parametrize("cplx", [False, True])
def test_linear_combinations_are_those_of_the_operators(cplx):
    A, B, C = (psd(s, cplx=cplx) for s in range(3))
    c = (2.0, -1.0, 0.5)
    parts = [tk.hutchinson(X, 9, rng=3) for X in (A, B, C)]
    found = tk.linear_combination(c, parts)
    expected = tk.hutchinson(2 * A - B + 0.5 * C, 9, rng=3)
    np.testing.assert_allclose(found.samples, expected.samples, rtol=1e-11)
    assert np.isclose(found.standard_error, expected.standard_error, rtol=1e-10)
    assert np.isclose(found.skewness, expected.skewness)
    assert found.num_matvecs == 27
    less = tk.difference(parts[0], parts[1])
    expected = tk.hutchinson(A - B, 9, rng=3)
    assert np.isclose(less.value, expected.value)
    np.testing.assert_allclose(less.confidence_interval(), expected.confidence_interval())


def test_arrays_broadcast():
    rng = np.random.default_rng(0)
    D, Z = of(rng.normal(5, 1, (4, 3, 20))), of(rng.normal(5, 1, (3, 20)))
    found = tk.ratio(D, Z)
    assert found.value.shape == found.standard_error.shape == (4, 3)
    for i, j in itertools.product(range(4), range(3)):
        one = tk.ratio(of(D.samples[i, j]), of(Z.samples[j]))
        assert np.isclose(found.value[i, j], one.value)
        assert np.isclose(found.standard_error[i, j], one.standard_error)
    scalar = of(Z.samples[0])
    assert tk.difference(scalar, D).value.shape == (4, 3)
    assert tk.ratio(scalar, D).samples.shape == (4, 3, 20)
    low, high = found.band(0.9)
    assert np.all((high - low) / (2 * found.standard_error) > 1.9)


def test_the_bias_of_first_order_is_removed():
    """Exactly, over all pairs of probes of a population of few."""
    D, Z = np.array([1.0, 2.0, 4.0, 9.0]), np.array([2.0, 3.0, 3.5, 5.0])
    pairs = [list(p) for p in itertools.product(range(4), repeat=3)]
    plain = np.mean([np.mean(D[p]) / np.mean(Z[p]) for p in pairs])
    with np.errstate(all="ignore"):
        found = np.mean([float(tk.ratio(of(D[p]), of(Z[p])).value) for p in pairs])
    exact = np.mean(D) / np.mean(Z)
    assert abs(found - exact) < 0.3 * abs(plain - exact)


def test_intervals_of_ratios_and_differences_hold():
    """Of operators nearly alike, whose errors cancel: narrow intervals that cover."""
    A = psd(0)
    B = A + 0.05 * np.diag(np.linspace(0, 1, N)) + 0.02 * (psd(1) - np.eye(N))
    exact = np.trace(B) / np.trace(A), np.trace(B) - np.trace(A)
    held, widths = [], []
    for seed in range(200):
        a, b = (tk.hutchinson(X, 12, rng=seed) for X in (A, B))
        for found, truth in zip((tk.ratio(b, a), tk.difference(b, a)), exact, strict=True):
            low, high = found.confidence_interval()
            held.append(low <= truth <= high)
        widths.append(found.standard_error / np.hypot(a.standard_error, b.standard_error))
    assert 0.92 <= np.mean(held[::2]) <= 0.99
    assert 0.92 <= np.mean(held[1::2]) <= 0.99
    assert np.mean(widths) < 0.1


# --- honesty --------------------------------------------------------------------------------------


def test_denominators_that_may_be_zero_leave_the_error_infinite():
    rng = np.random.default_rng(0)
    D, Z = of(rng.normal(5, 1, 10)), of(rng.normal(0.1, 1, 10))
    assert np.isinf(tk.ratio(D, Z).standard_error)
    both = tk.ratio(D, of(np.stack([Z.samples, D.samples + 1])))
    assert np.isinf(both.standard_error).tolist() == [True, False]
    again = tk.difference(tk.ratio(D, Z), tk.ratio(D, D))
    assert np.isinf(again.standard_error)
    with pytest.raises(ValueError, match="divides by is 0"):
        tk.ratio(D, of(np.zeros(10)))


def test_what_widens_an_error_widens_what_is_made_of_it():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(5, 1, (2, 10))
    plain = tk.difference(of(X), of(Y))
    error = of(X).standard_error
    wide = of(X, standard_error=np.hypot(2 * error, 0.1), kept=ErrorParts(2 * error, 0.1))
    found = tk.difference(wide, of(Y))
    assert np.isclose(found.standard_error, np.hypot(2 * plain.standard_error, 0.1))
    assert np.isclose(tk.ratio(of(Y), wide).kept.quadrature, 0.1 * np.mean(Y) / np.mean(X) ** 2)
    # equal samples that may be equal by chance stay unknown, whatever they are combined with
    tied = of(np.full(4, 3.0), standard_error=np.float64(np.inf))
    for made in (tk.difference(of(X[:4]), tied), tk.ratio(tied, tied), tk.ratio(of(X[:4]), tied)):
        assert np.isinf(made.standard_error)
    assert tk.linear_combination((0, 1), (tied, of(X[:4]))).standard_error < np.inf
    one = tk.ratio(of([3.0]), of([2.0]))
    assert one.value == 1.5
    assert np.isinf(one.standard_error)
    lost = of(X, converged=False, reason="lost")
    assert (tk.ratio(of(Y), lost).converged, tk.ratio(of(Y), lost).reason) == (False, "lost")


def test_samples_that_agree_by_chance_are_not_exact():
    """Of operators that differ by one pair of entries, on which four signs often agree."""
    A, E = psd(), np.zeros((N, N))
    E[0, 1] = E[1, 0] = 1.0
    found = []
    for seed in range(30):
        a, b = (tk.hutchinson(X, 4, rng=seed) for X in (A, A + E))
        found.append(tk.difference(b, a))
    off = np.array([abs(e.value) > 4 * e.standard_error for e in found])
    assert not off.any()
    assert 0 < sum(np.isinf(e.standard_error) for e in found) < 15
    many = [tk.hutchinson(X, 16, rng=0) for X in (A, A + 2 * np.eye(N))]
    assert tk.difference(many[1], many[0]).standard_error < 1e-12
    few = [tk.hutchinson(c * np.eye(N), 8, rng=0) for c in (2.0, 3.0)]
    assert tk.difference(few[1], few[0]).standard_error == 0


def test_exact_estimates_are_constants():
    A = psd()
    a, c = tk.hutchinson(A, 9), tk.exact_trace(A)
    found = tk.ratio(a, c)
    assert np.isclose(found.value, a.value / c.value)
    assert np.isclose(found.standard_error, a.standard_error / c.value)
    assert np.isclose(tk.difference(c, a).standard_error, a.standard_error)
    assert tk.ratio(c, a).num_matvecs == 9 + N
    both = tk.ratio(c, tk.hutchinson(2 * A, N))
    assert (both.value, both.standard_error, both.samples) == (pytest.approx(0.5), 0, None)
    assert tk.difference(both, both).value == 0


def test_products_of_one_run_are_counted_once():
    run, other = (tk.spectral_run(X, 50, rng=1, depth=6) for X in (psd(), psd(1)))
    a, b, c = run.trace(np.exp), run.trace(np.sqrt), other.trace(np.exp)
    assert tk.ratio(a, b).num_matvecs == run.num_matvecs
    assert tk.ratio(tk.ratio(a, b), b).num_matvecs == run.num_matvecs
    assert tk.difference(a, c).num_matvecs == run.num_matvecs + other.num_matvecs
    assert np.isclose(tk.ratio(a, b).value, run.ratio(np.exp, np.sqrt).value)
    x = tk.hutchinson(psd(), 9, rng=0)
    assert tk.difference(x, x).num_matvecs == 9


# --- probes that are shared, and those that are not -----------------------------------------------


def test_calls_of_one_seed_share_their_probes():
    A, B = psd(), psd(1)
    L = np.linalg.cholesky(A)
    for make in (
        lambda X: tk.hutchinson(X, 9, rng=5, probes=tk.probes.sphere),
        lambda X: tk.hutchinson(X, 9, rng=np.random.default_rng(5)),
        lambda X: tk.hutchinson(X, 9, rng=5, probes=tk.probes.hadamard),
        lambda X: tk.trace_function(X, np.exp, 40, rng=5, depth=8),
        lambda X: tk.spectral_run(X, 40, rng=5, depth=6).trace(np.exp),
        lambda X: tk.merge([tk.hutchinson(X, 9, rng=s) for s in (5, 6)]),
        lambda X: tk.merge([tk.spectral_run(X, 40, rng=s, depth=6) for s in (5, 6)]).logdet(),
    ):
        same = tk.difference(make(A), make(1.01 * A))
        assert same.kept.monte_carlo < 0.1 * make(A).standard_error
        assert tk.difference(make(A), make(B)).standard_error > 0
    kernels = [tk.one_sided(X, 9, rng=5) for X in (L, 1.01 * L)]
    assert float(tk.ratio(kernels[1], kernels[0])) == pytest.approx(1.0201)


def test_estimates_that_share_no_probes_are_refused():
    A = psd()
    a, run = tk.hutchinson(A, 9, rng=0), tk.spectral_run(A, 45, rng=0, depth=5)
    before = run.trace(np.exp)
    own = lambda source, n, m: source.signs((n, m))  # noqa: E731
    generator, same = np.random.default_rng(0), np.random.default_rng(0)
    drawn = tk.spectral_run(A, 45, rng=generator, depth=5)
    twin = tk.spectral_run(A, 45, rng=same, depth=5)
    assert tk.ratio(drawn.trace(np.exp), twin.trace(np.exp)).value == 1
    generator.random()
    wrapped = wraps(tk.probes.rademacher)(lambda source, n, m: -source.signs((n, m)))
    for one, other, match in (
        (a, tk.hutchinson(A, 9, rng=1), "different seeds"),
        (a, tk.hutchinson(A, 8, rng=0), "got 9 .* and 8"),
        (a, tk.hutchinson(A, 9, rng=0, probes=tk.probes.sphere), "sphere"),
        (a, tk.hutchinson(A.astype(np.float32), 9, rng=0), "float32"),
        (a, tk.hutchinson(A, 9, rng=np.random.default_rng(0)), "generator"),
        (a, tk.hutchinson(psd()[:40, :40], 9, rng=0), "dimension 40"),
        (tk.hutchinson(A, 9), tk.hutchinson(A, 9), "unknown seed"),
        (a, tk.hutchinson(A, 9, rng=0, probes=own), "does not say so"),
        (a, tk.hutchinson(A, 9, rng=0, probes=wrapped), "does not say so"),
        (a, tk.xtrace(A, 18, rng=0), "xtrace does not say so"),
        (a, tk.diagonal(A, 9, rng=0), "diagonal keeps none"),
        (a, tk.Estimate.from_dict(a.to_dict()), "keeps none"),
        (a, tk.logdet(A, 45, rng=0, depth=5, deflate=4), "does not say so"),
        (before, tk.spectral_run(A, 45, depth=5).trace(np.exp), "different seeds"),
        (before, run.extend(10).trace(np.exp), "probes of dimension"),
        (drawn.extend(10).trace(np.exp), twin.extend(10).trace(np.exp), "different seeds"),
        (tk.hutchinson(A, 9, rng=0, probes=tk.probes.hadamard),
         tk.hutchinson(A, 20, rng=0, probes=tk.probes.hadamard, atol=1e9), "of"),
    ):  # fmt: skip
        for call in (tk.ratio, tk.difference):
            with pytest.raises(ValueError, match=match):
                call(one, other)
    with pytest.raises(TypeError, match="takes Estimates, got float"):
        tk.ratio(a, 3.0)
    with pytest.raises(TypeError, match="of one library"):
        tk.ratio(a, tk.hutchinson(library("torch").array(A), 9, rng=0))
    for c in ((1,), (), ("x", 1)):
        with pytest.raises((TypeError, ValueError), match="number"):
            tk.linear_combination(c, (a, a))
    with pytest.raises(ValueError, match="one at least"):
        tk.linear_combination((), ())


def test_runs_with_probes_of_the_callers_know_their_own():
    own = lambda source, n, m: source.signs((n, m))  # noqa: E731
    run = tk.spectral_run(psd(), 45, depth=5, probes=own)
    assert np.isfinite(run.ratio(np.exp, np.sqrt).standard_error)
    other = tk.spectral_run(psd(), 45, depth=5, probes=own)
    with pytest.raises(ValueError, match="different seeds"):
        tk.ratio(run.trace(np.exp), other.trace(np.exp))


def test_loaded_runs_share_their_probes(tmp_path):
    run = tk.spectral_run(psd(), 45, depth=5)
    run.save(tmp_path / "run.npz")
    read = tk.SpectralRun.load(tmp_path / "run.npz")
    found = tk.ratio(run.trace(np.exp), read.trace(np.exp))
    assert (found.value, found.num_matvecs) == (1, run.num_matvecs)


# --- libraries ------------------------------------------------------------------------------------


def test_libraries_agree(lib: Library):
    A, B = psd(), psd(1)
    expected = tk.ratio(*(tk.hutchinson(X, 9, rng=3) for X in (A, B)))
    a, b = (tk.hutchinson(lib.array(X), 9, rng=3) for X in (A, B))
    for found in (tk.ratio(a, b), tk.linear_combination((1, 0.5), (a, b))):
        assert lib.at_home(found.value)
        assert found.value.dtype == a.value.dtype
        assert found.standard_error.dtype == a.standard_error.dtype
    found = tk.ratio(a, b)
    np.testing.assert_allclose(lib.numpy(found.value), expected.value, rtol=1e-4)
    np.testing.assert_allclose(lib.numpy(found.standard_error), expected.standard_error, rtol=1e-3)


def test_compiled_code_knows_an_int_and_no_traced_key():
    jax, lib = pytest.importorskip("jax"), library("jax")
    A, B = lib.array(psd()), lib.array(psd(1))

    def score(A, B, rng=3):
        return tk.ratio(tk.hutchinson(A, 9, rng=rng), tk.hutchinson(B, 9, rng=rng))

    found, plain = jax.jit(score)(A, B), score(A, B)
    assert np.isclose(found.value, plain.value)
    assert np.isclose(found.standard_error, plain.standard_error)
    a, b = (jax.jit(lambda X: tk.hutchinson(X, 9, rng=3))(X) for X in (A, B))
    with pytest.raises(ValueError, match="does not say so"):
        tk.ratio(a, b)
    with pytest.raises(ValueError, match="unknown seed"):
        jax.jit(score)(A, B, jax.random.key(0))
    slope = jax.grad(lambda t: score(A + t * B, B).value)(0.0)
    assert np.isclose(slope, 1.0)
