"""The documentation site: the project's Markdown pages and the API from the docstrings.

    sphinx-build -W -c docs . .cache/site

The source directory is the checkout, so that links between pages are the same here
and on the site.
"""

from __future__ import annotations

from shim.version import VERSION

project = "trio-shim"
release = VERSION
root_doc = "docs/site"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
include_patterns = ["docs/**", "examples/**", "*.md"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_title = f"trio-shim {VERSION}"
html_show_copyright = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Types of the signatures that no page describes.
nitpicky = False
suppress_warnings = ["toc.not_included"]
