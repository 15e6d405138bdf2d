"""Draws the picture of the page on Novak et al. (2022): counted operations, and formulas."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import tracekit_ntk as tkn

from .style import STYLE

SAMPLES, INPUTS, LAYERS = 8, 64, 4  # hidden layers
METHODS = {
    "Jacobian contraction": tkn.jacobian_contraction,
    "NTK-vector products": tkn.ntk_vector_products,
    "structured derivatives": tkn.structured_derivatives,
}


def draw(folder: Path) -> None:
    """Write the picture into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        operations().savefig(folder / "novak.svg", metadata={"Date": None})


def operations() -> Figure:
    """Against the width and the number of outputs: marks are counted, lines are formulas."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    by_width = [(width, width, 10) for width in (16, 32, 64, 128, 256, 512)]
    by_outputs = [(outputs, 128, outputs) for outputs in (1, 4, 16, 64)]
    panels = (
        (left, by_width, f"{LAYERS} hidden layers, 10 outputs", "width"),
        (right, by_outputs, f"{LAYERS} hidden layers of 128", "outputs"),
    )
    for ax, sizes, title, label in panels:
        x = [size[0] for size in sizes]
        for k, (name, method) in enumerate(METHODS.items()):
            counted = [flops(method, *size) for _, *size in sizes]
            expected = [formulas(*size)[k] for _, *size in sizes]
            ax.loglog(x, counted, linestyle="", color=f"C{k}", label=name)
            ax.loglog(x, expected, marker="", color=f"C{k}")
        ax.set_title(f"{title}, {SAMPLES} samples", loc="left")
        ax.set_xlabel(label)
        ax.set_xticks(x, [str(size) for size in x])
        ax.minorticks_off()
    left.set_ylabel("floating-point operations")
    right.legend(frameon=False)
    return figure


def flops(method: Callable[..., jax.Array], width: int, outputs: int) -> float:
    """Of the kernel of a network, as XLA counts them before it optimises."""
    shapes = list(pairwise((INPUTS, *[width] * LAYERS, outputs)))
    params = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    x = jax.ShapeDtypeStruct((SAMPLES, INPUTS), np.float32)

    def f(params: list[jax.Array], x: jax.Array) -> jax.Array:
        for k, W in enumerate(params):
            x = (jax.nn.relu(x) if k else x) @ W
        return x

    compiled = jax.jit(lambda params, x: tkn.kernel(f, params, x, implementation=method))
    return float(compiled.lower(params, x).cost_analysis()["flops"])


def formulas(width: int, outputs: int) -> tuple[float, float, float]:
    """What is to be expected, of multiply-adds that are two operations each.

    A forward pass is P of them for a sample; a reverse pass is P for the derivatives by what layers
    gave, and P for those by the parameters; a forward-mode pass is as much.
    """
    N, M = SAMPLES, outputs
    shapes = list(pairwise((INPUTS, *[width] * LAYERS, outputs)))
    P = sum(d * w for d, w in shapes)
    grams = sum(N**2 * d + N**2 * M**2 * w for d, w in shapes)
    multiply_adds = (
        N * P + 2 * N * M * P + N**2 * M**2 * P,
        N * P + 2 * N * M * P + 2 * N**2 * M * P,
        N * P + N * M * P + grams,
    )
    first, second, third = (2.0 * count for count in multiply_adds)
    return first, second, third
