"""Probes that are deflated by one another's spaces: unbiased, by what is no space of their own."""

from __future__ import annotations

import numpy as np
import pytest

import tracekit as tk
from tracekit import functions
from tracekit._sketches import cross_fitting, lanczos
from tracekit.testing import known_spectrum

N, W = 120, np.r_[np.linspace(0.0, 1.0, 116), 1.5, 2.0, 3.0, 4.0]


def hermitian(kind: str) -> np.ndarray:
    A = known_spectrum(W)
    phase = np.exp(1j * np.arange(N)) if kind == "complex" else np.ones(N)
    return phase[:, None] * A * phase.conj()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("real", {}),
        ("complex", {}),
        ("real", {"block": 2, "depth": 4}),
        ("factor", {"depth": 4}),
        ("real", {"most": 12, "depth": 4}),  # most probes meet spaces that are none of theirs
    ],
)
def test_the_mean_over_seeds_is_the_trace(kind, options, monkeypatch):
    """At a depth that is enough for the cube, whose rule is exact from two steps on."""
    options = dict(options)
    monkeypatch.setattr("tracekit._sketches.spaces.MOST_COLUMNS", options.pop("most", 640))
    A, f = hermitian(kind), lambda x: x**3
    if kind == "factor":
        w, V = np.linalg.eigh(A)
        A = tk.gram(V * np.sqrt(np.maximum(w, 0)))
    options.setdefault("depth", 3)
    found = [tk.trace_function(A, f, 72, rng=seed, **options) for seed in range(200)]
    plain = [tk.trace_function(A, f, 72, rng=seed, deflate=0, **options) for seed in range(60)]
    values = np.array([float(e) for e in found])
    assert abs(np.mean(values) - np.sum(W**3)) < 4 * np.std(values) / 200**0.5
    assert np.std(values) < 0.7 * np.std([float(e) for e in plain])


def test_a_probe_never_meets_its_own_space():
    A = tk.as_operator(hermitian("real"))
    X = np.random.default_rng(0).standard_normal((N, 9))
    K = lanczos.begin(A, X).advance(5)
    folds, whole = cross_fitting.dealt(K)
    assert sorted(j for fold in folds for j in fold.members) == list(range(9))
    Q = np.concatenate([np.asarray(P) for P in K.panels], axis=-1)[..., :4]
    for fold in folds:
        others = np.concatenate([Q[j] for j in range(9) if j not in fold.members], axis=1)
        V, s, _ = np.linalg.svd(others, full_matrices=False)
        V = V[:, s > 1e-6 * s.max()]
        theta, U = np.linalg.eigh(V.T @ (hermitian("real") @ V))
        assert np.isclose(np.max(fold.theta), np.max(theta), rtol=1e-8)
        energy = (U[:, -1] @ (V.T @ X[:, list(fold.members)])) ** 2
        np.testing.assert_allclose(fold.energy[np.argmax(fold.theta)], energy, rtol=1e-6)
    assert whole is not None
    met = cross_fitting.met(whole, X[:, :2], 9)
    assert met.members == (9, 10)


def test_runs_on_graphs_are_not_taken_for_one_another():
    """Forms of signs with an adjacency matrix are integers, and equal by chance."""
    rng = np.random.default_rng(0)
    G = np.triu(rng.random((300, 300)) < 0.03, 1).astype(float)
    G = G + G.T
    runs = [tk.spectral_run(G, 150, rng=seed, depth=6) for seed in range(4)]
    first = [np.asarray(run._spaces.read().diagonal[0]).ravel() for run in runs]
    assert len(set(np.concatenate(first).tolist())) < sum(map(len, first))  # some are equal
    merged = tk.merge(runs)
    exact = np.sum(np.exp(np.linalg.eigvalsh(G)))
    assert (
        abs(merged.trace(functions.exp).value - exact)
        < 5 * merged.trace(functions.exp).standard_error
    )
    with pytest.raises(ValueError, match="share probes"):
        tk.merge([*runs, tk.spectral_run(G, 90, rng=0, depth=6)])


def test_two_probes_do_not_vouch_for_each_other():
    """On a diagonal matrix signs, each deflated by the other's space, err alike to the last bit."""
    w = np.arange(1.0, 201.0)
    exact, held = np.sum(np.log(w)), []
    for seed in range(20):
        found = tk.logdet(np.diag(w), 80, rng=seed)
        low, high = found.confidence_interval()
        held.append(low <= exact <= high)
        assert found.standard_error < 0.1
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("rank", [1, 3])
def test_what_low_ranks_leave_out_is_zero_to_all_probes(rank):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((300, rank)) @ rng.standard_normal((rank, 300))
    exact = np.sum(np.linalg.svd(A, compute_uv=False))
    errors = [abs(float(tk.nuclear_norm(A, 60, rng=seed)) / exact - 1) for seed in range(40)]
    assert np.mean(np.array(errors) < 1e-4) > (0.5 if rank == 3 else 0.99)
