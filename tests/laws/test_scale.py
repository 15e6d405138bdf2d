"""An estimate of c A is what its function says of an estimate of A: units do not matter."""

from __future__ import annotations

import numpy as np
import pytest
from capabilities import Case
from rows import law, libraries, numbers, positive, run


@law("scale")
@pytest.mark.parametrize("exponent", [-150, 150])
def test_units_do_not_matter(case: Case, exponent: int) -> None:
    A, c = positive(), 2.0**exponent
    expected = case.scaled(numbers(case, run(case, A), A), c)
    for lib in libraries():
        scaled = lib.array(c * A)
        found = case.read(run(case, scaled), scaled)
        np.testing.assert_allclose(lib.numpy(found), expected, rtol=1e-9)
