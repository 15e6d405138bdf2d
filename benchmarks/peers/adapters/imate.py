"""imate: determinants, inverses and Schatten norms by stochastic Lanczos quadrature, in C++."""

from __future__ import annotations

import numpy as np

from ..contract import Answer, Counter, Peer, Run
from ._numpy_products import MODES, bare  # noqa: F401

PEER = Peer(
    "imate",
    "imate",
    "0.29.11",
    "https://github.com/ameli/imate",
    "NumPy, SciPy",
    "one-parameter families A + t B, all t from one Lanczos run; interpolation in t; several GPUs; "
    "parallel probes; a relative tolerance for log-determinants",
)
DEPTHS = (10, 20, 40)
METHODS = {"logdet": tuple(f"SLQ, depth {depth}" for depth in DEPTHS)}


def make(
    quantity: str, method: str, matrix: np.ndarray, m: int, mode: str, counter: Counter | None
) -> Run:
    """Return the estimator as a function of a seed; products are those of its steps."""
    from imate import logdet

    depth = int(method.split()[-1])
    probes = m // depth

    def run(seed: int) -> Answer:
        value, told = logdet(
            matrix,
            method="slq",
            min_num_samples=probes,
            max_num_samples=probes,
            lanczos_degree=depth,
            orthogonalize=-1,
            num_threads=1,
            seed=seed + 1,
            return_info=True,
        )
        if counter is not None:
            counter.products = probes * depth
        return Answer(np.asarray(value), float(np.squeeze(told["error"]["absolute_error"])))

    return run
