"""The command line: ``tracekit estimate FILE``, ``tracekit compare FILE``."""

from .main import main

__all__ = ["main"]
