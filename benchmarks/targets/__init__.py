"""Figures that the library has to reach, a module for each subject: ``make targets [ONLY=...]``."""
