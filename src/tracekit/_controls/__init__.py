"""Cheap approximations from the caller: control variates and preconditioners."""

from .control import Control, controlled, read_control, require_independent, told
from .fitting import Sums, coefficients, fitted, membership

__all__ = [
    "Control",
    "Sums",
    "coefficients",
    "controlled",
    "fitted",
    "membership",
    "read_control",
    "require_independent",
    "told",
]
