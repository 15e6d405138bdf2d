"""What is not finite is refused by an error of its own, in every library."""

from __future__ import annotations

import numpy as np
import pytest
from capabilities import Case
from rows import law, libraries, positive, run

import tracekit as tk


@law("NaN")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(case: Case, bad: float) -> None:
    A = positive()
    A[2, 2] = bad
    for lib in libraries():
        with np.errstate(all="ignore"), pytest.raises(tk.NotFiniteError):
            run(case, lib.array(A))
