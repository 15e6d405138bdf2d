"""Draws the pictures of the documentation from a real kernel, when the site is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import tracekit as tk

from . import functions
from .style import STYLE

SAMPLES, CLASSES, HIDDEN = 60, 10, 24
DIMS = SAMPLES, CLASSES  # of the kernel's domain, in C order
SEEDS = range(15)
BUDGETS = (24, 48, 96, 192, 384)


def draw(folder: Path) -> None:
    """Write all pictures into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"norms": norms, "alignment": alignment, "diagonals": diagonals,
                "partial_traces": partial_traces, **functions.PICTURES}  # fmt: skip
    with mpl.rc_context(STYLE):
        for name, picture in pictures.items():
            picture().savefig(folder / f"{name}.svg", metadata={"Date": None})


@cache
def jacobian(steps: int = 60) -> np.ndarray:
    """Of a network with one hidden layer on handwritten digits, after some steps of training.

    Rows: the outputs of all samples, (sample, class) in C order. Columns: the weights.
    """
    digits = load_digits()
    first = [np.flatnonzero(digits.target == c)[: SAMPLES // CLASSES] for c in range(CLASSES)]
    X = digits.data[np.concatenate(first)] / 16
    targets = np.repeat(np.eye(CLASSES), SAMPLES // CLASSES, axis=0)
    rng = np.random.default_rng(0)
    U = rng.standard_normal((HIDDEN, X.shape[1])) / 8
    V = rng.standard_normal((CLASSES, HIDDEN)) / HIDDEN**0.5
    for _ in range(steps):  # of gradient descent on the cross entropy
        h = np.tanh(X @ U.T)
        p = np.exp(h @ V.T)
        G = (p / p.sum(axis=1, keepdims=True) - targets) / SAMPLES
        V, U = V - 2 * G.T @ h, U - 2 * ((G @ V) * (1 - h * h)).T @ X
    h = np.tanh(X @ U.T)
    inner = np.einsum("oj,sj,si->soji", V, 1 - h * h, X)
    outer = np.einsum("op,sj->sopj", np.eye(CLASSES), h)
    n = SAMPLES * CLASSES
    return np.concatenate([inner.reshape(n, -1), outer.reshape(n, -1)], axis=1)


def norms() -> Figure:
    """Errors of the norm against products: a spectrum that decays, and the kernel."""
    figure, axes = _panels(2)
    A = tk.testing.known_spectrum(np.arange(1, 501) ** -2.0)
    J = jacobian()
    K = J @ J.T
    _errors(
        axes[0],
        np.linalg.norm(A),
        {
            "frobenius_norm(A, m)": lambda m, seed: tk.frobenius_norm(A, m, rng=seed),
            "root of the mean |A x|²": lambda m, seed: _independent(A, m, seed),
            "root of hutchpp(gram(A), m)": lambda m, seed: (
                float(tk.hutchpp(tk.gram(A), m, rng=seed)) ** 0.5
            ),
        },
    )
    axes[0].set_title("eigenvalues 1 / i²", loc="left")
    _errors(
        axes[1],
        np.linalg.norm(K),
        {
            "frobenius_norm(gram(J), m)": lambda m, seed: tk.frobenius_norm(
                tk.gram(J), m, rng=seed
            ),
            "one_sided_summary(J, m)": lambda m, seed: (
                tk.one_sided_summary(J, m, rng=seed).frobenius_norm
            ),
            "independent pairs (J'x, J'y)": lambda m, seed: _pairs(K, m, seed),
        },
    )
    axes[1].set_title("kernel of a network", loc="left")
    return figure


def alignment() -> Figure:
    """Errors of the alignment of two kernels, and that of a network with its targets."""
    figure, axes = _panels(2)
    J, M = jacobian(0), jacobian()
    A, B = J @ J.T, M @ M.T
    cosine = np.vdot(A, B) / np.linalg.norm(A) / np.linalg.norm(B)

    def apart(m: int, seed: int) -> float:
        """Three numbers from probes of their own: 8 columns for one of each."""
        X = np.random.default_rng(seed).standard_normal((3, len(A), m // 8))
        dot, a, b = (
            np.mean(np.sum((F @ x) * (G @ x), axis=0))
            for x, F, G in zip(X, (A, A, B), (B, A, B), strict=True)
        )
        return dot / (a * b) ** 0.5

    _errors(
        axes[0],
        cosine,
        {
            "alignment(gram(J), gram(M), m)": lambda m, seed: tk.alignment(
                tk.gram(J), tk.gram(M), m, rng=seed
            ),
            "one_sided_alignment(J, M, m)": lambda m, seed: tk.one_sided_alignment(
                J, M, m, rng=seed
            ),
            "each number from its own probes": apart,
        },
    )
    axes[0].set_title("kernel before and after training", loc="left")
    steps = (0, 10, 20, 40, 60, 100)
    y = np.repeat(np.eye(CLASSES), SAMPLES // CLASSES, axis=0).reshape(-1)
    for operator, mean, name in ((tk.as_operator, 0, "as it is"), (tk.centered, 0.1, "centred")):
        kernels = [operator(tk.gram(jacobian(s))) for s in steps]
        runs = [tk.target_alignment(K, y - mean, 60, rng=0) for K in kernels]
        values = [float(run) for run in runs]
        errors = [2 * float(run.standard_error) for run in runs]
        axes[1].errorbar(steps, values, errors, capsize=2, label=name)
    axes[1].set(xlabel="steps of training", ylabel="alignment with the targets")
    axes[1].set_title("60 columns a point", loc="left")
    axes[1].legend(frameon=False)
    return figure


def diagonals() -> Figure:
    """Errors of the diagonal against columns, and one estimate entry by entry."""
    figure, axes = _panels(2)
    J = jacobian()
    K, exact = J @ J.T, np.sum(J * J, axis=1)

    def without_factor(m: int, seed: int) -> tk.Estimate:
        """Of products that cost two columns each."""
        return tk.diagonal(K, m // 2, rng=seed)

    _errors(
        axes[0],
        exact,
        {
            "xdiag(gram(J), m)": lambda m, seed: tk.xdiag(tk.gram(J), m, rng=seed),
            "diagonal(gram(J), m)": lambda m, seed: tk.diagonal(tk.gram(J), m, rng=seed),
            "diagonal(K, m // 2), K without its factor": lambda m, seed: tk.diagonal(
                K, m // 2, rng=seed
            ),
        },
    )
    axes[0].set_title("kernel of a network", loc="left")
    estimate = tk.xdiag(tk.gram(J), 192, rng=0)
    order = np.argsort(exact)[::12]
    axes[1].errorbar(
        np.arange(len(order)),
        estimate.value[order],
        2 * estimate.standard_error[order],
        fmt=".",
        capsize=2,
        label="xdiag, 192 columns",
    )
    axes[1].plot(exact[order], "k-", marker="", label="exact")
    axes[1].set(xlabel="every twelfth entry, in order", ylabel="diagonal entry")
    axes[1].legend(frameon=False)
    return figure


def partial_traces() -> Figure:
    """A kernel of samples and classes with one of both traced, exactly and from few columns."""
    K = tk.gram(jacobian())
    exact = tk.partial_trace(K, DIMS, 1).value
    few = tk.partial_trace(K, DIMS, 1, 256, rng=0).value
    maps = {
        "classes traced": exact,
        "from 256 of 600": few,
        "samples traced": tk.partial_trace(K, DIMS, 0).value,
    }
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    for ax, (title, M) in zip(figure.subplots(1, 3), maps.items(), strict=True):
        same = {"vmin": exact.min(), "vmax": exact.max()} if len(M) == SAMPLES else {}
        image = ax.imshow(M, cmap="magma", **same)
        figure.colorbar(image, ax=ax, shrink=0.8)
        ax.set_title(title, loc="left")
        ax.set_xlabel("class" if len(M) == CLASSES else "sample, sorted by class")
        ax.locator_params(integer=True)
    return figure


def _panels(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    return figure, figure.subplots(1, count)


def _errors(ax: Any, exact: Any, methods: dict[str, Callable[[int, int], Any]]) -> None:
    """Median relative errors against budgets."""
    size = np.linalg.norm(exact)
    for name, method in methods.items():
        medians = []
        for m in BUDGETS:
            values = [getattr(run := method(m, seed), "value", run) for seed in SEEDS]
            medians.append(np.median([np.linalg.norm(value - exact) for value in values]) / size)
        ax.loglog(BUDGETS, medians, label=name)
    ax.set(xlabel="products or columns m", ylabel="median relative error")
    ax.set_xticks(BUDGETS, [str(m) for m in BUDGETS])
    ax.set_xticks([], minor=True)
    ax.legend(frameon=False)


def _independent(A: np.ndarray, m: int, seed: int) -> float:
    X = np.random.default_rng(seed).standard_normal((len(A), m))
    return np.mean(np.sum((A @ X) ** 2, axis=0)) ** 0.5


def _pairs(A: np.ndarray, m: int, seed: int) -> float:
    """Of a factored A: two columns a pair."""
    X, Y = np.random.default_rng(seed).standard_normal((2, len(A), m // 2))
    return np.mean(np.sum(X * (A @ Y), axis=0) ** 2) ** 0.5
