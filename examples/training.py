"""Looks at the neural tangent kernel of a network before and after it learned to read digits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import tracekit as tk
import tracekit_ntk as tkn

WIDTHS = 64, 64, 64, 10
CLASSES = WIDTHS[-1]
KEPT = 200  # images whose kernel is looked at
PASSES = 150  # for a norm or an alignment
SEED = 0
OUTPUT = Path(__file__).resolve().parents[1] / "output"


def main() -> None:
    """Train, print the table and write the plot."""
    images, labels, targets = digits()
    before = initial()
    start = time.perf_counter()
    after = train(before, images[KEPT:], targets[KEPT:])
    seconds = time.perf_counter() - start
    x, y = images[:KEPT], targets[:KEPT] - jnp.mean(targets[:KEPT], axis=0)
    right = [float(jnp.mean(network(p, x).argmax(1) == labels[:KEPT])) for p in (before, after)]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(before))
    print(f"""\
What does a network learn, seen by its neural tangent kernel K = J J^T?
Three layers of ReLU on handwritten digits, {parameters} parameters, trained in {seconds:.1f} s. Of
{KEPT} images kept aside it reads {right[0]:.0%} before, {right[1]:.0%} after; of these K is made.

quantity                     passes  estimate   95 % interval               exact""")
    both = [written_out(params, x) for params in (before, after)]
    looked_at = jax.jit(lambda params: look(params, x, y))  # compiled once, for both
    looks = [looked_at(params) for params in (before, after)]
    turned = jax.jit(lambda p, q: tk.alignment(kernel(p, x), kernel(q, x), PASSES, rng=SEED))
    for name in known(both[0], y):
        for when, found, K in zip(("before", "after"), looks, both, strict=True):
            show(f"{name}, {when}", found[name], known(K, y)[name])
    show("alignment, before with after", turned(before, after), cosine(*both))
    ranks = [float(found["effective rank"]) for found in looks]
    print(f"""
A pass is one reverse- or forward-mode pass through the network for all images; all of K,
{y.size} x {y.size}, would take {y.size}. The exact values are of K written out.

plot: {plot(np.asarray(labels[:KEPT]), both, ranks)}""")


def show(name: str, estimate: tk.Estimate, exact: float) -> None:
    """One row of the table."""
    low, high = (float(end) for end in estimate.confidence_interval())
    interval = f"{low:.4g} to {high:.4g}"
    cost, value = estimate.num_matvecs, float(estimate)
    print(f"{name:<29}{cost:>6}{value:>10.4g}   {interval:<22}{exact:>11.4g}")


def look(params: Any, x: Any, y: Any) -> dict[str, tk.Estimate]:
    """What few passes tell of a kernel."""
    K, own = kernel(params, x), tkn.sample_ntk(network, params, x)
    per_image = tk.probes.tiled(tk.probes.orthogonal, KEPT)
    return {
        "trace": tk.hutchinson(own, 4, rng=SEED, probes=per_image),
        "effective rank": tk.effective_rank(K, PASSES, rng=SEED),
        "alignment with labels": tk.target_alignment(K, jnp.ravel(y), PASSES, rng=SEED),
    }


def known(K: np.ndarray, y: Any) -> dict[str, float]:
    """The same of a kernel that is written out."""
    trace, square = float(np.trace(K)), float(np.sum(K * K))
    return {
        "trace": trace,
        "effective rank": trace**2 / square,
        "alignment with labels": cosine(K, np.outer(np.ravel(y), np.ravel(y))),
    }


def kernel(params: Any, x: Any) -> tk.LinearOperator:
    """The kernel as an operator: its products are passes through the network."""
    return tkn.ntk(at(x), params)


def at(x: Any) -> Callable[[Any], Any]:
    """The network as a function of its parameters."""
    return lambda params: network(params, x)


def network(params: Any, x: Any) -> Any:
    """Logits of images."""
    for W, b in params[:-1]:
        x = jax.nn.relu(x @ W + b)
    W, b = params[-1]
    return x @ W + b


def initial() -> Any:
    """He initialisation."""
    rng = np.random.default_rng(SEED)
    shapes = itertools.pairwise(WIDTHS)
    draw = [(rng.standard_normal(s) * np.sqrt(2 / s[0]), np.zeros(s[1])) for s in shapes]
    return jax.tree.map(lambda a: jnp.asarray(a, dtype=jnp.float32), draw)


def train(params: Any, x: Any, y: Any, steps: int = 300, rate: float = 0.1) -> Any:
    """Gradient descent with momentum on the cross entropy."""

    def loss(params: Any) -> Any:
        return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(network(params, x)), axis=1))

    def step(_: int, state: Any) -> Any:
        params, speed = state
        speed = jax.tree.map(lambda v, g: 0.9 * v + g, speed, jax.grad(loss)(params))
        return jax.tree.map(lambda p, v: p - rate * v, params, speed), speed

    start = params, jax.tree.map(jnp.zeros_like, params)
    return jax.jit(lambda: jax.lax.fori_loop(0, steps, step, start)[0])()


def written_out(params: Any, x: Any) -> np.ndarray:
    """The kernel as a matrix, in double precision from here on."""
    jacobian = jax.jit(jax.jacrev(at(x)))(params)
    J = np.concatenate(
        [np.reshape(leaf, (len(x) * CLASSES, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1
    ).astype(float)
    return J @ J.T


def cosine(A: np.ndarray, B: np.ndarray) -> float:
    """Alignment of two matrices."""
    return float(np.sum(A * B) / np.linalg.norm(A) / np.linalg.norm(B))


def digits() -> tuple[Any, Any, Any]:
    """Images, labels and one-hot labels, in random order."""
    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    x = jnp.asarray(data.data[order] / 16, dtype=jnp.float32)
    labels = jnp.asarray(data.target[order])
    return x, labels, jax.nn.one_hot(labels, CLASSES)


def plot(labels: np.ndarray, both: list[np.ndarray], ranks: list[float]) -> Path:
    """Draw both kernels, summed over outputs, images sorted by digit; return the file's path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(CLASSES + 1))
    for i, (axes, when) in enumerate(zip(figure.subplots(1, 2), ("before", "after"), strict=True)):
        K = tk.partial_trace(both[i], (KEPT, CLASSES), 1).value
        axes.imshow(K[np.ix_(order, order)], cmap="magma", interpolation="none")
        axes.set_xticks((edges[:-1] + edges[1:]) / 2, range(CLASSES))
        axes.set_yticks((edges[:-1] + edges[1:]) / 2, range(CLASSES))
        axes.tick_params(length=0)
        axes.set_title(
            f"Kernel between images, {when} training:\neffective rank {ranks[i]:.1f}",
            loc="left",
            fontsize="medium",
        )
        axes.set_xlabel("digit")
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / "training.png"
    figure.savefig(path, dpi=200)
    return path


if __name__ == "__main__":
    main()
