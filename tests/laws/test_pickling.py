"""Estimates are pickled and copied whole."""

from __future__ import annotations

import copy
import pickle

import numpy as np
from capabilities import Case
from rows import law, libraries, positive, run


@law("pickle")
def test_estimates_are_pickled_and_copied(case: Case) -> None:
    for lib in libraries():
        A = lib.array(positive())
        found = run(case, A)
        for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
            assert type(again) is type(found)
            assert again.num_matvecs == found.num_matvecs
            if hasattr(found, "to_dict") and lib.family != "strict":
                assert again.to_dict() == found.to_dict()
            assert lib.at_home(case.read(again, A))
            np.testing.assert_array_equal(
                lib.numpy(case.read(again, A)), lib.numpy(case.read(found, A))
            )
