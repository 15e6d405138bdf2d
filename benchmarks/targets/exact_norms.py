"""Norms, ranks and alignments of kernels by the default call, beside the kernel of all samples.

A figure is CPU time over that of the road by hand, of the same framework in the same run: `kernel`,
of whose matrix the number is read. The default call makes the operator too, `ntk` of a ResNet-18,
with the checks of its passes, so the road by hand is given that: a figure is the time of the
estimator, of an operator that is there, over that of the kernel. Both are in float32 on one thread,
each the least of a few runs. Beside them what the same number of products costs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .. import networks
from .table import FIGURES, Row, Table, figure, in_own_process

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST, BUDGET = 1.2, 40
SAMPLES, SIZE, OUTPUTS = 4, 32, 10
MEGABYTES = 1.0 * 2**10  # of `kernel` by default


def tables() -> Iterator[Table]:
    """All parts, each in a process of its own."""
    yield Table("Default calls over the kernel; megabytes", FIGURES, rows())


def rows() -> Iterator[Row]:
    """Of both frameworks, where they do not compile for longer than they run."""
    for name, library in (("norms", "torch"), ("batches", "torch"), ("memory", "torch")):
        yield from in_own_process(part, library, name)
    yield from in_own_process(part, "jax", "memory")


def part(library: str, name: str) -> list[Row]:
    """Return the rows of one part."""
    return list(PARTS[name](networks.LIBRARIES[library]()))


def small_resnet(lib: Any) -> networks.Network:
    """The ResNet-18 of the other figures, with ten outputs, on smaller images."""
    f, params, _ = networks.resnet(lib)
    params["out"] = params["out"][:, :OUTPUTS]
    return f, params, lib.normal(SAMPLES, 3, SIZE, SIZE)


def norms(lib: Any) -> Iterator[Row]:
    """Judge the default calls over the kernel, and tell what products cost."""
    import tracekit as tk
    import tracekit_ntk as tkn

    f, params, x = small_resnet(lib)
    K = tkn.ntk(f, params, x)
    others = {name: 1.1 * p for name, p in params.items()}
    L = tkn.ntk(f, others, x)

    def matrix(params: Any) -> Any:
        return tkn.kernel_matrix(tkn.kernel(f, params, x))

    def cosine() -> Any:
        A, B = matrix(params), matrix(others)
        return (A * B).sum() / ((A * A).sum() * (B * B).sum()) ** 0.5

    one = lib.seconds(lambda: (matrix(params) ** 2).sum(), 2)
    found = tk.frobenius_norm(K, BUDGET)
    for what, call in (
        ("norm", partial(tk.frobenius_norm, K, BUDGET)),
        ("effective rank", partial(tk.effective_rank, K, BUDGET)),
    ):
        ratio = lib.seconds(lambda call=call: call().value, 2) / one
        yield figure(f"ResNet-18: {what}, over the kernel", ratio, most=MOST, told=found.reason)
    both = lib.seconds(cosine, 1)
    aligned = lib.seconds(lambda: tk.alignment(K, L, 2 * BUDGET).value, 1)
    yield figure("ResNet-18: alignment, over two kernels", aligned / both, most=MOST)
    spent = found.num_matvecs
    estimated = lib.seconds(lambda: tk.frobenius_norm(K.factor @ K.factor.H, spent - 1).value, 1)
    told = f"{one:.2f} s; by {spent - 1} products {estimated:.2f} s"
    yield figure("ResNet-18: norm by products, over the kernel", estimated / one, told=told)


def batches(lib: Any) -> Iterator[Row]:
    """Tell what batches cost over all samples at once."""
    import tracekit_ntk as tkn

    f, params, x = networks.mlp(lib)
    cut = [x[k : k + 10] for k in range(0, 50, 10)]
    for quantity in (tkn.ntk_trace, tkn.ntk_norm):
        one = lib.seconds(lambda quantity=quantity: quantity(f, params, x), 3)
        many = lib.seconds(lambda quantity=quantity: quantity(f, params, batches=cut), 3)
        told = f"{one * 1e3:.0f} ms"
        yield figure(f"MLP, 5 batches: {quantity.__name__}, over one", many / one, told=told)


def memory(lib: Any) -> Iterator[Row]:
    """Judge what the kernel holds by default, of a thousand outputs."""
    from tracekit_ntk.kernel import kernel

    f, params, _ = networks.cnn(lib)
    params["out"] = lib.normal(32, 1000) / 32**0.5
    x = lib.normal(1, 3, 64, 64)
    peak = lib.megabytes(lambda: kernel(f, params, x))
    yield figure("CNN, O=1000: kernel, MB", peak, most=MEGABYTES)


PARTS = {made.__name__: made for made in (norms, batches, memory)}
