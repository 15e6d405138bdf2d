"""Estimates of an operator that changes step by step."""

from .tracker import Tracked, Tracker

__all__ = ["Tracked", "Tracker"]
