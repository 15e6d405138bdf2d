"""Renders the comparison as tables: those of docs/peers.md and the README, and as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import verdicts
from .verdicts import OURS, called

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "peers.md", ROOT / "README.md"  # tables stand between markers
SHORTER = {"Hutchinson": "H", "Hutch++": "H++", "NA-Hutch++": "NA", "XTrace": "XT",
           "XNysTrace": "XN", "XDiag": "XD", "XNysDiag": "XND", "XSymRowNorm": "XR"}  # fmt: skip
SUMMARY = (  # rows of errors: quantity, problem, budget
    ("Trace", "trace", "i^-2", 60),
    ("Trace", "trace", "i^-2, complex", 60),
    ("Trace", "trace", "triangles", 300),
    ("Diagonal", "diagonal", "kernel", 300),
    ("Frobenius norm", "norm", "i^-0.5", 300),
    ("log det", "logdet", "kernel", 300),
)
Results = dict[str, Any]


def summary(results: Results) -> list[str]:
    """One figure of each kind, for every library that estimates."""
    names = [OURS, *(n for n in results["errors"] if n != OURS)]
    body = []
    for label, quantity, problem, m in SUMMARY:
        found = verdicts.cells(results, quantity, problem, m)
        lowest = min(cell.median for cell in found.values())
        columns = []
        for name in names:
            mine = [cell.median for key, cell in found.items() if key[0] == name]
            text = _short(min(mine)) if mine else "-"
            columns.append(f"**{text}**" if mine and min(mine) == lowest else text)
        body.append((f"{label}, {_code(problem)}, m = {m}", *columns))
    body.append(("XTrace, time over the bare product", *(_xtrace(results, name) for name in names)))
    body.append(("Nominal 95 % intervals cover", *(_covered(results, name) for name in names)))
    body.append(("Keeps a tolerance of 2 %", *(_kept(results, name) for name in names)))
    body.append(("Delicate traces right", *(_right(results, name) for name in names)))
    return table(("", *(called(results, name) for name in names)), body)


def _xtrace(results: Results, name: str) -> str:
    """At n = 2000 and m = 300, on the arrays on which it is fastest, compiled or not."""
    found = [
        told[7]
        for told in results["times"].get(name, ())
        if told[:2] == [2000, 300] and told[3] == "XTrace" and len(told) > 5
    ]
    return f"{min(found):.1f}" if found else "-"


def _covered(results: Results, name: str) -> str:
    shares = [r[5] for r in results["coverage"].get(name, ()) if not isinstance(r[5], str)]
    return f"{min(shares):.0%} to {max(shares):.0%}".replace("%", " %") if shares else "-"


def _kept(results: Results, name: str) -> str:
    shares = [row[3] for row in results["tolerance"].get(name, ())]
    return f"{min(shares):.0%} to {max(shares):.0%}".replace("%", " %") if shares else "-"


def _right(results: Results, name: str) -> str:
    outcomes = [row[2] for row in results["cases"].get(name, ())]
    return f"{outcomes.count('right')} of {len(outcomes)}" if outcomes else "-"


def peers(results: Results) -> list[str]:
    """Versions, and what each has that tracekit has not."""
    head = ("Library", "Version", "Arrays", "Has, and tracekit has not")
    body = [
        (f"[{p['called']}]({p['homepage']})", p["version"], p["arrays"], p["beyond"])
        for name, p in results["peers"].items()
        if name != OURS
    ]
    return table(head, body)


def errors(results: Results, quantity: str) -> list[str]:
    """Median errors: the best method of each library, and the verdict."""
    names = [n for n, told in results["errors"].items() if quantity in told and n != OURS]
    judged = {v.row[1:]: v for v in verdicts.errors(results, quantity)}
    body = []
    for problem, m in verdicts.rows(results, quantity):
        found = verdicts.cells(results, quantity, problem, m)
        lowest = min((c.median for c in found.values()), default=0.0)
        columns = []
        for name in (OURS, *names):
            mine = {key: cell for key, cell in found.items() if key[0] == name}
            columns.append(_best(mine, lowest, results["errors"][name], quantity, problem, m))
        told = _verdict(judged[problem, m].good) if (problem, m) in judged else ""
        body.append((_code(problem), str(m), *columns, told))
    heads = [called(results, name) for name in (OURS, *names)]
    return table(("Problem", "m", *heads, ""), body)


def _best(
    mine: dict[Any, Any], lowest: float, told: Any, quantity: str, problem: str, m: int
) -> str:
    if not mine:
        found = told.get(quantity, {}).get(problem, {}).get(str(m), {})
        return ("NaN" if "error: NaN" in found.values() else "error") if found else "-"
    (_, method), cell = min(mine.items(), key=lambda item: item[1].median)
    median = _short(cell.median) if cell.median > 1e-15 else "0"
    text = f"**{median}**" if cell.median == lowest and median != "0" else median
    name = method.replace("SLQ, depth ", "SLQ ")
    short = SHORTER.get(name, "" if quantity in ("norm", "logdet") and name[0] != "S" else name)
    return f"{text} {short}".strip()


def same(results: Results) -> list[str]:
    """Each algorithm against the same of the others, all problems and budgets pooled."""
    body = []
    for quantity in ("trace", "diagonal"):
        for method, pairs, ratio, allowed, good in verdicts.same(results, quantity):
            figures = (str(pairs), f"{ratio:.2f}", f"{allowed:.2f}", _verdict(good))
            body.append((f"{method}, {quantity}", *figures))
    return table(("Algorithm", "Pairs", "Ours / theirs", "Noise allows", ""), body)


def coverage(results: Results) -> list[str]:
    """Share of nominal 95 % intervals that hold the value."""
    found: dict[tuple[str, str, int], dict[str, list[str]]] = {}
    for name, rows in results["coverage"].items():
        for quantity, problem, m, method, _, share in rows:
            text = "error" if isinstance(share, str) else f"{share:.2f}"
            at = found.setdefault((quantity, problem, m), {}).setdefault(name, [])
            at.append(f"{text} {SHORTER.get(method, '')}".strip())
    names = [name for name, rows in results["coverage"].items() if rows]
    names = [OURS, *(name for name in names if name != OURS)]
    body = [
        (quantity, _code(problem), str(m), *(", ".join(by.get(name, ["-"])) for name in names))
        for (quantity, problem, m), by in found.items()
    ]
    heads = [called(results, name) for name in names]
    return table(("Quantity", "Problem", "m", *heads), body)


def tolerance(results: Results) -> list[str]:
    """Share of runs that end within the tolerance they were given, and what they spend."""
    body = []
    for problem in dict.fromkeys(r[0] for rows in results["tolerance"].values() for r in rows):
        for name in (OURS, *(n for n in results["tolerance"] if n != OURS)):
            for at, method, _, share, spent in results["tolerance"].get(name, ()):
                if at == problem:
                    who = f"{called(results, name)}: {method}"
                    body.append((_code(problem), who, f"{share:.2f}", f"{spent:.0f}"))
    return table(("Problem", "What stops", "Within 2 %", "Median products"), body)


def cases(results: Results) -> list[str]:
    """What comes of delicate operators."""
    names = [OURS, *(name for name in results["cases"] if name != OURS)]
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name in names:
        for case, method, outcome in results["cases"].get(name, ()):
            kind = outcome.split(":")[0]
            found.setdefault(case, {}).setdefault(name, {}).setdefault(kind, []).append(method)
    body = []
    for case, by_name in found.items():
        columns = []
        for name in names:
            kinds = by_name.get(name, {})
            parts = [
                f"{kind}: {' '.join(SHORTER[m] for m in kinds[kind])}" if len(kinds) > 1 else kind
                for kind in ("wrong", "error", "right")
                if kind in kinds and (kind != "right" or len(kinds) == 1)
            ]
            columns.append("; ".join(parts) or "-")
        body.append((case, *columns))
    return table(("Operator", *(called(results, name) for name in names)), body)


def outcomes(results: Results) -> list[str]:
    """What was returned, or said, instead of the right trace."""
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for name, rows in results["cases"].items():
        for case, method, outcome in rows:
            if outcome != "right":
                where, how = found.setdefault((name, outcome), ([], []))
                where.append(case)
                how.append(method)
    body = []
    for (name, outcome), columns in found.items():
        lists = ("; ".join(dict.fromkeys(column)) for column in columns)
        body.append((called(results, name), *lists, _code(outcome)))
    return table(("Library", "Operator", "Method", "Came of it"), body)


def times(results: Results) -> list[str]:
    """CPU times, ours beside the fastest other on the same arrays."""
    plain = {
        (name, *told[:4]): told
        for name, rows in results["times"].items()
        for told in rows
        if len(told) > 5
    }
    body = []
    for v in verdicts.times(results):
        n, m, mode, method = v.row
        ours, theirs = plain[OURS, *v.row], plain[v.peer, *v.row]
        sides = [_time(told) for told in (ours, theirs)]
        verdict = _verdict(v.good) if verdicts.judged(v) else ""
        who = called(results, v.peer)
        body.append((str(n), str(m), mode, method, *sides, who, f"{v.ratio:.2f}", verdict))
    heads = ("n", "m", "Arrays", "Algorithm", "tracekit", "Fastest other", "", "Ratio", "")
    return table(heads, body)


def _time(told: list[Any]) -> str:
    ms, ratio = told[5], told[7]
    return f"{ms:.3g} ms ({ratio:.2f})" if told[6] >= verdicts.SOLID else f"{ms:.2g} ms"


def alltimes(results: Results, n: int = 2000, m: int = 300) -> list[str]:
    """CPU times of every library and algorithm, and of the first call."""
    body = []
    for name in (OURS, *(k for k in results["times"] if k != OURS)):
        for told in results["times"].get(name, ()):
            if told[:2] == [n, m] and len(told) > 5:
                _, _, mode, method, first, ms, _, ratio = told
                figures = (f"{ms:.3g}", f"{ratio:.2f}", f"{first:.3g}")
                body.append((called(results, name), mode, method, *figures))
    heads = ("Library", "Arrays", "Algorithm", "ms", "Over the bare product", "First call, ms")
    return table(heads, body)


def kernels(results: Results) -> list[str]:
    """CPU times of exact kernels of networks."""
    networks = list(dict.fromkeys(row[0] for row in results["kernels"][OURS]))
    body = []
    for name in (OURS, *(k for k in results["kernels"] if k != OURS)):
        by_method: dict[str, dict[str, list[Any]]] = {}
        for row in results["kernels"].get(name, ()):
            by_method.setdefault(row[1], {})[row[0]] = row
        for method, found in by_method.items():
            figures = [f"{found[network][3]:.3g} ms" for network in networks]
            body.append((called(results, name), method, *figures, f"{found[networks[-1]][2]:.0f}"))
    heads = [f"W, O, N = {network}" for network in networks]
    return table(("Library", "How", *heads, "First call, ms"), body)


def short(results: Results) -> list[str]:
    """The rows that fall short, as a list."""
    return [f"* {line}" for line in verdicts.short(results)] or ["None."]


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table."""
    heads = list(head)
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in body:
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |")
    return lines


