"""The published algorithms: unbiased once corrected, no better than ours; the references exact."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import tracekit as tk
from examples.hazelden2025 import algorithms
from examples.hazelden2025.algorithms import paired_effective_rank, paired_moments, split_trace

RUNS = 400
rng = np.random.default_rng(1)
J1, J2 = rng.standard_normal((2, 20, 30)) / np.arange(1.0, 21.0)[:, None]
L1, L2 = tk.as_operator(J1), tk.as_operator(J2)
K1, K2 = J1 @ J1.T, J2 @ J2.T


def z_score(values: list[float], exact: float) -> float:
    return abs(np.mean(values) - exact) / (np.std(values, ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("share", [1 / 2, 1 / 6])
def test_the_split_form_is_unbiased(share: float) -> None:
    L, counter = tk.counted(L1)
    split = [split_trace(L, 12, np.random.default_rng(s), share) for s in range(RUNS)]
    assert counter.rmatvecs == 12 * RUNS
    assert z_score(split, np.trace(K1)) < 4


def test_the_split_form_has_about_twice_the_variance_or_more() -> None:
    L = tk.as_operator(np.random.default_rng(2).standard_normal((100, 120)))
    split = [split_trace(L, 24, np.random.default_rng(s)) for s in range(RUNS)]
    ours = [float(tk.one_sided(L, 24, rng=s)) for s in range(RUNS)]
    assert np.var(split) > 1.5 * np.var(ours)


def test_the_split_form_needs_its_orthonormalisation() -> None:
    L = tk.as_operator(np.random.default_rng(2).standard_normal((50, 60)))
    exact, k = np.sum(L.matmat(np.eye(60)) ** 2), 4
    bare = [
        algorithms.unorthogonalised_trace(L, 2 * k, np.random.default_rng(s)) for s in range(RUNS)
    ]
    assert z_score(bare, exact * (1 + k * (k - 2) + k * 50)) < 4
    assert np.mean(bare) > 100 * exact


def test_paired_products_are_unbiased_in_the_corrected_order() -> None:
    L, counter = tk.counted(L1)
    runs = np.array([paired_moments(L, L2, 40, np.random.default_rng(s)) for s in range(RUNS)])
    assert counter.rmatvecs == 20 * RUNS
    for values, exact in zip(
        runs.T, (np.sum(K1 * K2), np.sum(K1 * K1), np.sum(K2 * K2)), strict=True
    ):
        assert z_score(list(values), exact) < 4


def test_the_effective_rank_needs_the_squared_numerator() -> None:
    rank = np.trace(K1) ** 2 / np.sum(K1 * K1)
    pairs = [paired_effective_rank(L1, 2000, np.random.default_rng(s)) for s in range(5)]
    assert np.median(pairs) == pytest.approx(rank, rel=0.15)


def test_algorithm_1_is_unbiased_and_spends_three_quarters_of_its_m() -> None:
    A, counter = tk.counted(K1)
    runs = [algorithms.hutchpp(A, 12, np.random.default_rng(s)) for s in range(RUNS)]
    assert counter.matvecs == 9 * RUNS
    assert z_score(runs, np.trace(K1)) < 4
    assert [algorithms.allocation(m) for m in (60, 120, 300)] == [(10, 25), (20, 50), (50, 125)]


@pytest.mark.parametrize("num_products", [7, 9, 24, 45, 90, 225])
def test_the_largest_allowed_m_does_not_spend_more(num_products: int) -> None:
    def spent(m: int) -> int:
        sketch, rest = algorithms.allocation(m)
        return 2 * sketch + rest

    m = algorithms.allowed(num_products)
    assert spent(m) <= num_products < min(spent(k) for k in range(m + 1, m + 50))


def test_algorithm_1_on_products_of_operators_gives_norm_alignment_and_rank() -> None:
    low1, low2 = (J[:, :3] @ J[:, :3].T for J in (J1, J2))  # of rank 3: found exactly
    A, B = tk.as_operator(low1), tk.as_operator(low2)
    norm = np.linalg.norm(low1)
    assert algorithms.hutchpp_norm(A, 60, rng) == pytest.approx(norm)
    rank = np.trace(low1) ** 2 / norm**2
    assert algorithms.hutchpp_effective_rank(A, 60, rng) == pytest.approx(rank)
    cosine = np.sum(low1 * low2) / norm / np.linalg.norm(low2)
    assert algorithms.hutchpp_alignment(A, B, 60, rng) == pytest.approx(cosine)


@pytest.fixture(scope="module")
def paper() -> SimpleNamespace:
    """The modules that need PyTorch."""
    torch = pytest.importorskip("torch")
    from examples.hazelden2025 import errata, networks, references, study

    return SimpleNamespace(
        torch=torch, errata=errata, networks=networks, references=references, study=study
    )


def small(paper: SimpleNamespace, module: object, x: object) -> object:
    import tracekit_ntk as tkn

    module = module.double()
    return paper.networks.Problem("small", *tkn.functional(module), x.double(), module)


def by_rows(paper: SimpleNamespace, problem: object) -> object:
    """The kernel, from the gradient of each output."""
    y = problem.module(problem.x).reshape(-1)
    leaves = list(problem.module.parameters())
    rows = [paper.torch.autograd.grad(out, leaves, retain_graph=True) for out in y]
    J = paper.torch.stack([paper.torch.cat([g.reshape(-1) for g in row]) for row in rows])
    return J @ J.T


def test_references_of_a_feedforward_network_are_exact(paper: SimpleNamespace) -> None:
    torch = paper.torch
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    problem = small(paper, module, torch.randn(6, 4))
    K = by_rows(paper, problem)
    torch.testing.assert_close(paper.references.kernel(problem), K)
    assert paper.references.trace(problem) == pytest.approx(float(torch.trace(K)))


def test_references_of_a_recurrent_network_are_exact(paper: SimpleNamespace) -> None:
    torch = paper.torch
    torch.manual_seed(0)
    module = paper.networks.UnrolledGRU(torch.nn.GRU(3, 4))
    problem = small(paper, module, torch.randn(2, 5, 3))
    exact = float(torch.trace(by_rows(paper, problem)))
    assert paper.references.trace(problem) == pytest.approx(exact)
    with pytest.raises(ValueError, match="used 5 times"):
        paper.references.kernel(problem)


def test_the_unrolled_gru_is_torchs_which_takes_time_first(paper: SimpleNamespace) -> None:
    torch = paper.torch
    torch.manual_seed(0)
    gru, x = torch.nn.GRU(10, 64), torch.randn(50, 15, 10)
    with torch.no_grad():
        ours = paper.networks.UnrolledGRU(gru)(x.transpose(0, 1))
        torch.testing.assert_close(ours.transpose(0, 1), gru(x)[0])
        x[-1] += 1  # the last of 50: a time step, not a sample
        assert not torch.equal(gru(x)[0][-1], ours[:, -1])
        torch.testing.assert_close(gru(x)[0][:-1], ours.transpose(0, 1)[:-1])


@pytest.mark.parametrize(("he", "trace"), [(False, 2314.232), (True, 2.94963e6)])
def test_the_mlp_is_the_papers(paper: SimpleNamespace, he: bool, trace: float) -> None:
    problem = paper.networks.mlp("MLP", he=he)
    assert problem.shape == (50, 64)
    assert sum(p.numel() for p in problem.params.values()) == 64_704
    assert paper.references.trace(problem) == pytest.approx(trace, rel=1e-4)


def test_the_sketches_see_the_network_that_the_references_see(paper: SimpleNamespace) -> None:
    import tracekit_ntk as tkn

    problem = paper.networks.gru("GRU", first=4, second=3, batch_first=True)
    exact = paper.references.trace(problem)
    own = tkn.sample_ntk(problem.f, problem.params, problem.x)
    law = tk.probes.tiled(tk.probes.orthogonal, 4)
    assert float(tk.hutchinson(own, 3 * 64, rng=0, probes=law)) == pytest.approx(exact)
    J = tkn.jacobian(problem.outputs, problem.params)
    runs = [algorithms.hutchpp(tk.gram(J), 30, np.random.default_rng(s)) for s in range(20)]
    assert z_score(runs, exact) < 4


def test_the_errata(paper: SimpleNamespace) -> None:
    for shown in (
        paper.errata.proposition_1(100_000),
        paper.errata.effective_rank(),
        paper.errata.products(),
    ):
        assert shown.seen == pytest.approx(shown.right, rel=0.1)
        assert abs(shown.paper / shown.right - 1) > 0.3
    without_qr = paper.errata.orthonormalisation(runs=200)
    assert without_qr.seen == pytest.approx(without_qr.paper, rel=0.05)
    of_trace, of_norm = paper.errata.indefinite(runs=10)
    assert of_trace > 5 * of_norm


def test_a_curve_knows_how_long_a_tolerance_takes(paper: SimpleNamespace) -> None:
    errors, seconds = np.array([1e-1, 1e-2, 1e-4]), np.array([1.0, 2.0, 8.0])
    curve = paper.study.Curve((1, 2, 3), np.arange(3), 1 + errors[:, None], seconds[:, None])
    assert curve.time_to(1e-3) == pytest.approx(4.0)
    assert curve.time_to(0.5) == 1.0
    assert curve.time_to(1e-5) == float("inf")
    assert curve.at(2) == pytest.approx((1e-2, 2.0))
