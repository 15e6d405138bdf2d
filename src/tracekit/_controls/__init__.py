"""Cheap approximations from the caller: control variates and preconditioners."""

from .control import Control, controlled, read_control, require_independent, told
from .fitting import Sums, coefficients, fitted, membership
from .incomplete import incomplete_cholesky
from .low_rank import low_rank_plus_diagonal, pivoted_cholesky
from .preconditioner import Preconditioner, known_value, read_preconditioner, trace_of_inverse

__all__ = [
    "Control",
    "Preconditioner",
    "Sums",
    "coefficients",
    "controlled",
    "fitted",
    "incomplete_cholesky",
    "known_value",
    "low_rank_plus_diagonal",
    "membership",
    "pivoted_cholesky",
    "read_control",
    "read_preconditioner",
    "require_independent",
    "told",
    "trace_of_inverse",
]
