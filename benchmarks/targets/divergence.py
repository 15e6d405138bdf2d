"""Divergences and Laplacians of a batch beside plain methods, in PyTorch and in JAX.

A figure is our CPU time, or our memory, over that of a plain method of the same framework in the
same run, each the least of a few repeats in float32 on one thread; JAX is compiled, PyTorch keeps
no graph. Plain methods are written on vmap, jvp, grad and jacfwd, which both frameworks spell
alike: signs for every sample, products with all of them at once, and their mean; and the diagonal
of the whole Hessian of every sample. In PyTorch the plain divergence is also made by reverse mode,
and the faster of both counts. Coverage is that of 95 % intervals, of each sample over many seeds.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import networks
from ..measure import apart, least
from .table import FIGURES, Row, Table, figure, in_own_process, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = Any
    Run = Callable[[], Any]

N, D, PRODUCTS = 1000, 64, 16
WIDTH, WIDE = 256, 512  # FFJORD has 1260 in dimension 63
SMALL, SAMPLES = 32, 2000  # of the Laplacian
COVERED, SEEDS, LEVEL, LEAST = 200, seeds(400), 0.95, 0.9
TIME = 1.2


def tables() -> Iterator[Table]:
    """Both frameworks."""
    title = f"{N} samples in dimension {D}, {PRODUCTS} products; {SAMPLES} in dimension {SMALL}"
    yield Table(title, FIGURES, rows())


def rows() -> Iterator[Row]:
    """Run every part in a process of its own."""
    for library in networks.LIBRARIES:
        for name in PARTS:
            yield from in_own_process(part, library, name)


def part(library: str, name: str) -> list[Row]:
    """Return the rows of one part."""
    return list(PARTS[name](networks.LIBRARIES[library]()))


def network(lib: Any, dim: int, outputs: int, width: int = WIDTH) -> Callable[[Array], Array]:
    """Three layers."""
    sizes = (dim, width, width, outputs)
    weights = [lib.normal(a, b) / a**0.5 for a, b in pairwise(sizes)]

    def v(x: Array) -> Array:
        for k, W in enumerate(weights):
            x = (lib.xp.tanh(x) if k else x) @ W
        return x

    return v


# --- plain methods ------------------------------------------------------------------------------


def hutchinson(lib: Any, v: Callable[[Array], Array], x: Array) -> list[Run]:
    """Return plain estimates by signs of every sample's own, by each mode that is plain."""
    if lib.name == "jax":
        import jax

        def signs(key: Array) -> Array:
            return jax.random.rademacher(key, (PRODUCTS, *x.shape), x.dtype)

        key = jax.random.key(0)
    else:
        import torch

        def signs(key: Any) -> Array:
            drawn = torch.randint(0, 2, (PRODUCTS, *x.shape), generator=key, dtype=torch.int8)
            return (2 * drawn - 1).to(x.dtype)

        key = torch.Generator().manual_seed(0)

    def forward(key: Any) -> Array:
        U = signs(key)
        products = lib.vmap(lambda u: lib.jvp(v, (x,), (u,))[1])(U)
        return (U * products).sum(-1).mean(0)

    def reverse(key: Any) -> Array:
        U, at = signs(key), x.clone().requires_grad_()
        products = torch.autograd.grad(v(at), at, U, is_grads_batched=True)[0]
        return (U * products).sum(-1).mean(0)

    made = lib.jit(forward)
    return [lambda: made(key)] + ([] if lib.name == "jax" else [lambda: reverse(key)])


def hessians(lib: Any, f: Callable[[Array], Array], x: Array) -> Run:
    """Return the diagonals of whole Hessians, of all samples at once, summed."""
    if lib.name == "jax":
        import jax as transforms
    else:
        import torch.func as transforms

    def one(x: Array) -> Array:
        H = transforms.jacfwd(transforms.grad(lambda x: f(x[None])[0]))(x)
        return lib.xp.trace(H)

    made = lib.jit(transforms.vmap(one))
    return lambda: made(x)


# --- rows ---------------------------------------------------------------------------------------


