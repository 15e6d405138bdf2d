"""Sets our best figures beside the best of the others, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from . import judgement
from .judgement import Cell

OURS = "tracekit"
SOLID = 1.0  # ms: from here on times are compared as multiples of the bare product's


class Verdict(NamedTuple):
    """Two figures of one row, who they are of, and whether ours is as good."""

    row: tuple[Any, ...]
    method: str
    ours: float
    peer: str
    their_method: str
    theirs: float
    good: bool

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        floor = judgement.ROUNDING
        return max(self.ours, floor) / max(self.theirs, floor)


def cells(results: dict[str, Any], quantity: str, problem: str, m: int) -> dict[Any, Cell]:
    """Return the errors of all that stayed within the budget, by library and method."""
    found = {}
    for name, by_quantity in results["errors"].items():
        methods = by_quantity.get(quantity, {}).get(problem, {}).get(str(m), {})
        for method, told in methods.items():
            if not isinstance(told, str) and told[3] <= m:
                found[name, method] = Cell(*told[:4])
    return found


def rows(results: dict[str, Any], quantity: str) -> Iterator[tuple[str, int]]:
    """Yield the problems and budgets of a quantity."""
    for problem, budgets in results["errors"][OURS].get(quantity, {}).items():
        for m in budgets:
            yield problem, int(m)


def errors(results: dict[str, Any], quantity: str) -> Iterator[Verdict]:
    """Yield the best of our methods beside the best of the others', at equal products."""
    for problem, m in rows(results, quantity):
        found = cells(results, quantity, problem, m)
        ours = {key: cell for key, cell in found.items() if key[0] == OURS}
        others = {key: cell for key, cell in found.items() if key[0] != OURS}
        if ours and others:
            mine, yours = judgement.best(ours), judgement.best(others)
            a, b = ours[mine], others[yours]
            good = judgement.holds(a, b)
            yield Verdict((quantity, problem, m), mine[1], a.median, *yours, b.median, good)


def same(results: dict[str, Any], quantity: str) -> Iterator[tuple[str, int, float, float, bool]]:
    """Yield each algorithm, how many pairs of medians, the mean ratio, what noise allows, both.

    Pairs are of our median and each other library's of the same algorithm, problem and budget:
    nothing is chosen by its outcome.
    """
    for method in results["errors"][OURS][quantity]["i^-2"]["60"]:
        pairs = []
        for problem, m in rows(results, quantity):
            found = cells(results, quantity, problem, m)
            ours = found.get((OURS, method))
            if ours is not None:
                pairs += [(ours, c) for k, c in found.items() if k[1] == method and k[0] != OURS]
        if pairs:
            ratio, allowed = judgement.pooled(pairs)
            yield method, len(pairs), ratio, allowed, ratio <= allowed


def times(results: dict[str, Any]) -> Iterator[Verdict]:
    """Yield our time beside the fastest other's: same algorithm, same arrays, compiled or not."""
    ours = {tuple(told[:4]): told for told in results["times"].get(OURS, ()) if len(told) > 5}
    for key, mine in ours.items():
        theirs = {
            name: told
            for name, found in results["times"].items()
            for told in found
            if name != OURS and tuple(told[:4]) == key and len(told) > 5
        }
        if not theirs:
            continue
        who = min(theirs, key=lambda name: cost(theirs[name]))
        a, b = cost(mine), cost(theirs[who])
        yield Verdict(key, key[3], a, who, key[3], b, judgement.fast_enough(a, b))


def cost(told: list[Any]) -> float:
    """Return the time of a row over that of the bare product, or in ms where that is short."""
    _, _, _, _, _, ms, bare, ratio = told
    return float(ratio if bare >= SOLID else ms)


def judged(verdict: Verdict) -> bool:
    """Whether a row of times decides: compiled ones are told."""
    return "jitted" not in str(verdict.row[2])


def kernels(results: dict[str, Any]) -> Iterator[Verdict]:
    """Yield our time for the exact kernel of a network beside the fastest other's."""
    for network in dict.fromkeys(row[0] for row in results["kernels"].get(OURS, ())):
        found = {
            (name, row[1]): row[3]
            for name, told in results["kernels"].items()
            for row in told
            if row[0] == network
        }
        ours = {key: ms for key, ms in found.items() if key[0] == OURS}
        others = {key: ms for key, ms in found.items() if key[0] != OURS}
        if ours and others:
            mine, yours = min(ours, key=ours.__getitem__), min(others, key=others.__getitem__)
            good = judgement.fast_enough(ours[mine], others[yours])
            yield Verdict((network,), mine[1], ours[mine], *yours, others[yours], good)


def short(results: dict[str, Any]) -> list[str]:
    """Return a line for every judged row that falls short."""
    lines = []
    for quantity in results["errors"][OURS]:
        for v in errors(results, quantity):
            if not v.good:
                lines.append(
                    f"{quantity}, {v.row[1]}, {v.row[2]} products: {v.method} {v.ours:.1e}, "
                    f"{v.their_method} of {called(results, v.peer)} {v.theirs:.1e}"
                )
    for v in times(results):
        if not v.good and judged(v):
            n, m, mode, method = v.row
            lines.append(
                f"time, n = {n}, {m} products, {mode}: {method} {v.ratio:.2f} times as long as "
                f"that of {called(results, v.peer)}"
            )
    for v in kernels(results):
        if not v.good:
            lines.append(
                f"kernel of {v.row[0]}: {v.ours:.3g} ms, "
                f"{called(results, v.peer)} {v.theirs:.3g} ms"
            )
    return lines


def called(results: dict[str, Any], name: str) -> str:
    """Return the name of a library as it writes it."""
    return str(results["peers"][name]["called"])
