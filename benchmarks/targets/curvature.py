"""Gauss-Newton matrices of a perceptron beside plain methods, in PyTorch and in JAX.

The network has layers 784-256-256-10 and a cross-entropy for a loss; its 256 samples are the
handwritten digits of scikit-learn at four times their size, or white noise. A figure is a ratio of
CPU times of one run, each the least of a few repeats in float32 on one thread; each framework is a
process of its own. The plain product is the framework's own: a batch of tangents forward through
network and gradient of the loss, and back, mapped over flat columns. The plain trace is that of
Hutchinson on the operator of this package, whose quadratic forms cost one forward-mode pass
each, for as many probes as bring one standard error below 1 %: few where many eigenvalues are
alike, as of white noise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import networks
from ..measure import least
from .table import FIGURES, Row, Table, figure, in_own_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = Any
    Run = Callable[..., Any]

WIDTHS, SAMPLES = (784, 256, 256, 10), 256
COLUMNS, PROBES, TOLERANCE = 16, 64, 0.01
STEPS, RATE, REPEATS = 100, 0.1, 10
PRODUCT, TRACE, PER_LAYER = 1.3, 30, 1.25


def tables() -> Iterator[Table]:
    """Products, traces and their parts in both frameworks."""
    yield Table("Gauss-Newton matrices over plain methods", FIGURES, rows())


def rows() -> Iterator[Row]:
    """Run each framework in a process of its own."""
    for library in networks.LIBRARIES:
        yield from in_own_process(part, library)


def part(library: str) -> list[Row]:
    """Return the rows of one framework."""
    lib = networks.LIBRARIES[library]()
    return list(judged(lib))


def perceptron(lib: Any) -> tuple[Callable[..., Array], Any]:
    """Return the network, at He initialisation."""
    params = {
        f"{i}.{name}": lib.asarray(values)
        for i, (a, b) in enumerate(pairwise(WIDTHS))
        for name, values in (
            ("bias", np.zeros(b)),
            ("weight", lib.rng.standard_normal((a, b)) * (2 / a) ** 0.5),
        )
    }

    def f(p: Any, x: Array) -> Array:
        for i in range(3):
            x = (lib.relu(x) if i else x) @ p[f"{i}.weight"] + p[f"{i}.bias"]
        return x

    return f, params


def large_digits(lib: Any) -> tuple[Array, Array]:
    """Return images of 28 x 28 in rows, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.kron(found.images[:SAMPLES] / 16, np.ones((4, 4)))[:, 2:30, 2:30]
    return lib.asarray(images.reshape(SAMPLES, -1)), lib.asarray(found.target[:SAMPLES])


def trained(lib: Any, f: Any, params: Any, x: Array, y: Array) -> Any:
    """Return parameters after some steps of gradient descent on the mean loss."""
    from tracekit_ntk.losses import softmax_cross_entropy

    def gradient(p: Any) -> Any:
        value, back = lib.vjp(lambda p: softmax_cross_entropy(f(p, x), y), p)
        return back(lib.xp.ones_like(value))[0]

    run = lib.jit(gradient)
    for _ in range(STEPS):
        g = run(params)
        params = {name: p - RATE / SAMPLES * g[name] for name, p in params.items()}
    return params


