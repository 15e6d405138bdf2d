"""Draws the pictures of the site, and makes its tables, when it is built."""
