"""Draws the pictures of the page on functions of matrices, when the site is built."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import tracekit as tk

SAMPLES, NOISE = 600, 1e-2
DEPTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
BUDGETS = (60, 120, 200, 320, 480)
STEPS = (3, 4, 6, 8, 10, 12, 15, 18, 22, 27)
SEEDS = range(9)


def kernel() -> np.ndarray:
    """Of handwritten digits: a Gaussian kernel as wide as the median distance, plus noise."""
    X = load_digits().data[:SAMPLES]
    square = np.sum(X * X, axis=1)
    D2 = np.maximum(square[:, None] + square - 2 * X @ X.T, 0.0)
    return np.exp(-D2 / (2 * np.median(D2))) + NOISE * np.eye(SAMPLES)


def spectral_density() -> Figure:
    """The density of a graph's eigenvalues, beside their histogram; and the error split."""
    figure, axes = _panels()
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], 200)
    chance = np.where(groups[:, None] == groups, 0.12, 0.01)
    W = np.triu(rng.random((600, 600)) < chance, 1)
    W = (W | W.T).astype(float)
    degree = W.sum(axis=1)
    L = np.eye(600) - W / np.sqrt(degree[:, None] * degree)
    axes[0].hist(np.linalg.eigvalsh(L), 60, density=True, color="0.85", label="all eigenvalues")
    tk.spectral_density(L, 240, rng=0).plot(axes[0])
    axes[0].lines[-1].set(marker="", label="spectral_density(L, 240)")
    axes[0].legend(frameon=False, loc="upper left")
    axes[0].set_ylim(0, 2.4)
    axes[0].set_title("a graph of three groups", loc="left")
    _split(axes[1])
    return figure


def logdet() -> Figure:
    """Errors of the log-determinant against products, with and without a sketch."""
    figure, axes = _panels()
    flat = tk.testing.known_spectrum(np.linspace(1.0, 3.0, SAMPLES))
    for ax, A, title in ((axes[0], kernel(), "kernel with noise"), (axes[1], flat, "flat")):
        exact = np.linalg.slogdet(A)[1]
        for name, options in (("logdet(A, m)", {}), ("no sketch", {"deflate": 0})):
            errors = [
                np.median(
                    [abs(float(tk.logdet(A, m, rng=s, **options)) / exact - 1) for s in SEEDS]
                )
                for m in BUDGETS
            ]
            ax.loglog(BUDGETS, errors, label=name)
        ax.set(xlabel="products m", ylabel="median relative error")
        ax.set_xticks(BUDGETS, [str(m) for m in BUDGETS])
        ax.set_xticks([], minor=True)
        ax.set_title(title, loc="left")
        ax.legend(frameon=False)
    return figure


def settling() -> Figure:
    """What a run says at each depth, of a function that settles and of one that does not."""
    figure, axes = _panels()
    rng, n = np.random.default_rng(2), 600
    ring, world = np.arange(n), np.zeros((n, n))
    for step in range(1, 31):
        drawn = rng.random(n) < 0.02
        world[ring, np.where(drawn, rng.integers(0, n, n), (ring + step) % n)] = 1
    world = np.maximum(world, world.T)
    flat = tk.testing.known_spectrum(np.linspace(0.0, 1.0, n))
    cases = (
        (axes[0], world, tk.functions.exp, "exp of a small world: settles"),
        (axes[1], flat, lambda x: (x < 0.1) * 1.0, "eigenvalues below 0.1: does not"),
    )
    for ax, A, f, title in cases:
        exact = np.sum(f(np.linalg.eigvalsh(A)))
        runs = [tk.spectral_run(A, 12 * d, rng=1, depth=d).trace(f) for d in STEPS]
        for settled, marker, label in ((True, "o", "settled"), (False, "x", "not settled")):
            shown = [(d, e) for d, e in zip(STEPS, runs, strict=True) if e.converged is settled]
            if not shown:
                continue
            bars = [min(float(e.standard_error) / exact, 3.0) for _, e in shown]
            ax.errorbar(
                [d for d, _ in shown],
                [float(e) / exact for _, e in shown],
                yerr=bars if settled else None,
                fmt=marker,
                label=label,
                capsize=2,
            )
        ax.axhline(1, color="0.6", linewidth=1, marker="")
        ax.set(xlabel="depth", ylabel="value over exact", ylim=(-0.1, 2.1))
        ax.set_title(title, loc="left")
        ax.legend(frameon=False, loc="upper right")
    return figure


PICTURES = {"spectral_density": spectral_density, "logdet": logdet, "settling": settling}


def _split(ax: Any) -> None:
    """Both parts of the error of a log-determinant, against the depth."""
    A, size = kernel(), None
    parts = []
    for depth in DEPTHS:
        estimate = tk.logdet(A, 480, rng=0, depth=depth, deflate=0)
        size = abs(float(estimate))
        split = estimate.kept.monte_carlo, estimate.kept.quadrature
        parts.append([float(part) / size for part in split])
    monte_carlo, quadrature = np.array(parts).T
    ax.loglog(DEPTHS, monte_carlo, label="Monte Carlo")
    ax.loglog(DEPTHS, quadrature, label="quadrature")
    chosen = tk.logdet(A, 480, rng=0, deflate=0)
    ax.axvline(
        int(chosen.reason.split("depth ")[1]), color="0.6", linestyle=":", marker="", label="chosen"
    )
    ax.set(xlabel="depth, 480 products in all", ylabel="relative error")
    ax.set_xticks(DEPTHS[::3], [str(d) for d in DEPTHS[::3]])
    ax.set_xticks([], minor=True)
    ax.set_title("log-determinant of a kernel", loc="left")
    ax.legend(frameon=False)


def _panels() -> tuple[Figure, Any]:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    return figure, figure.subplots(1, 2)
