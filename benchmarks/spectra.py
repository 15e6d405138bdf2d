"""Pairs of a spectrum and a function that deceive quadrature in different ways, of known traces."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tracekit import functions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Real = NDArray[np.float64]

N = 1000


class Pair(NamedTuple):
    """Eigenvalues, a function, and the largest median relative errors for 120 and 300 products."""

    eigenvalues: Callable[[], Real]
    f: Callable[[Any], Any]
    most: tuple[float | None, float | None] = (None, None)


@cache
def random_graph(degree: int) -> Real:
    """Return the eigenvalues of the adjacency of a random graph, by its mean degree."""
    rng = np.random.default_rng(1)
    G = np.triu(rng.random((N, N)) < degree / N, 1)
    return np.linalg.eigvalsh((G | G.T).astype(float))


@cache
def small_world(degree: int, rewired: float) -> Real:
    """Return those of a ring lattice with a share of its edges drawn anew (Watts, Strogatz)."""
    rng, G = np.random.default_rng(2), np.zeros((N, N))
    for step in range(1, degree // 2 + 1):
        start = np.arange(N)
        end = (start + step) % N
        drawn = rng.random(N) < rewired
        end[drawn] = rng.integers(0, N, drawn.sum())
        G[start, end] = 1
    np.fill_diagonal(G, 0)
    return np.linalg.eigvalsh(np.maximum(G, G.T))


@cache
def heisenberg_ring(sites: int = 10) -> Real:
    """Return the energies of a ring of spins 1/2, over the ground state's."""
    state = np.arange(2**sites)
    H = np.zeros((state.size, state.size))
    for i in range(sites):
        j = (i + 1) % sites
        equal = (state >> i & 1) == (state >> j & 1)
        H[state, state] += np.where(equal, 0.25, -0.25)
        flipped = state[~equal]
        H[flipped, flipped ^ (1 << i) ^ (1 << j)] += 0.5
    energies = np.linalg.eigvalsh(H)
    return energies - energies[0]


def graph_laplacian() -> Real:
    """Return a spectrum like that of a normalised Laplacian, from zero on."""
    x = np.sort(1 - random_graph(6) / 6.5)
    return x - x[0]


def powers(p: float, shift: float = 0.0) -> Real:
    """Return ``i^-p + shift``."""
    return np.arange(1.0, N + 1) ** -p + shift


def bulk(low: float, high: float, *others: float) -> Real:
    """Return evenly spaced eigenvalues, and some others beside them."""
    return np.append(np.linspace(low, high, N - len(others)), others)


def exponential(beta: float) -> Callable[[Any], Any]:
    """Return ``exp(beta x)``."""
    return lambda x: np.exp(beta * x)


def below(c: float, height: float = 1.0) -> Callable[[Any], Any]:
    """Return the function that counts eigenvalues below c."""
    return lambda x: height * (x < c)


def fermi(x: Any) -> Any:
    """Return the occupation of states at inverse temperature 100, level 0.3."""
    return 1 / (1 + np.exp(np.clip(100 * (x - 0.3), -500, 500)))


def normalised_harmonic() -> Real:
    """Return ``1 / i``, with sum one."""
    return powers(1) / np.sum(powers(1))


PAIRS: dict[str, Pair] = {
    "exp, graph of degree 40": Pair(partial(random_graph, 40), functions.exp, (None, 1e-4)),
    "exp, small world 100": Pair(partial(small_world, 100, 0.01), functions.exp, (None, 1e-5)),
    "exp, small world 20": Pair(partial(small_world, 20, 0.05), functions.exp),
    "ring, beta 1": Pair(heisenberg_ring, exponential(-1)),
    "ring, beta 5": Pair(heisenberg_ring, exponential(-5), (None, 1e-3)),
    "ring, beta 20": Pair(heisenberg_ring, exponential(-20), (None, 1e-3)),
    "ring, beta 80": Pair(heisenberg_ring, exponential(-80), (None, 1e-3)),
    "heat, t = 1": Pair(graph_laplacian, exponential(-1)),
    "heat, t = 10": Pair(graph_laplacian, exponential(-10)),
    "heat, t = 100": Pair(graph_laplacian, exponential(-100), (None, 1e-3)),
    "exp(200 x), one 2 % beyond": Pair(partial(bulk, 0, 1, 1.02), exponential(200)),
    "exp(30 x), one 30 % beyond": Pair(partial(bulk, 0, 1, 1.3), exponential(30)),
    "exp(40 x), 20 at 1.25": Pair(partial(bulk, 0, 1, *[1.25] * 20), exponential(40)),
    "exp(10 x), semicircle": Pair(lambda: np.cos(np.pi * np.arange(0.5, N) / N), exponential(10)),
    "log, condition 1e3": Pair(lambda: np.geomspace(1e-3, 1, N), functions.log),
    "log, five far below": Pair(partial(bulk, 1, 2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), functions.log),
    "1/x, one far below": Pair(partial(bulk, 1, 2, 1e-6), functions.inv, (None, 1e-5)),
    "1/x, i^-2 + 1e-4": Pair(partial(powers, 2, 1e-4), functions.inv),
    "sqrt, i^-2": Pair(partial(powers, 2), functions.sqrt),
    "entropy, 1/i": Pair(normalised_harmonic, functions.entropy),
    "|x|, flat": Pair(partial(bulk, -1, 1), np.abs),
    "Fermi": Pair(partial(bulk, 0, 1), fermi),
    "count below 0.1": Pair(partial(bulk, 0, 1), below(0.1)),
    "count across a gap": Pair(
        lambda: np.append(np.linspace(0, 0.4, 30), np.linspace(0.6, 1, N - 30)), below(0.5)
    ),
    "count one hidden": Pair(partial(bulk, -1, 0, -1.001), below(-1.0005, 1e4)),
    "log, flat": Pair(partial(bulk, 1, 3), functions.log),
}
