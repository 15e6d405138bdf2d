"""Configuration of the documentation site, which builds without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tracekit

sys.path.insert(0, str(Path(__file__).parent))
import _pictures  # beside this file
import _pictures_tracking

project = "tracekit"
author = "The tracekit developers"
copyright = f"2026, {author}"
version = release = tracekit.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_design",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]  # of a class: its methods in full
default_role = "autolink"  # `name` links to the object of that name, where there is one
myst_enable_extensions = ["colon_fence", "dollarmath"]

autosummary_generate = True
autodoc_typehints = "none"  # types stand in the Parameters section
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = "tracekit"
html_theme_options = {"navigation_with_keys": False, "show_prev_next": False}


def setup(app: Any) -> None:
    """Draw the pictures before pages are read."""
    folder = Path(app.srcdir) / "generated" / "pictures"
    for pictures in (_pictures, _pictures_tracking):
        app.connect("builder-inited", lambda app, draw=pictures.draw: draw(folder))
