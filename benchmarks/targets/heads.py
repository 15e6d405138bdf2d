"""Networks with more outputs than features: traces by cotangents of the features alone.

A transformer of two layers and width 128 reads 16 tokens and gives 8000 logits at the last of them,
by a matrix that is tied to the embedding, of 4 samples in float64. `ntk_trace` sends back a
cotangent for each of the 128 features; without the head's rule, for each of the logits. Both send
as many as 1000 at once: if no number is asked for, both keep to 128 MB of cotangents. CPU time on
one thread, and the memory by which a process grows after a first call, in PyTorch of a small
network of the same kind. Each way is a process of its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measure import apart, cpu_seconds, peak_above
from .table import FIGURES, Row, Table, figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = Any

WIDTH, OUTPUTS, TOKENS, SAMPLES, LAYERS, AT_ONCE = 128, 8000, 16, 4, 2, 1000
CHEAPER, MEMORY, SAME = 25, 0.1, 1e-10


def tables() -> Iterator[Table]:
    """Both libraries."""
    title = f"O = {OUTPUTS}, d = {WIDTH}, {LAYERS} layers, {SAMPLES} samples of {TOKENS} tokens"
    yield Table(title, FIGURES, rows())


def rows() -> Iterator[Row]:
    """Compare the two ways."""
    for library in ("torch", "jax"):
        by_head, without = (apart(run, library, rule) for rule in (True, False))
        yield figure(f"{library}: seconds by the head", by_head["seconds"])
        yield figure(f"{library}: seconds without its rule", without["seconds"])
        ratio = without["seconds"] / by_head["seconds"]
        yield figure(f"{library}: times cheaper", ratio, least=CHEAPER)
        yield figure(f"{library}: megabytes by the head", by_head["bytes"] / 1e6)
        yield figure(f"{library}: megabytes without its rule", without["bytes"] / 1e6)
        part = by_head["bytes"] / without["bytes"]
        yield figure(f"{library}: part of the memory", part, most=MEMORY)
        apart_by = abs(by_head["trace"] / without["trace"] - 1)
        yield figure(f"{library}: difference of the traces", apart_by, most=SAME)


def run(library: str, rule: bool) -> dict[str, float]:
    """Return time, memory and value of one way."""
    import tracekit_ntk as tkn

    if library == "jax":
        import jax
        import jax.numpy as xp

        jax.config.update("jax_enable_x64", True)
        from tracekit_ntk._jax.capture import Capture
    else:
        import torch as xp

        from tracekit_ntk._torch.capture import Capture
    if not rule:
        Capture.head = None
    params, ids = drawn(xp, WIDTH, OUTPUTS)

    found: list[float] = []

    def trace(params: dict[str, Array], ids: Array) -> None:
        made = tkn.ntk_trace(lambda p, ids: logits(xp, p, ids), params, ids, chunk_size=AT_ONCE)
        found.append(float(made))

    # what is compiled is compiled before it is measured
    trace(*((params, ids) if library == "jax" else drawn(xp, 8, 20)))
    seconds = []
    bytes_above = peak_above(lambda: seconds.append(cpu_seconds(partial(trace, params, ids))))
    return {"seconds": seconds[0], "bytes": bytes_above, "trace": found[-1]}


def drawn(xp: Any, width: int, outputs: int) -> tuple[dict[str, Array], Array]:
    """Parameters and tokens of a transformer."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        return xp.asarray(rng.standard_normal(shape) / shape[0] ** 0.5)

    params = {"tokens": xp.asarray(rng.standard_normal((outputs, width)) / width**0.5)}
    params["places"] = xp.asarray(0.1 * rng.standard_normal((TOKENS, width)))
    for k in range(LAYERS):
        params |= {f"{name}{k}": weight(width, width) for name in ("q", "k", "v", "o")}
        params |= {f"in{k}": weight(width, 4 * width), f"out{k}": weight(4 * width, width)}
        params |= {f"{name}{k}": xp.asarray(np.ones(width)) for name in ("scale", "other")}
    return params, xp.asarray(rng.integers(0, outputs, (SAMPLES, TOKENS)))


def logits(xp: Any, p: dict[str, Array], ids: Array) -> Array:
    """Return the logits at the last token, of one head of attention a layer."""
    h = p["tokens"][ids] + p["places"]
    for k in range(LAYERS):
        x = normal(h) * p[f"scale{k}"]
        scores = (x @ p[f"q{k}"]) @ xp.swapaxes(x @ p[f"k{k}"], -1, -2)
        scores = xp.exp(scores / h.shape[-1] ** 0.5)
        mixed = (scores / scores.sum(-1)[..., None]) @ (x @ p[f"v{k}"])
        h = h + mixed @ p[f"o{k}"]
        h = h + xp.tanh(normal(h) * p[f"other{k}"] @ p[f"in{k}"]) @ p[f"out{k}"]
    return normal(h)[:, -1] @ p["tokens"].T


def normal(h: Array) -> Array:
    """Return entries less their mean, over their deviation."""
    h = h - h.mean(-1)[..., None]
    return h / ((h * h).mean(-1)[..., None] + 1e-5) ** 0.5
