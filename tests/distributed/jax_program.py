"""What a process with four devices of JAX finds, as JSON: started once by `test_jax`."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tracekit as tk
from tracekit import _arrays

jax.config.update("jax_enable_x64", True)
Estimator = Callable[[tk.LinearOperator, Any], Any]

N, M = 2048, 24
MESH = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
SQUARE = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
ROWS = NamedSharding(MESH, P("data", None))
ESTIMATORS: dict[str, Estimator] = {
    "hutchpp": lambda A, rng: tk.hutchpp(A, M, rng=rng).value,
    "xtrace": lambda A, rng: tk.xtrace(A, M, rng=rng).value,
    "xnystrace of a Gram operator": lambda A, rng: tk.xnystrace(tk.gram(A), M, rng=rng).value,
    "one_sided": lambda A, rng: tk.one_sided(A, M, rng=rng).value,
    "xdiag": lambda A, rng: tk.xdiag(A, M, rng=rng).value,
}
EAGER: dict[str, Estimator] = {
    "hutchpp": ESTIMATORS["hutchpp"],
    "hadamard": lambda A, rng: tk.hutchinson(A, 8, rng=rng, probes=tk.probes.hadamard).value,
    "trace": lambda A, rng: tk.trace(A, rtol=0.05, rng=rng, num_matvecs=200).value,
    "exact_trace": lambda A, rng: tk.exact_trace(A, chunk_size=N).value,
}


def operator(d: Any, seen: list[Any] | None = None, layout: Any = None) -> tk.LinearOperator:
    """A diagonal one, which writes down where its arguments lie."""

    def product(X: Any) -> Any:
        if seen is not None and not isinstance(X, jax.core.Tracer):
            seen.append(
                len(X.sharding.device_set) * X.shape[0] // X.sharding.shard_shape(X.shape)[0]
            )
        return d[:, None] * X

    return tk.LinearOperator((N, N), product, product, xp=jnp, dtype=jnp.float64, layout=layout)


def apart(found: Any, expected: Any) -> float:
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def gathered(program: Any) -> int:
    """Numbers of the largest array that a program makes of the parts of all devices."""
    moved = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)", program.as_text()
    )
    sizes = (math.prod(int(k) for k in shape.split(",") if k) for shape in moved)
    return max(sizes, default=0)


def compiled(name: str, one: Any, cut: Any) -> dict[str, Any]:
    """An estimator as a program for one device and for four."""
    key = jax.random.key(0)

    def program(d: Any) -> Any:
        return jax.jit(lambda d: ESTIMATORS[name](operator(d), key)).lower(d).compile()

    alone, together = program(one), program(cut)
    size = [p.memory_analysis().temp_size_in_bytes for p in (alone, together)]
    return {
        "error": apart(np.asarray(together(cut)), np.asarray(alone(one))),
        "memory": size[1] / size[0],
        "gathered": gathered(together),
    }


def eager(name: str, cut: Any, rng: Any, layout: Any = None) -> dict[str, Any]:
    """A call on four devices beside one on the host, or, with a key, in compiled code."""
    seen: list[Any] = []
    found = EAGER[name](operator(cut, seen, layout), rng)
    d = np.arange(1.0, N + 1) ** -1.0
    if isinstance(rng, int):
        alone = EAGER[name](tk.LinearOperator((N, N), lambda X: d[:, None] * X), rng)
    else:
        alone = jax.jit(lambda d: EAGER[name](operator(d), rng))(d)
    return {"error": apart(np.asarray(found), np.asarray(alone)), "seen": sorted(set(seen))}


def refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return "nothing"


def bad_input(d: Any) -> dict[str, str]:
    explicit = NamedSharding(
        jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,)), P("data")
    )
    return {
        "divides": refused(lambda: tk.LinearOperator((10, 10), lambda X: X, xp=jnp, layout=ROWS)),
        "otherwise": refused(lambda: tk.hutchinson(tk.LinearOperator(
            (N, N), lambda X: jax.device_put(X, jax.devices()[0]), xp=jnp, layout=ROWS), 3, rng=0)),
        "axes": refused(lambda: tk.LinearOperator(
            (8, 8), lambda X: X, xp=jnp, layout=NamedSharding(MESH, P("data", None, None)))),
        "explicit": refused(lambda: operator(jax.device_put(d, explicit))),
    }  # fmt: skip


def dense() -> dict[str, Any]:
    """Matrices that are cut in every way, and the layout that is read off them."""
    A = np.random.default_rng(0).standard_normal((64, 64))
    A, found = jnp.asarray(A @ A.T), {}
    expected = tk.hutchinson(A, M, rng=0).value
    default = jax.make_mesh((2, 2), ("x", "y"))  # of whatever axes JAX takes for the best
    for spec in (P("x", None), P(None, "y"), P("x", "y"), P(("x", "y"), None), P()):
        for mesh in (SQUARE, default):
            B = tk.as_operator(jax.device_put(A, NamedSharding(mesh, spec)))
            parts = B.layout.parts if B.layout else 1
            value = tk.hutchinson(B, M, rng=0).value
            found[f"{spec} {mesh.axis_types[0]}"] = {
                "error": apart(np.asarray(value), np.asarray(expected)), "parts": parts,
                "carried": all(C.layout is B.layout for C in (
                    B.H, B @ B, B + B, 2.0 * B, tk.gram(B), tk.vstack([B, B]), tk.counted(B)[0],
                    tk.centered(B), tk.with_dims(B, (8, 8)))),
            }  # fmt: skip
    return found


def factorised() -> dict[str, Any]:
    """A tall array of condition 1e14 on four devices."""
    rng = np.random.default_rng(0)
    U, _, V = np.linalg.svd(rng.standard_normal((N, 16)), full_matrices=False)
    Y = jax.device_put(jnp.asarray(U * np.logspace(0, -14, 16) @ V), ROWS)
    found = {}
    for how, f in (("eager", _arrays.orthonormalise), ("jit", jax.jit(_arrays.orthonormalise))):
        Q, R = f(Y)
        found[how] = {
            "orthogonality": float(np.abs(np.asarray(Q.T @ Q) - np.eye(16)).max()),
            "residual": apart(np.asarray(Q @ R), np.asarray(Y)),
            "parts": _arrays.row_blocks(Q),
        }
    return found


def summed() -> dict[str, Any]:
    """Long inner products in single precision, whose parts must not cross devices."""
    X = jax.device_put(jnp.ones((4 * 3000, 2), dtype="float32"), ROWS)
    program = jax.jit(_arrays.inner).lower(X, X).compile()
    return {
        "jit": {"error": apart(np.asarray(program(X, X)), 12000), "gathered": gathered(program)},
        "eager": {"error": apart(np.asarray(_arrays.inner(X, X)), 12000), "gathered": 0},
    }


def main() -> None:
    plain, key = jnp.arange(1.0, N + 1) ** -1.0, jax.random.key(0)
    one = jax.device_put(plain, jax.devices()[0])
    cut = jax.device_put(plain, NamedSharding(MESH, P("data")))
    report = {
        "compiled": {name: compiled(name, one, cut) for name in ESTIMATORS},
        "eager": {f"{name}, an int": eager(name, cut, 0, ROWS) for name in EAGER}
        | {"hutchpp, a key": eager("hutchpp", cut, key)},
        "refused": bad_input(plain), "dense": dense(), "factorised": factorised(),
        "summed": summed(),
    }  # fmt: skip
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
