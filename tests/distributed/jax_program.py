"""What a process with four devices of JAX finds, as JSON: started once by `test_jax`."""

from __future__ import annotations

import json
import math
import re
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
from tracekit import _arrays
from tracekit.probes import counters

sys.path.insert(0, str(Path(__file__).parents[1]))
from haste import hasten

hasten()  # the compiler of machine code: memory is laid out before it

Estimator = Callable[[tk.LinearOperator, Any], Any]

N, M = 2048, 24
MESH = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
SQUARE = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
ROWS = NamedSharding(MESH, P("data", None))
ESTIMATORS: dict[str, Estimator] = {
    "hutchinson": lambda A, rng: tk.hutchinson(A, M, rng=rng, probes=tk.probes.normal).value,
    "hutchpp": lambda A, rng: tk.hutchpp(A, M, rng=rng).value,
    "nahutchpp": lambda A, rng: tk.nahutchpp(A, M, rng=rng).value,
    "xtrace": lambda A, rng: tk.xtrace(A, M, rng=rng).value,
    "xnystrace of a Gram operator": lambda A, rng: tk.xnystrace(tk.gram(A), M, rng=rng).value,
    "one_sided": lambda A, rng: tk.one_sided(A, M, rng=rng).value,
    "diagonal": lambda A, rng: tk.diagonal(A, M, rng=rng).value,
    "xdiag": lambda A, rng: tk.xdiag(A, M, rng=rng).value,
    "frobenius_norm": lambda A, rng: tk.frobenius_norm(A, M, rng=rng).value,
    "logdet": lambda A, rng: tk.logdet(A, M, rng=rng, depth=3, deflate=0).value,
}
EAGER: dict[str, Estimator] = {
    "hutchpp": ESTIMATORS["hutchpp"],
    "hutchinson": ESTIMATORS["hutchinson"],
    "hadamard": lambda A, rng: tk.hutchinson(A, 8, rng=rng, probes=tk.probes.hadamard).value,
    "trace": lambda A, rng: tk.trace(A, rtol=0.05, rng=rng, num_matvecs=200).value,
    "exact_trace": lambda A, rng: tk.exact_trace(A, chunk_size=N).value,
}


def operator(
    d: Any, seen: list[Any] | None = None, layout: Any = None, dtype: Any = jnp.float64
) -> tk.LinearOperator:
    """A diagonal one, which writes down where its arguments lie."""
    n = d.shape[0]

    def product(X: Any) -> Any:
        if seen is not None and not isinstance(X, jax.core.Tracer):
            seen.append(
                len(X.sharding.device_set) * X.shape[0] // X.sharding.shard_shape(X.shape)[0]
            )
        return d[:, None] * X

    return tk.LinearOperator((n, n), product, product, xp=jnp, dtype=dtype, layout=layout)


def apart(found: Any, expected: Any) -> float:
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def gathered(program: Any) -> int:
    """Numbers of the largest array that a program makes of the parts of all devices."""
    moved = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)", program.as_text()
    )
    sizes = (math.prod(int(k) for k in shape.split(",") if k) for shape in moved)
    return max(sizes, default=0)


def compiled(name: str, d: Any, rng: Any, dtype: Any = jnp.float64) -> dict[str, Any]:
    """An estimator as a program for one device and for four."""
    one = jax.device_put(d, jax.devices()[0])
    cut = jax.device_put(d, NamedSharding(MESH, P("data")))

    def program(d: Any) -> Any:
        run = jax.jit(lambda d: ESTIMATORS[name](operator(d, dtype=dtype), rng))
        return run.lower(d).compile()

    alone, together = program(one), program(cut)
    size = [p.memory_analysis().temp_size_in_bytes for p in (alone, together)]
    return {
        "error": apart(np.asarray(together(cut)), np.asarray(alone(one))),
        "memory": size[1] / size[0],
        "gathered": gathered(together),
    }


def eager(
    name: str, cut: Any, rng: Any, layout: Any = None, dtype: Any = jnp.float64
) -> dict[str, Any]:
    """A call on four devices beside one on the host, or, with a key, in compiled code.

    It writes down how many rows the host draws at a time.
    """
    seen, drawn, draw = list[Any](), list[int](), counters.draw

    def noted(key: counters.Key, block: counters.Block) -> Any:
        drawn.append(len(block.rows))
        return draw(key, block)

    counters.draw = noted
    found = EAGER[name](operator(cut, seen, layout, dtype), rng)
    counters.draw = draw
    d = np.arange(1.0, N + 1) ** -1.0
    if isinstance(rng, int):
        alone = EAGER[name](tk.LinearOperator((N, N), lambda X: d[:, None] * X, dtype=dtype), rng)
    else:
        alone = jax.jit(lambda d: EAGER[name](operator(d, dtype=dtype), rng))(d)
    return {
        "error": apart(np.asarray(found), np.asarray(alone)),
        "seen": sorted(set(seen)),
        "drawn": max(drawn, default=0),
    }


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
    """Tall arrays on four devices, of condition 1e14 and of half the rank."""
    rng = np.random.default_rng(0)
    U, _, V = np.linalg.svd(rng.standard_normal((N, 16)), full_matrices=False)
    found = {}
    for of, s in (("condition", np.logspace(0, -14, 16)), ("rank", np.repeat((1.0, 0.0), 8))):
        Y = jax.device_put(jnp.asarray(U * s @ V), ROWS)
        for how, f in (("eager", _arrays.orthonormalise), ("jit", jax.jit(_arrays.orthonormalise))):
            Q, R = f(Y)
            found[f"{how}, {of}"] = {
                "orthogonality": float(np.abs(np.asarray(Q.T @ Q) - np.eye(16)).max()),
                "residual": apart(np.asarray(Q @ R), np.asarray(Y)),
                "parts": _arrays.row_blocks(Q),
            }
    return found


def mapped() -> dict[str, float]:
    """Many keys at a time, by a matrix that is cut."""
    A, keys = jnp.diag(jnp.arange(1.0, 65.0)) + 0.1, jax.random.split(jax.random.key(0), 3)
    cut = jax.device_put(A, ROWS)
    found = {}
    for name in ("hutchinson", "hutchpp"):
        values = [
            jax.vmap(lambda key, A=A, name=name: ESTIMATORS[name](tk.as_operator(A), key))(keys)
            for A in (cut, A)
        ]
        found[name] = apart(*map(np.asarray, values))
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
    uneven, normals = plain[: 4 * 501], "hutchinson"  # 501 rows begin within steps of a draw
    cut = jax.device_put(plain, NamedSharding(MESH, P("data")))
    report = {
        "compiled": {name: compiled(name, plain, key) for name in ESTIMATORS}
        | {"hutchpp, an int": compiled("hutchpp", plain, 0)}
        | {"uneven, an int": compiled(normals, uneven, 0)}
        | {"complex": compiled(normals, plain, key, jnp.complex128)},
        "eager": {f"{name}, an int": eager(name, cut, 0, ROWS) for name in EAGER}
        | {f"{name}, a key": eager(name, cut, key) for name in ("hutchpp", normals)},
        "complex": {str(rng): eager(normals, cut, rng, ROWS, "complex128") for rng in (0, key)},
        "refused": bad_input(plain), "dense": dense(), "factorised": factorised(),
        "summed": summed(), "mapped": mapped(),
    }  # fmt: skip
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
