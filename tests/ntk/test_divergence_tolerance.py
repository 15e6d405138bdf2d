"""Divergences and Laplacians to a tolerance: kept, told of, and gone on with from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn

D, SAMPLES = 40, 12
QUANTITIES = ("divergence", "laplacian")
quantities = pytest.mark.parametrize("name", QUANTITIES)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def parts(torch: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    W = torch.from_numpy(rng.standard_normal((D, D))) / D**0.5
    return W, torch.from_numpy(rng.standard_normal((SAMPLES, D)))


def function(torch: Any, name: str) -> tuple[Callable[..., Any], Any]:
    """The quantity of a function on samples, which are given too."""
    W, x = parts(torch)
    if name == "divergence":
        return lambda **more: tkn.divergence(lambda x: torch.tanh(x @ W) + x, x, **more), x
    f = lambda x: (torch.tanh(x @ W) ** 2 + x**2).sum(1)  # noqa: E731
    return lambda **more: tkn.laplacian(f, x, **more), x


@quantities
@pytest.mark.parametrize("entrywise", [False, True])
def test_runs_are_within_the_tolerance(torch: Any, name: str, entrywise: bool) -> None:
    run, _ = function(torch, name)
    truth, rtol = run().value, 0.2 if entrywise else 0.05

    def size(values: Any) -> float:
        return float(values.abs().max() if entrywise else values.norm())

    off, spent = [], []
    for seed in range(20):
        found = run(rng=seed, rtol=rtol, entrywise=entrywise)
        assert found.converged
        assert found.method in (name, "exact_trace")
        off.append(size(found.value - truth) > rtol * size(truth))
        spent.append(found.num_matvecs)
    assert sum(off) <= 1
    assert min(spent) < D


@quantities
def test_budgets_are_ceilings_and_the_exact_value_an_end(torch: Any, name: str) -> None:
    run, _ = function(torch, name)
    short = run(num_matvecs=20, rng=0, rtol=1e-9)
    assert (short.num_matvecs, short.converged) == (20, False)
    seen = list[tuple[int, str]]()
    whole = run(rng=0, rtol=1e-12, callback=lambda e: seen.append((e.num_matvecs, e.method)))
    assert seen[:2] == [(8, name), (16, name)]
    assert float(whole.standard_error.max()) == 0.0
    torch.testing.assert_close(whole.value, run().value)


@quantities
def test_checkpoints_and_errors_lose_nothing(torch: Any, name: str, tmp_path: Path) -> None:
    run, _ = function(torch, name)
    options = {"num_matvecs": 30, "rng": 0, "rtol": 1e-12}
    whole = run(**options)

    def die(estimate: tk.Estimate) -> None:
        if estimate.num_matvecs > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(checkpoint=tmp_path / "run.npz", callback=die, **options)
    paid = caught.value.estimate
    assert (paid.method, paid.num_matvecs, paid.converged) == (name, 16, False)
    assert float(tkn.batch_mean(paid).standard_error) > 0
    again = run(checkpoint=tmp_path / "run.npz", **options)
    assert torch.equal(again.value, whole.value)
    assert torch.equal(again.standard_error, whole.standard_error)


def test_progress_is_shown_and_closed(torch: Any) -> None:
    run, _ = function(torch, "divergence")
    lines = list[str]()
    run(num_matvecs=16, rng=0, callback=tk.progress(lines.append))
    assert len(lines) == 2
    with pytest.raises(TypeError, match="callback"):
        run(num_matvecs=16, rng=0, callback=3)


def test_compiled_code_has_no_tolerance() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    x, key = jax.numpy.ones((3, 20)), jax.random.key(0)
    with pytest.raises(TypeError, match=r"jax\.jit"):
        jax.jit(lambda x, key: tkn.divergence(jax.numpy.tanh, x, 16, rng=key, rtol=0.1).value)(
            x, key
        )
