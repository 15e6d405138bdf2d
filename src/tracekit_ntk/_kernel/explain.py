"""A table of how a network's parameters are read, and what their parts of the kernel cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit._arrays import Array, namespace

from .._backend import capture
from .._derivatives import itemsize
from .._factors import Form, Order, Use, cheapest, cotangent, orders, overlap, with_cotangent

HEAD = ("parameter", "size", "read by", "positions", "order", "multiply-adds", "bytes", "fall-back")


def explain(
    f: Callable[[Any, Any], Any], params: Any, x: Any, *, trace: bool = False, whole: bool = False
) -> str:
    """How each parameter is read, and what its part of the kernel, or of its trace, costs.

    Parameters
    ----------
    f : callable
        As for `ntk_trace`.
    params : tree of arrays
        As for `ntk_trace`.
    x : array or tree of arrays
        The samples.
    trace : bool
        Whether the trace is asked for rather than the kernel of all samples and outputs.
    whole : bool
        As for `ntk_trace`.

    Returns
    -------
    str
        A table, to be printed: a line for each operation that reads a parameter, with the number
        of positions that it is read at for each sample; for each parameter the order of
        contraction, its multiply-adds and the bytes of its intermediate arrays before tiling; and
        the reason where its Jacobian is formed instead. A reverse pass comes on top.

    Examples
    --------
    >>> import torch
    >>> from tracekit_ntk.kernel import explain
    >>> params = {"w": torch.ones(3, 2), "b": torch.ones(2)}
    >>> print(explain(lambda p, x: x @ p["w"] + p["b"], params, torch.ones(5, 3)))
    parameter  size  read by  positions  order       multiply-adds  bytes  fall-back
    ['w']      6     matmul   1          outside-in  660            240
    ['b']      2     add      1          explicit    200            0
    total      8                                     860            240
    """
    found = capture(f, params, x, whole=whole)
    report, M = found.report, found.outputs
    uses = {name: [_widened(use, M) for use in some] for name, some in found.uses(0, 1).items()}
    form = Form(1, M, paired=True) if trace else Form()
    rows: list[tuple[str, ...]] = []
    work = numbers = 0
    bytes_each = 4
    seen: set[str] = set()
    for path, op, positions, reason in report:
        costs = ("", "", "") if path in seen else ("-", "0", "0")
        if path not in seen and uses[path]:
            chosen = _chosen(uses[path], form)
            G = cotangent(uses[path][0])
            bytes_each = itemsize(G.dtype, namespace(G))
            flops, held = sum(o.flops for o in chosen), sum(o.numbers for o in chosen)
            work, numbers = work + flops, numbers + held
            names = "+".join(dict.fromkeys(o.name for o in chosen))
            costs = (names, str(flops), str(held * bytes_each))
        size = "" if path in seen else str(found.sizes[path])
        seen.add(path)
        rows.append((path, size, op, str(positions), *costs, reason))
    total = str(sum(found.sizes.values()))
    rows.append(("total", total, "", "", "", str(work), str(numbers * bytes_each), ""))
    widths = [max(len(row[k]) for row in (HEAD, *rows)) for k in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True))
        for row in (HEAD, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _chosen(uses: list[Use], form: Form) -> list[Order]:
    return [cheapest(orders(u, v, form)) for u in uses for v in uses if overlap(u, v)]


def _widened(use: Use, M: int) -> Use:
    """The same use with one output repeated O times, which takes no memory."""
    G = cotangent(use)
    wide: Array = namespace(G).broadcast_to(G, (G.shape[0], M, *G.shape[2:]))
    return with_cotangent(use, wide)
