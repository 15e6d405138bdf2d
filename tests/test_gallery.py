"""The examples of the gallery run without a warning, and find what is there."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit as tk

GALLERY = Path(__file__).resolve().parents[1] / "examples" / "gallery"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Figures are drawn and thrown away."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.gcf().canvas.draw())
    yield
    plt.close("all")


def run(name: str, *needs: str) -> dict[str, Any]:
    for module in needs:
        pytest.importorskip(module, reason=f"{module} is not installed")
    with single_precision() if "jax" in needs else nullcontext():
        return runpy.run_path(str(GALLERY / f"plot_{name}.py"))


def single_precision() -> AbstractContextManager[Any]:
    """JAX as it is by default, whatever other tests ask of it."""
    import jax

    return jax.enable_x64(False)


def held(estimates: Any, truths: Any) -> None:
    """All within their 99.9 % intervals, which are narrow enough to mean something."""
    for estimate, truth in zip(estimates, truths, strict=True):
        low, high = (float(end) for end in estimate.confidence_interval(0.999))
        assert low <= truth <= high
        assert high - low < abs(truth)


def test_every_example_is_tested() -> None:
    source = Path(__file__).read_text()
    for file in GALLERY.glob("*.py"):
        assert f'run("{file.stem.removeprefix("plot_")}"' in source


def test_calibration() -> None:
    found = run("calibration")
    assert found["exact"] == pytest.approx(15.1, abs=0.05)
    for shares in found["coverage"].values():
        assert np.all(shares > found["levels"] - 0.07)
    errors = [
        np.mean([(float(run) - found["exact"]) ** 2 for run in runs])
        for runs in found["runs"].values()
    ]
    assert errors == sorted(errors, reverse=True)  # Hutchinson, Hutch++, XTrace


def test_choosing() -> None:
    found = run("choosing")
    errors, within = found["errors"], []
    assert errors.shape == (len(found["tolerances"]), found["seeds"])
    for name, rows in found["found"].items():
        exact = np.trace(found["matrices"][name])
        for rtol, runs in zip(found["tolerances"], rows, strict=True):
            within += [abs(float(run) / exact - 1) <= rtol for run in runs]
    assert np.mean(within) > 0.95
    costs = [run.num_matvecs for run in found["found"]["broad kernel"][-1]]
    assert max(costs) < found["n"] / 2


def test_entanglement() -> None:
    found = run("entanglement")
    for g, entropies in found["found"].items():
        np.testing.assert_allclose(entropies, found["exact"][g], atol=1e-10)
    off = (found["polarised"] - found["truth"]) / found["bars"]
    assert np.max(np.abs(off)) < 3.5
    assert np.max(found["bars"]) < 0.05
    assert all(state.converged for state in found["states"])


def test_flow_divergence() -> None:
    found = run("flow_divergence", "jax")
    truth = np.asarray(found["truth"])
    np.testing.assert_allclose(found["found"][None][0], truth, atol=0.1)
    for m in found["some"]:
        values, bars, bar = found["found"][m]
        assert abs(values.mean() - truth.mean()) < 3.3 * bar
        assert m == 2 or np.mean(np.abs(values - truth) < 2.5 * bars) > 0.9
    assert found["found"][8][2] < 0.1 * np.std(truth)


def test_gaussian_process() -> None:
    found = run("gaussian_process", "jax")
    held([logdet for (_, logdet), _ in found["runs"]][1:], found["logdets"][1:])
    assert np.argmax(found["found"]) == np.argmax(found["values"])
    np.testing.assert_allclose(found["steep"], found["slopes"], atol=0.05 * np.ptp(found["slopes"]))


def test_graph_clustering() -> None:
    found = run("graph_clustering")
    low, high, exact = found["low"], found["high"], np.array(found["exact"])
    assert np.all((low <= exact) & (exact <= high))
    assert np.all(high - low < 0.2 * exact)


def test_hessian_spectrum() -> None:
    found = run("hessian_spectrum", "torch")
    for name, density in found["densities"].items():
        exact = found["exact"][name]
        assert float(density.nodes.max()) == pytest.approx(exact[-1], rel=1e-4)
        mean = float((density.nodes * density.weights).sum())
        deviation = np.sqrt(2 * np.sum(exact**2) / density.num_probes) / len(exact)
        assert abs(mean - exact.mean()) < 4 * deviation
        held([found["traces"][name]], [exact.sum() * len(found["x"])])


def test_kernel_bandwidth() -> None:
    found = run("kernel_bandwidth")
    for name, exact in found["exact"].items():
        values, low, high = np.transpose(found["found"][name])
        np.testing.assert_allclose(values, exact, rtol=0.05)
        assert np.mean((low <= exact) & (exact <= high)) > 0.7
    assert found["best"] == np.argmax(found["exact"]["alignment with the labels"])


def test_cheap_approximations() -> None:
    found = run("cheap_approximations")
    held(found["estimates"], [found["exact"]] * len(found["ranks"]))
    errors = [float(estimate.standard_error) for estimate in found["estimates"]]
    assert errors[-1] < 0.5 * errors[0]


def test_language_model() -> None:
    found = run("language_model", "torch")
    for K, shares in zip((found["before"], found["after"]), found["shares"].values(), strict=True):
        trace = float(sum(shares.values()))
        assert float(K.trace()) == pytest.approx(trace, rel=1e-3)
    assert found["own"] > found["other"]


def test_marginal_variances() -> None:
    found = run("marginal_variances")
    for lattice in found["runs"]:
        error = np.sqrt(np.mean((lattice.value - found["truth"]) ** 2))
        claimed = np.sqrt(np.mean(lattice.standard_error**2))
        assert error == pytest.approx(claimed, rel=0.1)
        assert lattice.value.mean() == pytest.approx(found["truth"], rel=0.01)
    held_days = (found["low"] <= found["exact"]) & (found["exact"] <= found["high"])
    assert 0.93 < np.mean(held_days) < 0.97


def test_matrix_market() -> None:
    found = run("matrix_market")
    L = found["L"]
    assert L.shape == (34744, 34744)
    assert abs(L.sum()) < 1e-6
    held(found["runs"], [found["exact"] / found["mean"]] * len(found["runs"]))
    x = np.random.default_rng(0).standard_normal((L.shape[0], 2))
    x -= x.mean(axis=0)
    np.testing.assert_allclose(L @ found["potentials"](x), x, atol=1e-9)


def test_partial_traces() -> None:
    found = run("partial_traces", "jax")
    for name, estimate in found["estimates"].items():
        exact = found["exact"][name]
        error = np.linalg.norm(estimate.value - exact)
        assert error < 0.05 * np.linalg.norm(exact)
        assert error < 2 * np.linalg.norm(estimate.standard_error)


def test_per_layer() -> None:
    found = run("per_layer", "jax")
    for gain, layers in found["found"].items():
        traces, ranks = found["exact"][gain]
        held([summary.trace for summary in layers.values()], [traces[name] for name in layers])
        for name, summary in layers.items():
            assert float(summary.effective_rank) == pytest.approx(float(ranks[name]), rel=0.3)
    first, *_, last = (float(truth) for truth in found["exact"][3][0].values())
    assert first > 5 * last


def test_pylops_resolution() -> None:
    found = run("pylops_resolution", "pylops")
    held([found["resolved"]], [found["exact"].sum()])
    assert found["error"] < 0.03
    assert found["held"] > 0.88


def test_ridge() -> None:
    found = run("ridge")
    for name, scores in found["found"].items():
        exact, (best, candidates) = found["exact"][name], tk.argmin(scores)
        low, high = scores.band(0.999)
        assert np.all((low <= exact) & (exact <= high))
        assert np.argmin(exact) in candidates
        assert exact[best] < exact.min() + 0.01 * np.ptp(exact)
        assert scores.num_matvecs <= found["budget"] < found["n"] / 2
    np.testing.assert_allclose(found["scores"].value, found["truth"], rtol=0.01)
    assert np.argmin(found["truth"]) in found["candidates"]


def test_spin_chain() -> None:
    found = run("spin_chain")
    for name, exact in found["exact"].items():
        estimate = getattr(found["found"], name)
        low, high = estimate.band(0.99)
        assert np.all((low <= exact) & (exact <= high))
        settled = estimate.standard_error < 0.1 * np.abs(estimate.value)
        assert np.mean(settled) > 0.8
        np.testing.assert_allclose(estimate.value, exact, atol=0.02 * np.ptp(exact))


def test_training_tracked() -> None:
    found = run("training_tracked", "jax")
    points = found["tracker"].points
    held([point.trace for point in points], found["traces"])
    held([point.alignment for point in points[1:]], found["alignments"][1:])
    assert found["alignments"][-1] < 0.9
    assert found["tracker"].num_matvecs < len(points) * len(found["start"]) / 10


def test_recurrent_states() -> None:
    found = run("recurrent_states", "torch")
    looks, losses = found["looks"], found["losses"]
    first, last = looks[min(looks)], looks[max(looks)]
    assert losses[-1] < 0.05 * losses[0]
    assert last["trace"] < 0.1 * first["trace"]
    assert last["of steps"] == pytest.approx(first["of steps"], rel=0.3)
    assert first["exponents"].max() > last["exponents"].max() + 0.1
    for look in looks.values():
        assert np.trace(look["time"]) == pytest.approx(look["trace"], rel=1e-4)


def test_probing() -> None:
    found = run("probing")
    held([found["total"]], [found["exact"].sum()])
    assert found["errors"]["colours"][-1] < 0.02
    assert found["errors"]["colours"][1] < found["errors"]["plain signs"][1] / 3
    assert found["law"].size == 13
