"""Runs the log-determinants of other libraries, in an environment of their own; prints JSON.

Called by functions.py: ``PYTHON _peers_functions.py PEER MATRIX.npy PRODUCTS DEPTH SEEDS``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def primate(A: np.ndarray, probes: int, depth: int, seed: int) -> float:
    """Return the estimate of scikit-primate."""
    from primate.operators import matrix_function
    from primate.trace import hutch

    M = matrix_function(A, fun=np.log, deg=depth)
    return float(hutch(M, seed=seed, converge="count", count=probes, batch=probes))


def imate(A: np.ndarray, probes: int, depth: int, seed: int) -> float:
    """Return the estimate of imate, all Lanczos vectors orthogonalised."""
    from imate import logdet

    return float(
        logdet(
            A,
            method="slq",
            min_num_samples=probes,
            max_num_samples=probes,
            lanczos_degree=depth,
            orthogonalize=-1,
            num_threads=1,
            seed=seed,
        )
    )


_compiled: dict[tuple[int, int, int], Callable[..., Any]] = {}


def matfree(A: np.ndarray, probes: int, depth: int, seed: int) -> float:
    """Return the estimate of matfree, all Lanczos vectors orthogonalised."""
    import jax
    from matfree import decomp, funm, stochtrace

    jax.config.update("jax_enable_x64", True)
    integrand = funm.monte_carlo_funm_sym_logdet(decomp.tridiag_sym(depth))
    sampler = stochtrace.sampler_signs(jax.numpy.ones(len(A)), num=probes)
    estimate = stochtrace.estimator_monte_carlo(integrand, sampler)
    shape = len(A), probes, depth
    if shape not in _compiled:
        _compiled[shape] = jax.jit(lambda A, key: estimate(lambda x: A @ x, key))
    return float(_compiled[shape](A, jax.random.key(seed)))


def main() -> None:
    """Print the estimates of one library, or that it is not installed."""
    peer = {"primate": primate, "imate": imate, "matfree": matfree}[sys.argv[1]]
    A = np.load(sys.argv[2])
    products, depth, seeds = (int(x) for x in sys.argv[3:6])
    try:
        found: object = [peer(A, products // depth, depth, seed) for seed in range(1, seeds + 1)]
    except ImportError:
        found = "not installed"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
