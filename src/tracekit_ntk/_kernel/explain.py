"""A table of how a network's parameters are read, and what their parts of the kernel cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit._arrays import Array, namespace

from .._backend import capture
from .._derivatives import itemsize
from .._factors import Form, Head, Order, Use, cheapest, cotangent, orders, overlap, sized

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
        the reason where its Jacobian is formed instead. A head with more outputs than features has
        a line of its own. At the end a summary: what is exact by how many cotangents, which a
        reverse pass on top of the table takes for each sample, what fell back, and the head.

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
    exact: 8 of 8 entries from factors, by 2 cotangents of each of 5 samples
    """
    found = capture(f, params, x, whole=whole)
    head, report = found.head, found.report
    M = found.outputs if head is None else head.body.outputs
    one = found.uses(0, 1) if head is None else head.one
    own = set() if head is None else {part.name for part in (head.own, head.bias) if part}
    uses = {name: [sized(use, M) for use in some] for name, some in one.items()}
    form = Form(1, M, paired=True) if trace else Form()
    rows: list[tuple[str, ...]] = []
    work = numbers = 0
    bytes_each = 4
    seen: set[str] = set()
    for path, op, positions, reason in report:
        costs = ("", "", "") if path in seen else ("-", "0", "0")
        if path not in seen and (uses[path] or path in own):
            chosen = _chosen(uses[path], form)
            bytes_each = _itemsize(head.features if head else cotangent(one[path][0]))
            flops, held = sum(o.flops for o in chosen), sum(o.numbers for o in chosen)
            work, numbers = work + flops, numbers + held
            names = "+".join(dict.fromkeys([o.name for o in chosen] + ["head"] * (path in own)))
            costs = (names, str(flops), str(held * bytes_each))
        size = "" if path in seen else str(found.sizes[path])
        seen.add(path)
        rows.append((path, size, op, str(positions), *costs, reason))
    if head is not None:
        flops, held = _through(head, trace)
        work, numbers = work + flops, numbers + held
        costs = (f"{head.width} for {head.outputs}", str(flops), str(held * bytes_each))
        rows.append(("head", "", "", str(head.features.shape[1]), *costs, ""))
    total = str(sum(found.sizes.values()))
    rows.append(("total", total, "", "", "", str(work), str(numbers * bytes_each), ""))
    widths = [max(len(row[k]) for row in (HEAD, *rows)) for k in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True))
        for row in (HEAD, *rows)
    ]
    lines.append(
        _summary(found.sizes, report, f"{M} cotangents of each of {found.samples} samples")
    )
    lines += [] if head is None else [_of_head(head)]
    return "\n".join(line.rstrip() for line in lines)


def _summary(sizes: dict[str, int], report: list[tuple[str, str, int, str]], by: str) -> str:
    """What is exact from factors, and what fell back."""
    slow = list(dict.fromkeys(name for name, op, _, why in report if why and op != "none"))
    total = sum(sizes.values())
    missed = sum(sizes[name] for name in slow)
    line = f"exact: {total - missed} of {total} entries from factors, by {by}"
    if not slow:
        return line
    return f"{line}; fell back: {', '.join(slow)}, exact too, for the reason beside each"


def _chosen(uses: list[Use], form: Form) -> list[Order]:
    return [cheapest(orders(u, v, form)) for u in uses for v in uses if overlap(u, v)]


def _through(head: Head, trace: bool) -> tuple[int, int]:
    """Multiply-adds and numbers of the head's own part, and of going from features to outputs."""
    (N, S, d), O = head.features.shape, head.outputs  # noqa: E741
    if trace:
        return N * S * d + 2 * O * d * d, O * d
    pairs = N * N * S * S
    return pairs * (d + O * d * d + O * O * d), pairs * O * d


def _itemsize(x: Array) -> int:
    return itemsize(x.dtype, namespace(x))


def _of_head(head: Head) -> str:
    tied = ", which the body reads too" if head.own and head.one.get(head.own.name) else ""
    name = f"parameter {head.own.name}{tied}" if head.own else "held fixed"
    return (
        f"head: {head.outputs} outputs are linear in {head.width} features, by weights ({name}): "
        f"{head.width} cotangents at each of {head.features.shape[1]} positions in place of "
        f"{head.outputs}"
    )