def plain_products(lib: Any, f: Any, params: Any, x: Array) -> tuple[Run, Run]:
    """Return products with the matrix as the framework spells them: of flat columns, of trees."""
    from tracekit_ntk.losses import softmax_cross_entropy

    labels = lib.xp.zeros(SAMPLES, dtype=lib.xp.int32)
    edges = list(pairwise(np.cumsum([0, *(int(np.prod(p.shape)) for p in params.values())])))

    def gradient(z: Array) -> Array:
        return softmax_cross_entropy.gradient(z, labels)

    def linearised(params: Any) -> Run:
        z, back = lib.vjp(lambda p: f(p, x), params)

        def product(t: Any) -> Any:
            dz = lib.jvp(lambda p: f(p, x), (params,), (t,))[1]
            return back(lib.jvp(gradient, (z,), (dz,))[1])[0]

        return product

    def of_columns(params: Any, X: Array) -> Array:
        product = linearised(params)

        def flat(column: Array) -> Array:
            parts = zip(params.items(), edges, strict=True)
            t = {name: column[low:high].reshape(p.shape) for (name, p), (low, high) in parts}
            made = product(t)
            return lib.xp.concatenate([made[name].reshape(-1) for name in params])

        return lib.vmap(flat, 1, 1)(X)

    def of_trees(params: Any, tangents: Any) -> Any:
        return lib.vmap(linearised(params))(tangents)

    return tuple(partial(lib.jit(run), params) for run in (of_columns, of_trees))


def judged(lib: Any) -> Iterator[Row]:
    """Judge products and the exact trace."""
    f, params = perceptron(lib)
    x, y = large_digits(lib)
    yield from product(lib, f, params, x)
    yield from traces(lib, "digits, at the start", f, params, x, aim=TRACE)
    after = trained(lib, f, params, x, y)
    yield from traces(lib, f"digits, {STEPS} steps", f, after, x, aim=TRACE)
    yield from traces(lib, "white noise", f, params, lib.normal(SAMPLES, WIDTHS[0]))


def product(lib: Any, f: Any, params: Any, x: Array) -> Iterator[Row]:
    """Judge products with the matrix."""
    import tracekit_ntk as tkn

    G = tkn.ggn(f, params, x, tkn.losses.softmax_cross_entropy)
    X, (plain, of_trees) = lib.normal(G.shape[0], COLUMNS), plain_products(lib, f, params, x)
    tangents = {name: lib.normal(COLUMNS, *p.shape) for name, p in params.items()}
    off = float(abs(G @ X - plain(X)).max() / abs(plain(X)).max())
    ours, theirs, least_of_trees = in_turn(
        lib, lambda: G @ X, lambda: plain(X), lambda: of_trees(tangents)
    )
    told = f"{ours * 1e3:.0f} ms for {COLUMNS} columns"
    yield figure("GGN products, over the framework's own", ours / theirs, most=PRODUCT, told=told)
    yield figure("... over those of trees, never flat", ours / least_of_trees)
    yield figure("... apart, of the largest entry", off, most=1e-4)


def in_turn(lib: Any, *runs: Run) -> list[float]:
    """Return the least CPU time of each."""
    return least([lib.waiting(run) for run in runs], REPEATS)


def traces(
    lib: Any, name: str, f: Any, params: Any, x: Array, *, aim: float | None = None
) -> Iterator[Row]:
    """Judge the exact trace over Hutchinson's, and its parts over the whole."""
    import tracekit as tk
    import tracekit_ntk as tkn

    loss = tkn.losses.softmax_cross_entropy
    G = replace(tkn.ggn(f, params, x, loss), exact=None)

    def exact(*, per_parameter: bool = False) -> Run:
        made = lib.jit(lambda p: tkn.ggn_trace(f, p, x, loss, per_parameter=per_parameter))
        return lambda: made(params)

    def probed() -> Any:
        return tk.hutchinson(G, PROBES, rng=0)

    mine, parts = in_turn(lib, exact(), exact(per_parameter=True))
    estimate, truth = probed(), float(exact()())
    deviation = float(estimate.standard_error) * PROBES**0.5 / truth
    needed = (deviation / TOLERANCE) ** 2
    ratio = lib.seconds(lambda: probed().value, 2) * needed / PROBES / mine
    told = f"{mine * 1e3:.1f} ms; {needed:.0f} probes"
    yield figure(f"GGN trace, {name}: exact, over 1 %", ratio, least=aim, told=told)
    off = abs(float(estimate) - truth) / float(estimate.standard_error)
    yield figure("... apart from the probed one, in standard errors", off, most=4)
    yield figure("... by parameter, over the whole", parts / mine, most=PER_LAYER)
