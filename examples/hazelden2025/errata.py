"""What has to be corrected in Hazelden (2025), each shown by a number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

import tracekit as tk
from examples.hazelden2025 import algorithms, networks, references

rng = np.random.default_rng


class Shown(NamedTuple):
    """What the paper has, what is right, and what an experiment gives."""

    paper: float
    right: float
    seen: float


def proposition_1(pairs: int = 400_000) -> Shown:
    """Mean of <J1^T u, J2^T v> <J4^T u, J3^T v>, and both orders of the last two factors."""
    J1, J2, J3, J4 = rng(1).standard_normal((4, 6, 8))
    u, v = rng(1).choice([-1.0, 1.0], (2, 6, pairs))
    first, second = np.sum((J1.T @ u) * (J2.T @ v), 0), np.sum((J4.T @ u) * (J3.T @ v), 0)
    head = J1 @ J2.T
    return Shown(
        float(np.trace(head @ J4 @ J3.T)), float(np.trace(head @ J3 @ J4.T)),
        float(np.mean(first * second)),
    )  # fmt: skip


def effective_rank(scale: float = 1.0) -> Shown:
    """The effective rank without and with the square in its numerator, and by paired products."""
    J = scale * rng(0).standard_normal((30, 40)) / np.arange(1.0, 31.0)[:, None]
    K = J @ J.T
    trace, square = np.trace(K), np.sum(K * K)
    seen = algorithms.paired_effective_rank(tk.as_operator(J), 20_000, rng(1))
    return Shown(trace / square, trace**2 / square, seen)


def orthonormalisation(n: int = 100, k: int = 5, runs: int = 2000) -> Shown:
    """Algorithm 2 without its "optional" QR, over the trace: formula, 1, and the mean of runs."""
    J = rng(0).standard_normal((n, 2 * n))
    L = tk.as_operator(J)
    values = [algorithms.unorthogonalised_trace(L, 2 * k, rng(s)) for s in range(runs)]
    return Shown(1 + k * (k - 2) + k * n, 1.0, float(np.mean(values) / np.sum(J * J)))


def products(m: int = 60) -> Shown:
    """Products for m: as stated, as the paper's allocation spends them, and as counted."""
    K, counter = tk.counted(tk.gram(rng(0).standard_normal((100, 120))))
    algorithms.hutchpp(K, m, rng(0))
    sketch, rest = algorithms.allocation(m)
    return Shown(m, 2 * sketch + rest, counter.total / 2)


def indefinite(m: int = 60, runs: int = 50) -> tuple[float, float]:
    """Median error of Algorithm 1 relative to a small trace, and to the nuclear norm."""
    spectrum = np.arange(1.0, 301.0) ** -1.0 * np.where(np.arange(300) % 2, -1, 1)
    U = np.linalg.qr(rng(0).standard_normal((300, 300)))[0]
    A = tk.as_operator((U * spectrum) @ U.T)
    off = np.median([abs(algorithms.hutchpp(A, m, rng(s)) - np.sum(spectrum)) for s in range(runs)])
    return float(off / np.sum(spectrum)), float(off / np.sum(np.abs(spectrum)))


def collapse(*, he: bool) -> tuple[float, int]:
    """Spread of the MLP's outputs over its inputs relative to the largest, and its kernel's rank.

    The rank counts eigenvalues above 1e-6 of the largest.
    """
    problem = networks.mlp("MLP", he=he)
    y = problem.outputs(problem.params)
    values = torch.linalg.eigvalsh(references.kernel(problem))
    return float(y.std(0).max() / y.abs().max()), int(torch.sum(values > 1e-6 * values[-1]))


def main() -> None:
    """Print all of them."""
    print("\nCorrections to the paper: as printed, right, seen")
    lines = {
        "Proposition 1: J4 J3^T, J3 J4^T": proposition_1(),
        "effective rank without and with its square": effective_rank(),
        "the same of 10 J": effective_rank(10.0),
        "Algorithm 2 without QR, over the trace": orthonormalisation(),
        "products of Algorithm 1 for m = 60": products(),
    }
    for what, shown in lines.items():
        print(f"  {what:44}" + "".join(f"{value:10.4g}" for value in shown))
    of_trace, of_norm = indefinite()
    print("  Algorithm 1 at m = 60, eigenvalues 1, -1/2, 1/3, ...: ", end="")
    print(f"off by {of_trace:.1%} of the trace, {of_norm:.1%} of the nuclear norm")
    for he in (False, True):
        spread, rank = collapse(he=he)
        which = "He" if he else "PyTorch's default"
        print(f"  MLP, {which} initialisation: outputs vary by {spread:.1e}, kernel rank {rank}")


if __name__ == "__main__":
    main()
