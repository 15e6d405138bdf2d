"""Configuration of the documentation site, which builds without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tracekit

sys.path.insert(0, str(Path(__file__).parent))
from _draw import capabilities, kernels, novak2022, peers, performance, tracking  # beside this

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
    "sphinx-mathjax-offline",  # MathJax within the site
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]  # of a class: its methods in full
default_role = "autolink"  # `name` links to the object of that name, where there is one
myst_enable_extensions = ["colon_fence", "dollarmath"]

autosummary_generate = True
autodoc_typehints = "none"  # types stand in the Parameters section
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "generated/gallery",
    "backreferences_dir": "generated/backreferences",  # API pages show who uses them
    "doc_module": ("tracekit", "tracekit_ntk"),
    "inspect_global_variables": False,
    "reset_modules": ("_draw.gallery.reset",),  # beside this file
    "capture_repr": (),
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,  # seconds: times are not the examples' subject
    "show_memory": False,
    "show_signature": False,
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "tracekit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "figures/logo.svg"
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": False,
    "header_links_before_dropdown": 6,
    "logo": {
        "text": "tracekit",
        "image_light": "figures/logo.svg",
        "image_dark": "figures/logo.svg",
    },
}
html_sidebars = {page: [] for page in ("index", "quickstart", "extending")}  # without children


def setup(app: Any) -> None:
    """Draw the pictures, and make the tables, before pages are read."""
    folder = Path(app.srcdir) / "generated" / "pictures"
    for made in (capabilities, kernels, novak2022, peers, performance, tracking):
        app.connect("builder-inited", lambda app, draw=made.draw: draw(folder))
