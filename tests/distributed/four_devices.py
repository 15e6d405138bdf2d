"""What JAX does with rows over four host devices, as JSON: run as a program of its own."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

if __name__ == "__main__":  # not where it is merely imported
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tracekit as tk
from tracekit._arrays import tall_skinny_qr

N, M = (int(x) for x in sys.argv[1:3]) if __name__ == "__main__" else (4, 1)
WHOLE = {"hutchinson", "hutchpp", "one_sided"}  # those that are run without compiling, too

RUNS: dict[str, Any] = {
    "hutchinson": lambda A, rng: tk.hutchinson(A, M, rng=rng),
    "hutchpp": lambda A, rng: tk.hutchpp(A, M, rng=rng),
    "nahutchpp": lambda A, rng: tk.nahutchpp(A, M, rng=rng),
    "xtrace": lambda A, rng: tk.xtrace(A, M, rng=rng),
    "xnystrace": lambda A, rng: tk.xnystrace(A, M, rng=rng),
    "one_sided": lambda A, rng: tk.one_sided(A, M, rng=rng),
    "diagonal": lambda A, rng: tk.diagonal(A, M, rng=rng),
    "frobenius_norm": lambda A, rng: tk.frobenius_norm(A, M, rng=rng),
    "logdet": lambda A, rng: tk.logdet(A, M, rng=rng, depth=4, deflate=0),
    "trace_inverse": lambda A, rng: tk.trace_inverse(A, M, rng=rng, depth=4, deflate=0),
}


def operator(d: jax.Array, places: list[int] | None = None) -> tk.LinearOperator:
    """A periodic three-point stencil, which lies as d does; it notes over how many devices."""

    def product(X: jax.Array) -> jax.Array:
        if places is not None and not isinstance(X, jax.core.Tracer):
            places.append(len(X.sharding.device_set))
        return d[:, None] * X + 0.1 * (jnp.roll(X, 1, axis=0) + jnp.roll(X, -1, axis=0))

    return tk.LinearOperator((N, N), product, product, xp=jnp, dtype=jnp.float64)


def compiled(run: Any, rng: Any, d: jax.Array) -> tuple[np.ndarray, int, list[int]]:
    """The value, bytes of temporary memory on a device, and sizes of what is gathered."""
    program = jax.jit(lambda d: run(operator(d), rng).value).lower(d).compile()
    sizes = re.findall(r"\[([\d,]*)\]\S* all-gather", program.as_text())
    gathered = [int(np.prod([int(x) for x in size.split(",") if x])) for size in sizes]
    memory = program.memory_analysis().temp_size_in_bytes
    return np.asarray(program(d)), memory, gathered


def difference(x: Any, y: Any) -> float:
    """Relative to the largest entry."""
    x, y = np.asarray(x), np.asarray(y)
    return float(np.max(np.abs(x - y)) / np.max(np.abs(y)))


def other_ways(mesh: Any) -> dict[str, Any]:
    """What a small matrix gives under vmap, without an estimate, and where axes are Explicit."""
    jax.config.update(
        "jax_disable_most_optimizations", val=True
    )  # these compile much and run little
    x = jnp.arange(1.0, 65.0)
    plain = jnp.diag(x) + 0.1
    keys, places = jax.random.split(jax.random.key(0), 3), list[int]()

    def runs(name: str, A: Any) -> Any:
        return lambda key: getattr(tk, name)(A, 12, rng=key).value

    def noted(X: jax.Array) -> jax.Array:
        places.append(len(X.sharding.device_set))
        return cut @ X

    cut = jax.device_put(plain, NamedSharding(mesh, P("rows", None)))
    found = {
        name: difference(jax.vmap(runs(name, cut))(keys), jax.vmap(runs(name, plain))(keys))
        for name in ("hutchinson", "hutchpp")
    }
    layout = NamedSharding(mesh, P("rows"))
    stated = tk.LinearOperator((64, 64), noted, xp=jnp, dtype=jnp.float64, layout=layout)
    found["exact_trace"] = difference(tk.exact_trace(stated).value, jnp.trace(plain))
    explicit = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Explicit,))
    E = jax.device_put(plain, NamedSharding(explicit, P("rows", None)))
    for name in ("hutchinson", "one_sided"):
        found[f"{name}, Explicit"] = difference(runs(name, E)(keys[0]), runs(name, plain)(keys[0]))
    return {"differences": found, "places": min(places)}


def main() -> None:
    """Print a record for each estimator, and what tall QR leaves of orthogonality."""
    jax.config.update("jax_enable_x64", val=True)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("rows"))
    plain = 1.0 + jnp.arange(1.0, N + 1) ** -1.0
    cut = jax.device_put(plain, rows)
    found: dict[str, Any] = {}
    for name, run in RUNS.items():
        key, places = jax.random.key(3), list[int]()
        one, memory, _ = compiled(run, key, plain)
        four, each, gathered = compiled(run, key, cut)
        record = {
            "compiled": difference(four, one),
            "memory": each / memory,
            "gathered": max(gathered, default=0),
        }
        if name in WHOLE:
            alone = run(operator(plain), 5).value
            record["eager"] = difference(run(operator(cut, places), 5).value, alone)
            record["places"] = min(places)
        found[name] = record
    rng = np.random.default_rng(0)
    U, _, V = np.linalg.svd(rng.standard_normal((N, 12)), full_matrices=False)
    factorised = list[tuple[float, float]]()
    rank = np.r_[np.ones(6), np.zeros(6)]
    for s in (np.geomspace(1, 1e-14, 12), rank):
        for parts in (1, 2, 4, 8):
            Y = jax.device_put((U * s) @ V, NamedSharding(mesh, P("rows", None)))
            Q, R = tall_skinny_qr(Y, parts)
            off = float(jnp.max(jnp.abs(Q.T @ Q - jnp.eye(12))))
            factorised.append((off, difference(Q @ R, Y)))
    print(json.dumps({"runs": found, "qr": factorised, "other": other_ways(mesh)}))


if __name__ == "__main__":
    main()
