"""One of two processes of JAX, each with one device and half of the rows: started by `test_jax`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tracekit as tk

sys.path.insert(0, str(Path(__file__).parents[1]))
from haste import hasten

N, M = 512, 24
CALLS: dict[str, Callable[[tk.LinearOperator, Any], Any]] = {
    "hutchpp": lambda A, rng: tk.hutchpp(A, M, rng=rng).value,
    "trace": lambda A, rng: tk.trace(A, rtol=0.02, num_matvecs=200, rng=rng).value,
    "exact_trace": lambda A, rng: tk.exact_trace(A).value,
}


def operator(d: Any) -> tk.LinearOperator:
    def product(X: Any) -> Any:
        return d[:, None] * X

    return tk.LinearOperator((N, N), product, product, xp=jnp, dtype=jnp.float64)


def main(rank: int, address: str) -> None:
    hasten()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, rank)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    d = np.arange(1.0, N + 1) ** -1.0
    cut = jax.make_array_from_callback(
        (N,), NamedSharding(mesh, P("data")), lambda part: d[part]
    )  # of which no process holds the whole
    on_host = tk.LinearOperator((N, N), lambda X: d[:, None] * X)
    report = {
        name: float(call(operator(cut), 0)) / float(call(on_host, 0)) - 1
        for name, call in CALLS.items()
    }
    key = jax.random.key(0)
    program = jax.jit(lambda d: CALLS["hutchpp"](operator(d), key))
    alone = float(program(jnp.asarray(d)))
    report["hutchpp by a key"] = float(CALLS["hutchpp"](operator(cut), key)) / alone - 1
    report["hutchpp, compiled"] = float(program(cut)) / alone - 1
    seeded = jax.jit(lambda d: CALLS["hutchpp"](operator(d), 0))
    report["hutchpp, compiled, an int"] = (
        float(seeded(cut)) / float(CALLS["hutchpp"](on_host, 0)) - 1
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
