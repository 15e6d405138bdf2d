"""Runs of estimators: budgets and tolerances, what is kept on the way, how a run goes on."""

from .paused import Paused, ended_by, resumable, resume
from .progress import progress
from .run import LEAST, Callback, Run
from .tolerance import FIRST, half_width, within

__all__ = [
    "FIRST",
    "LEAST",
    "Callback",
    "Paused",
    "Run",
    "ended_by",
    "half_width",
    "progress",
    "resumable",
    "resume",
    "within",
]