def _short(value: float) -> str:
    """Two digits, and as few as there are in the exponent."""
    return f"{value:.1e}".replace("e-0", "e-").replace("e+00", "")


def _code(text: str) -> str:
    return f"`{text}`"


def _verdict(good: bool) -> str:
    return "ok" if good else "SHORT"


RENDERED = {
    "summary": summary,
    "peers": peers,
    "trace": lambda results: errors(results, "trace"),
    "diagonal": lambda results: errors(results, "diagonal"),
    "norm": lambda results: errors(results, "norm"),
    "logdet": lambda results: errors(results, "logdet"),
    "same": same,
    "coverage": coverage,
    "tolerance": tolerance,
    "cases": cases,
    "outcomes": outcomes,
    "times": times,
    "alltimes": alltimes,
    "kernels": kernels,
    "short": short,
}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def page(results: Results, text: str) -> str:
    """Return a page with all tables between their markers made anew."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{chr(10).join(RENDERED[match[2]](results))}\n\n{match[3]}"

    return MARKED.sub(made, text)


def write(results: Results) -> None:
    """Make the tables of the pages anew."""
    for path in PAGES:
        path.write_text(page(results, path.read_text(encoding="utf-8")), encoding="utf-8")


def printed(results: Results) -> str:
    """Return the comparison as text, with the rows that fall short at the end."""
    return "\n".join(_printed(results))


def _printed(results: Results) -> Iterator[str]:
    for name, rendered in RENDERED.items():
        lines = rendered(results)
        yield f"\n{name}: {' '.join((rendered.__doc__ or '').split())}".rstrip(": ")
        yield from _aligned(lines) if lines[0].startswith("|") else lines


def _aligned(lines: list[str]) -> Iterator[str]:
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rows = [row for i, row in enumerate(rows) if i != 1]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