def generators(lib: Any) -> Any:
    """Return what draws on the device in a library."""
    return lib.jax.random.key(0) if lib.name == "jax" else lib.xp.Generator().manual_seed(0)


def divergences(lib: Any) -> Iterator[Row]:
    """Judge time and intervals of estimates."""
    from tracekit_ntk import divergence

    x, rng = lib.normal(N, D), generators(lib)
    for width in (WIDTH, WIDE):
        v = network(lib, D, D, width)
        made = lib.jit(lambda x, rng, v=v: divergence(v, x, PRODUCTS, rng=rng).value)
        runs = [lambda made=made: made(x, rng), *hutchinson(lib, v, x)]
        mine, *others = least([lib.waiting(run) for run in runs], 10)
        plain = min(others)
        name, told = (
            f"divergence, width {width}, over plain Hutchinson, time",
            f"{mine * 1e3:.0f} ms",
        )
        yield figure(name, mine / plain, most=TIME, told=told)


def intervals(lib: Any) -> Iterator[Row]:
    """Judge how often intervals hold the exact divergence, and what their width is."""
    from tracekit_ntk import batch_mean, divergence

    v, x = network(lib, D, D), lib.normal(COVERED, D)
    exact = np.asarray(divergence(v, x).value)

    def estimate(rng: Any) -> Any:
        return divergence(v, x, PRODUCTS, rng=rng)

    made, keys = lib.jit(estimate), lambda seed: seed
    if lib.name == "jax":
        keys = lib.jax.random.key
    hits, means, errors, told = [], [], [], []
    for seed in range(SEEDS):
        found = made(keys(seed))
        low, high = map(np.asarray, found.confidence_interval(LEVEL))
        hits.append((low <= exact) & (exact <= high))
        errors.append(np.asarray(found.value) - exact)
        told.append(np.asarray(found.standard_error))
        low, high = map(float, batch_mean(found).confidence_interval(LEVEL))
        means.append(low <= exact.mean() <= high)
    name = "divergence: 95 % intervals of samples cover"
    yield figure(name, float(np.mean(hits)), least=LEAST)
    yield figure(f"{name}, the worst sample", float(np.min(np.mean(hits, axis=0))), least=LEAST)
    yield figure("divergence: 95 % interval of the mean covers", float(np.mean(means)), least=LEAST)
    ratio = np.sqrt(np.mean(np.square(told)) / np.mean(np.square(errors)))
    yield figure("divergence: standard error, over the error seen", float(ratio))


def laplacians(lib: Any) -> Iterator[Row]:
    """Judge time of exact Laplacians."""
    run, plain = both(lib)
    mine, theirs = lib.seconds(run, 5), lib.seconds(plain, 5)
    np.testing.assert_allclose(np.asarray(run()), np.asarray(plain()), rtol=1e-3, atol=1e-3)
    name, told = "laplacian, exact, over whole Hessians, time", f"{mine * 1e3:.0f} ms"
    yield figure(name, mine / theirs, most=TIME, told=told)


def memory(lib: Any) -> Iterator[Row]:
    """Judge the memory of exact Laplacians, each in a process of its own."""
    mine, theirs = (apart(megabytes, lib.name, k) for k in (0, 1))
    told = f"{mine:.0f} MB"
    yield figure("laplacian, exact, over whole Hessians, memory", mine / theirs, most=1, told=told)


def megabytes(library: str, which: int) -> float:
    """Return by how much the memory rises in ours (0) or the plain method (1)."""
    lib = networks.LIBRARIES[library]()
    return float(lib.megabytes(both(lib)[which]))


def both(lib: Any) -> tuple[Run, Run]:
    """Return exact Laplacians, ours and by whole Hessians."""
    from tracekit_ntk import laplacian

    g, x = network(lib, SMALL, 1), lib.normal(SAMPLES, SMALL)

    def f(x: Array) -> Array:
        return g(x)[:, 0]

    made = lib.jit(lambda x: laplacian(f, x).value)
    return lambda: made(x), hessians(lib, f, x)


PARTS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "time": divergences, "intervals": intervals, "laplacian": laplacians, "memory": memory
}  # fmt: skip
