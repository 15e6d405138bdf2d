"""Arrays whose rows lie on several devices: memory of each, what they exchange, values, tall QR.

1. JAX, programs for four devices of the host beside those for one: each estimator that compiles, by
   a key, and, of those that draw in other ways, by an int. Memory is what the compiler lays out for
   a device, exchanged is the largest array that all devices get of each other's parts. The operator
   is diagonal, so that its products exchange nothing.
2. JAX, QR of tall arrays by blocks of rows: orthogonality whatever the rank, and time beside QR of
   the gathered array.

An engine is a function that yields tables; its runs are processes of their own.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit as tk

from ..measure import apart
from .table import FIGURES, Row, Table, figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[[Any, Any, Any], Any]  # of an operator, its diagonal and an rng

N, M, DEPTH, DEVICES = 65_536, 64, 3, 4
SHARE, SAME, ORTHOGONAL, FASTER = 0.35, 1e-10, 1e-14, 0.3
COLUMNS, BLOCKS, REPEATS = 16, (1, 2, 4, 8), 9
AT_ONCE = 7  # estimators that share a process
FLAGS = f"--xla_force_host_platform_device_count={DEVICES}"
IN_HASTE = f"{FLAGS} --xla_backend_optimization_level=0"  # memory is laid out before that


def tables() -> Iterator[Table]:
    """Every engine in turn."""
    from . import rows  # which runs the estimators of this module

    yield from in_jax()
    yield from rows.tables()


# --- 1. JAX: programs -----------------------------------------------------------------------------

CALLS: dict[str, Call] = {
    "hutchinson": lambda A, d, rng: tk.hutchinson(A, M, rng=rng),
    "  normal": lambda A, d, rng: tk.hutchinson(A, M, rng=rng, probes=tk.probes.normal),
    "  sphere": lambda A, d, rng: tk.hutchinson(A, M, rng=rng, probes=tk.probes.sphere),
    "  orthogonal": lambda A, d, rng: tk.hutchinson(A, M, rng=rng, probes=tk.probes.orthogonal),
    "  hadamard": lambda A, d, rng: tk.hutchinson(A, M, rng=rng, probes=tk.probes.hadamard),
    "hutchpp": lambda A, d, rng: tk.hutchpp(A, M, rng=rng),
    "nahutchpp": lambda A, d, rng: tk.nahutchpp(A, M, rng=rng),
    "xtrace": lambda A, d, rng: tk.xtrace(A, M, rng=rng),
    "xnystrace": lambda A, d, rng: tk.xnystrace(A, M, rng=rng),
    "one_sided": lambda A, d, rng: tk.one_sided(A, M, rng=rng),
    "spectral_summary": lambda A, d, rng: tk.spectral_summary(A, M, rng=rng).frobenius_norm,
    "frobenius_norm": lambda A, d, rng: tk.frobenius_norm(A, M, rng=rng),
    "effective_rank": lambda A, d, rng: tk.effective_rank(A, M, rng=rng),
    "inner": lambda A, d, rng: tk.inner(A, A @ A, M, rng=rng),
    "alignment": lambda A, d, rng: tk.alignment(A, A @ A, M, rng=rng),
    "target_alignment": lambda A, d, rng: tk.target_alignment(A, d * d, M, rng=rng),
    "one_sided_summary": lambda A, d, rng: tk.one_sided_summary(A, M, rng=rng).frobenius_norm,
    "one_sided_alignment": lambda A, d, rng: tk.one_sided_alignment(A, A @ A, M, rng=rng),
    "diagonal": lambda A, d, rng: tk.diagonal(A, M, rng=rng),
    "xdiag": lambda A, d, rng: tk.xdiag(A, M, rng=rng),
    "xnysdiag": lambda A, d, rng: tk.xnysdiag(A, M, rng=rng),
    "block_traces": lambda A, d, rng: tk.block_traces(A, (64, A.shape[0] // 64), 0, M, rng=rng),
    "partial_trace": lambda A, d, rng: tk.partial_trace(
        A, (A.shape[0] // 8, 8), 0, M // 8, rng=rng),
    "partial_trace_operator": lambda A, d, rng: tk.hutchinson(
        tk.partial_trace_operator(A, (A.shape[0] // 64, 64), 0, 2, rng=rng), M // 2, rng=rng),
    "function_operator": lambda A, d, rng: tk.hutchinson(
        tk.function_operator(A, tk.functions.sqrt, DEPTH), M, rng=rng),
    "trace_function": lambda A, d, rng: tk.trace_function(
        A, tk.functions.log, M, rng=rng, depth=DEPTH, deflate=0),
    "logdet": lambda A, d, rng: tk.logdet(A, M, rng=rng, depth=DEPTH),
    "trace_inverse": lambda A, d, rng: tk.trace_inverse(A, M, rng=rng, depth=DEPTH),
    "effective_dimension": lambda A, d, rng: tk.effective_dimension(
        A, 0.1, M, rng=rng, depth=DEPTH),
    "estrada_index": lambda A, d, rng: tk.estrada_index(A, M, rng=rng, depth=DEPTH),
    "schatten_norm": lambda A, d, rng: tk.schatten_norm(A, 3, M, rng=rng, depth=DEPTH),
    "nuclear_norm": lambda A, d, rng: tk.nuclear_norm(A, M, rng=rng, depth=DEPTH),
    "entropy_rank": lambda A, d, rng: tk.entropy_rank(A, M, rng=rng, depth=DEPTH),
    "spectral_run": lambda A, d, rng: tk.spectral_run(A, M, rng=rng, depth=DEPTH).trace(
        tk.functions.log),
}  # fmt: skip
OF_AN_INT = ("hutchinson", "  normal", "  hadamard", "hutchpp", "xtrace", "one_sided", "xdiag")


def in_jax() -> Iterator[Table]:
    """Programs of all estimators, and QR."""
    yield Table(
        f"JAX, n = {N}, m = {M}, float64, compiled for {DEVICES} devices: memory <= {SHARE} of one "
        f"device's,\nexchanged <= 4 m^2 = {4 * M**2} numbers, change of the value <= {SAME:.0e}",
        {"estimator": "<24", "rng": "<5", "MB": ">7.1f", "memory": ">8.3f", "exchanged": ">11",
         "change": ">9.0e"},
        jax_programs(),
    )  # fmt: skip
    yield Table(
        f"JAX, tall QR of {N} x {COLUMNS} on {DEVICES} devices, by blocks of rows",
        FIGURES,
        jax_qr(),
    )


def jax_programs() -> Iterator[Row]:
    """Judge memory, what is exchanged, and the value of every program."""
    runs = [(name, "key") for name in CALLS] + [(name, "int") for name in OF_AN_INT]
    groups = [runs[i : i + AT_ONCE] for i in range(0, len(runs), AT_ONCE)]

    def found(group: list[tuple[str, str]]) -> Any:
        return apart(jax_records, group, environment={"XLA_FLAGS": IN_HASTE})

    with ThreadPoolExecutor(2) as pool:
        for records in pool.map(found, groups):
            for name, rng, size, share, exchanged, change in records:
                holds = {
                    "memory": share <= SHARE,
                    "exchanged": exchanged <= 4 * M**2,
                    "change": change <= SAME,
                }
                yield Row((name, rng, size / 1e6, share, exchanged, change), holds)


def jax_records(runs: list[tuple[str, str]]) -> list[tuple[Any, ...]]:
    """Compile runs for one device and for all; return bytes, their share, exchange and change."""
    import jax

    jax.config.update("jax_enable_x64", True)
    one = jax.numpy.arange(1.0, N + 1) ** -1.0 + 1.0
    cut = jax.device_put(one, rows_of(1))
    records = []
    for name, kind in runs:
        rng = jax.random.key(0) if kind == "key" else 0

        def value(d: Any, name: str = name, rng: Any = rng) -> Any:
            def product(X: Any) -> Any:
                return d[:, None] * X

            A = tk.LinearOperator((N, N), product, product, xp=jax.numpy, dtype=d.dtype)
            return CALLS[name](A, d, rng).value

        alone, together = (jax.jit(value).lower(d).compile() for d in (one, cut))
        sizes = [p.memory_analysis().temp_size_in_bytes for p in (alone, together)]
        x, y = np.asarray(alone(one)), np.asarray(together(cut))
        change = float(np.max(np.abs(x - y)) / np.max(np.abs(x)))
        most = exchanged(together.as_text())
        records.append((name, kind, sizes[1], sizes[1] / sizes[0], most, change))
    return records


def rows_of(axes: int) -> Any:
    """Return the sharding of arrays that are cut by rows over all devices."""
    import jax

    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((DEVICES,), ("rows",), axis_types=auto)
    spec = jax.sharding.PartitionSpec("rows", *(None,) * (axes - 1))
    return jax.sharding.NamedSharding(mesh, spec)


def exchanged(text: str) -> int:
    """Return the numbers of the largest array that a program makes of parts of other devices."""
    made = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)", text)
    return max((math.prod(map(int, filter(None, shape.split(",")))) for shape in made), default=0)


# --- 2. JAX: tall QR ------------------------------------------------------------------------------


def jax_qr() -> Iterator[Row]:
    """Judge orthogonality by each number of blocks, and the time of as many as devices."""
    off, seconds = apart(jax_factors, environment={"XLA_FLAGS": FLAGS})
    for of, blocks, error in off:
        yield figure(f"departure from orthogonality, {of}, {blocks} blocks", error, most=ORTHOGONAL)
    ours, gathered = seconds
    told = f"{1e3 * ours:.1f} of {1e3 * gathered:.1f} ms"
    yield figure("time over that of the gathered QR", ours / gathered, most=FASTER, told=told)


def jax_factors() -> tuple[list[tuple[str, int, float]], list[float]]:
    """Return departures from orthogonality, and seconds by blocks and gathered."""
    import jax

    from tracekit._arrays import tall_skinny_qr

    jax.config.update("jax_enable_x64", True)
    numbers = np.random.default_rng(0).standard_normal((N, COLUMNS))
    U, _, V = np.linalg.svd(numbers, full_matrices=False)
    spectra = {
        "condition 1e14": np.geomspace(1, 1e-14, COLUMNS),
        "half the rank": np.repeat((1.0, 0.0), COLUMNS // 2),
    }
    off = []
    for of, s in spectra.items():
        Y = jax.device_put(U * s @ V, rows_of(2))
        for blocks in BLOCKS:
            Q = np.asarray(tall_skinny_qr(Y, blocks)[0])
            off.append((of, blocks, float(np.max(np.abs(Q.T @ Q - np.eye(COLUMNS))))))
    Y = jax.device_put(numbers, rows_of(2))
    ways = [jax.jit(lambda Y: tall_skinny_qr(Y, DEVICES)), jax.jit(jax.numpy.linalg.qr)]
    return off, [median_seconds(way, Y) for way in ways]


def median_seconds(work: Callable[[Any], Any], Y: Any) -> float:
    """Return the time on the clock of one of many calls, after one that compiles."""
    import jax

    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(work(Y))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
