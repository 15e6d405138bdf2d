"""The trace of a GRU's kernel, states at all steps: the paper's second, both ways round."""

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

REPEATS = 5
BUDGETS = {
    ALGORITHM_1: (24, 48, 90, 180, 450),
    REVERSE: (12, 24, 60, 120),
    FORWARD: (12, 24, 60, 120),
    ONE_SIDED: (12, 24, 60, 120),
    LADDER: (24, 48, 90, 180),
    SIGNS: (6, 12, 24),
    HADAMARD: (6, 12, 24),
}


def run() -> Results:
    """Both orders of the paper's (50, 15, 10) input, the rows of the table, and the targets."""
    fed, meant = (
        traces.study(
            networks.gru(name, first=50, second=15, batch_first=batch_first), REPEATS, BUDGETS
        )
        for name, batch_first in (("GRU, 50 steps x 15", False), ("GRU, 15 steps x 50", True))
    )
    quoted = {
        (ALGORITHM_1, 300): (450, "1.7e-3 in 1.43 s"),
        (FORWARD, 60): (60, "3.1e-3 in 0.11 s"),
    }
    rows = [
        traces.exact_row(fed, "618 s (extrapolated)"),
        *traces.rows(fed, quoted),
        traces.exact_row(meant, ""),
        *traces.rows(meant, {key: (calls, "") for key, (calls, _) in quoted.items()}),
    ]
    targets = [traces.target(study, HADAMARD, 12, 6e-3) for study in (fed, meant)]
    return Results([fed, meant], rows, targets)


def main() -> Results:
    """Print errors, table and targets; write the figure."""
    torch.set_num_threads(1)
    results = run()
    traces.present(results, "hazelden_gru")
    return results


if __name__ == "__main__":
    main()
