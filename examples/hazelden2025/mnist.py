"""Norm, alignment and effective rank of the kernel of an MLP trained on digits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

import tracekit as tk
import tracekit_ntk as tkn
from examples.hazelden2025 import algorithms, figures, networks, references
from examples.hazelden2025.study import (
    Curve,
    Estimator,
    Method,
    Results,
    Row,
    Target,
    error_text,
    measure,
    print_curves,
    print_results,
    seconds_text,
    timed,
)

REPEATS = {"norm": 12, "alignment": 5, "effective rank": 5}
TOLERANCE = 1e-2
PRODUCTS = "Hutch++ on products"
BUDGETS = {
    PRODUCTS: (96, 192, 384),
    "spectral_summary": (24, 48, 72, 96, 144),
    "one_sided_summary": (24, 48, 96),
    "alignment": (24, 48, 96, 192),
    "one_sided_alignment": (24, 48, 96),
}
OURS = {"norm": "spectral_summary", "alignment": "alignment", "effective rank": "spectral_summary"}


def run() -> Results:
    """Train, measure all three, and compare the times to 1 %."""
    before, after, accuracy = networks.classifiers()
    print(f"\nMNIST MLP: accuracy {accuracy:.1%} on {networks.TEST} test images")
    exact = _exact(*map(references.kernel, (before, after)))
    seconds = timed(lambda: _exact(*map(_kernel, (before, after))))[1]
    J0, J1 = (tkn.jacobian(net.outputs, net.params) for net in (before, after))
    studies = {
        what: measure(methods, exact[what], REPEATS[what])
        for what, methods in _methods(tk.gram(J0), tk.gram(J1)).items()
    }
    rows, targets = [], []
    for what, curves in studies.items():
        print(f"\n{what}: exactly {exact[what]:.6g}")
        print("  AD calls: median error in CPU time")
        print_curves(curves)
        published, ours = curves[PRODUCTS], curves[OURS[what]]
        least = min(published.time_to(TOLERANCE), float(published.times[-1]))
        rows.append(
            Row(f"MNIST: {what}", "", _time_to(published), f"{_time_to(ours)} ({OURS[what]})")
        )
        share = ours.time_to(TOLERANCE) / least
        targets.append(Target(f"MNIST: {what} to 1e-2, share of {PRODUCTS}'s time", share, 0.5))
    rows.append(Row("MNIST: all three, exact", "", "", f"{seconds_text(seconds)} (kernel)"))
    return Results([studies], rows, targets)


def main() -> Results:
    """Print accuracy, errors, table and targets; write the figure."""
    torch.set_num_threads(1)
    results = run()
    print_results(results)
    drawing, axes = figures.figure(2, 3)
    for column, (what, curves) in zip(axes.T, results.studies[0].items(), strict=True):
        column[0].set_title(f"MNIST MLP: {what}", loc="left")
        figures.errors(column[0], curves, "calls", names=False)
        figures.errors(column[1], curves, "seconds")
        for ax in column:
            ax.axhline(TOLERANCE, color=figures.GREY, linewidth=1, linestyle=":", zorder=1)
    print("figure:", figures.save(drawing, "hazelden_mnist"))
    return results


def _kernel(net: networks.Problem) -> torch.Tensor:
    """The whole kernel by this library, in double precision for the sums over its entries."""
    return tkn.kernel_matrix(tkn.kernel(net.f, net.params, net.x)).double()


def _exact(K0: torch.Tensor, K1: torch.Tensor) -> dict[str, float]:
    """The three numbers, from both whole kernels."""
    norms = [float(torch.linalg.norm(K)) for K in (K0, K1)]
    return {
        "norm": norms[1],
        "alignment": float(torch.sum(K0 * K1)) / (norms[0] * norms[1]),
        "effective rank": float(torch.trace(K1)) ** 2 / norms[1] ** 2,
    }


def _methods(K0: tk.LinearOperator, K1: tk.LinearOperator) -> Mapping[str, Mapping[str, Method]]:
    """By quantity: the paper's way, ours, and ours by reverse mode alone."""
    fits, rng = algorithms.allowed, np.random.default_rng

    def two_sided(which: str) -> Estimator:
        return lambda K, m, s: getattr(tk.spectral_summary(K, m, rng=s), which)

    def one_sided(which: str) -> Estimator:
        return lambda K, m, s: getattr(tk.one_sided_summary(K.factor, m, rng=s), which)

    estimators: Mapping[str, Mapping[str, Estimator]] = {
        "norm": {
            PRODUCTS: lambda K, m, s: algorithms.hutchpp_norm(K, fits(m // 4), rng(s)),
            "spectral_summary": two_sided("frobenius_norm"),
            "one_sided_summary": one_sided("frobenius_norm"),
        },
        "alignment": {
            PRODUCTS: lambda A, B, m, s: algorithms.hutchpp_alignment(A, B, fits(m // 12), rng(s)),
            "alignment": lambda A, B, m, s: tk.alignment(A, B, m, rng=s),
            "one_sided_alignment": lambda A, B, m, s: tk.one_sided_alignment(
                A.factor, B.factor, m, rng=s
            ),
        },
        "effective rank": {
            PRODUCTS: lambda K, m, s: algorithms.hutchpp_effective_rank(K, fits(m // 6), rng(s)),
            "spectral_summary": two_sided("effective_rank"),
            "one_sided_summary": one_sided("effective_rank"),
        },
    }
    operators = {"norm": (K1,), "alignment": (K1, K0), "effective rank": (K1,)}
    return {
        what: {
            name: Method(estimate, operators[what], BUDGETS[name])
            for name, estimate in named.items()
        }
        for what, named in estimators.items()
    }


def _time_to(curve: Curve) -> str:
    """How long the tolerance takes."""
    seconds = curve.time_to(TOLERANCE)
    if seconds < float("inf"):
        return f"1e-2 in {seconds_text(seconds)}"
    error, last = curve.medians[-1], curve.times[-1]
    return f"{error_text(float(error))} in {seconds_text(float(last))}, {curve.calls[-1]} calls"
