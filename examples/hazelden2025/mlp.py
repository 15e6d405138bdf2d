"""The trace of a deep MLP's kernel at two initialisations: the paper's first experiment."""

from __future__ import annotations

import torch

from examples.hazelden2025 import networks, traces
from examples.hazelden2025.study import Results
from examples.hazelden2025.traces import (
    ALGORITHM_1,
    FORWARD,
    HADAMARD,
    LADDER,
    ONE_SIDED,
    REVERSE,
    SIGNS,
)

REPEATS = 8
BUDGETS = {
    ALGORITHM_1: (24, 48, 90, 180, 450),
    REVERSE: (12, 24, 60, 192),
    FORWARD: (12, 24, 60, 192),
    ONE_SIDED: (12, 24, 48, 96, 192),
    LADDER: (24, 48, 90, 192),
    SIGNS: (12, 24, 48),
    HADAMARD: (12, 24, 48, 64),
}


def run() -> Results:
    """Both initialisations, the rows of the table, and the targets."""
    default = traces.study(networks.mlp("MLP, default", he=False), REPEATS, BUDGETS)
    more = {**BUDGETS, LADDER: (24, 48, 90, 192, 768), ALGORITHM_1: (24, 48, 90, 180, 450, 768)}
    he = traces.study(networks.mlp("MLP, He", he=True), REPEATS, more)
    quoted = {
        (ALGORITHM_1, 60): (90, "1.9e-2 in 36 ms"),
        (ALGORITHM_1, 120): (180, "1.1e-2 in 63 ms"),
        (ALGORITHM_1, 300): (450, "5e-8 in 0.13 s"),
        (REVERSE, 60): (60, "2.8e-2 in 20 ms"),
    }
    rows = [
        traces.exact_row(default, "6.2 s"),
        *traces.rows(default, quoted),
        *traces.rows(he, {(ALGORITHM_1, 300): (450, "3.1e-3 in 0.15 s")}),
    ]
    per_sample = [(HADAMARD, 24, 1.4e-2), (HADAMARD, 48, 9e-3)]
    ladder = [(LADDER, 192, 3e-3), (LADDER, 768, 4e-4)]
    targets = [
        *(traces.target(he, *aim) for aim in (*per_sample, *ladder)),
        traces.target(default, HADAMARD, 12, 1.5e-3),
    ]
    return Results([default, he], rows, targets)


def main() -> Results:
    """Print errors, table and targets; write the figure."""
    torch.set_num_threads(1)
    results = run()
    traces.present(results, "hazelden_mlp")
    return results


if __name__ == "__main__":
    main()
