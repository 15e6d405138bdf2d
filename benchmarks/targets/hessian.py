"""Hessians of a perceptron beside plain methods, in PyTorch and in JAX.

Products are beside the framework's own batched forward-over-reverse, a ratio of CPU times of one
run, each the least of a few repeats in float32 on one thread; each framework is a process of its
own. The network has layers 784-256-256-10, tanh, and a cross-entropy on 256 of the handwritten
digits of scikit-learn at four times their size.

Deviations of traces are errors of the mean of one budget of passes: by signs on the Hessian, and by
`tracekit_ntk.hessian_trace`, of a tanh network of layers 64-24-10 and digits at their own size,
before and after training.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import networks
from .curvature import COLUMNS, SAMPLES, WIDTHS, large_digits
from .table import FIGURES, Row, Table, figure, in_own_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = Any

SMALL, PROBES, STEPS, RATE = (64, 24, 10), 400, 600, 1.0
PRODUCT, HALF, WORST = 1.3, 0.6, 1.1


def tables() -> Iterator[Table]:
    """Products and traces in both frameworks."""
    yield Table("Hessians over plain methods", FIGURES, rows())


def rows() -> Iterator[Row]:
    """Run each framework in a process of its own."""
    for library in networks.LIBRARIES:
        yield from in_own_process(part, library)


def part(library: str) -> list[Row]:
    """Return the rows of one framework."""
    lib = networks.LIBRARIES[library]()
    return [product(lib), *traces(lib)]


def perceptron(lib: Any, widths: tuple[int, ...]) -> tuple[Callable[..., Array], Any]:
    """Return a tanh network of some layers, at initialisation."""
    params = {
        f"{i}.{name}": lib.asarray(values)
        for i, (a, b) in enumerate(pairwise(widths))
        for name, values in (
            ("bias", np.zeros(b)),
            ("weight", lib.rng.standard_normal((a, b)) * a**-0.5),
        )
    }

    def f(p: Any, x: Array) -> Array:
        for i in range(len(widths) - 1):
            x = (lib.xp.tanh(x) if i else x) @ p[f"{i}.weight"] + p[f"{i}.bias"]
        return x

    return f, params


def product(lib: Any) -> Row:
    """Judge products with the Hessian."""
    import tracekit_ntk as tkn

    f, params = perceptron(lib, WIDTHS)
    x, y = large_digits(lib)

    def loss(p: Any) -> Array:
        return tkn.losses.softmax_cross_entropy(f(p, x), y)

    def gradient(p: Any) -> Any:
        value, back = lib.vjp(loss, p)
        return back(lib.xp.ones_like(value))[0]

    def block(p: Any, tangents: Any) -> Any:
        return lib.vmap(lambda t: lib.jvp(gradient, (p,), (t,))[1])(tangents)

    H = tkn.hessian(loss, params)
    X, tangents = lib.normal(H.shape[0], COLUMNS), {}
    for name, start in zip(params, starts(params), strict=True):
        rows = X[start : start + int(np.prod(params[name].shape)), :]
        tangents[name] = rows.T.reshape(COLUMNS, *params[name].shape)
    plain = lib.jit(block)
    ours, theirs = lib.seconds(lambda: H @ X, 8), lib.seconds(lambda: plain(params, tangents), 8)
    told = f"{ours * 1e3:.0f} ms for {COLUMNS} columns"
    return figure(
        "Hessian products, over the framework's own", ours / theirs, most=PRODUCT, told=told
    )


def traces(lib: Any) -> Iterator[Row]:
    """Judge deviations of samples of the trace, before and after training."""
    from sklearn.datasets import load_digits

    import tracekit_ntk as tkn

    digits = load_digits()
    x, y = lib.asarray(digits.data[:SAMPLES] / 16), lib.asarray(digits.target[:SAMPLES])
    f, params = perceptron(lib, SMALL)
    cross_entropy = tkn.losses.softmax_cross_entropy

    def gradient(p: Any) -> Any:
        value, back = lib.vjp(lambda p: cross_entropy(f(p, x), y), p)
        return back(lib.xp.ones_like(value))[0]

    yield deviation(lib, "at initialisation", f, params, x, y, WORST)
    run = lib.jit(gradient)
    for _ in range(STEPS):
        g = run(params)
        params = {name: p - RATE / SAMPLES * g[name] for name, p in params.items()}
    yield deviation(lib, f"after {STEPS} steps", f, params, x, y, HALF)


def deviation(lib: Any, name: str, f: Any, params: Any, x: Array, y: Array, most: float) -> Row:
    """Judge the error of the trace, over that of signs on the Hessian."""
    import tracekit as tk
    import tracekit_ntk as tkn

    loss = tkn.losses.softmax_cross_entropy
    H = tkn.hessian(lambda p: loss(f(p, x), y), params)
    plain = tk.hutchinson(H, PROBES, rng=0)
    ours = tkn.hessian_trace(f, params, x, y, loss, PROBES, rng=0)
    ratio = float(ours.standard_error) / float(plain.standard_error)
    told = f"{float(ours):.4g} +- {float(ours.standard_error):.2g} of {PROBES} passes"
    return figure(f"deviation of the trace over plain signs, {name}", ratio, most=most, told=told)


def starts(params: Any) -> list[int]:
    """Return where parameters begin among all: their names are in order."""
    sizes = [int(np.prod(p.shape)) for p in params.values()]
    return [sum(sizes[:i]) for i in range(len(sizes))]
