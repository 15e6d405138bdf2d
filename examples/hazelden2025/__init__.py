"""Algorithms of Hazelden (2025), arXiv:2511.10796, as published and corrected, for comparison."""
