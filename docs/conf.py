"""The documentation site: the project's Markdown pages and the API from the docstrings.

    sphinx-build -W -c docs . .cache/site

The source directory is the checkout, so that links between pages are the same here
and on the site.
"""

from __future__ import annotations

import inspect
import pydoc
import re
from typing import TYPE_CHECKING

import shimctl
from shim.version import VERSION

if TYPE_CHECKING:
    from sphinx.application import Sphinx

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

# The three faces of the library: trio's is described in full, the others refer to it.
_FACES = ("shimctl.aio", "shimctl.blocking", "shimctl.images.aio", "shimctl.images.blocking")
_BLOCK = re.compile(r"(Async)?Iterator\[(.*)\]")


def setup(app: Sphinx) -> None:
    """Connect the functions below to Sphinx's events."""
    app.connect("autodoc-skip-member", skip_same)
    app.connect("autodoc-process-docstring", refer)
    app.connect("autodoc-process-signature", name_block)


def skip_same(
    app: Sphinx, _kind: str, name: str, found: object, _skip: bool, _options: object
) -> bool | None:
    """Leave out what a face shares with trio's: values, errors, and asyncio's classes."""
    face = app.env.current_document.autodoc_module
    return True if face in _FACES and getattr(shimctl, name, None) is found else None


def refer(
    _app: Sphinx, kind: str, name: str, found: object, _options: object, lines: list[str]
) -> None:
    """Replace a docstring that is trio's, too, by its first sentence and a reference."""
    face = next((face for face in _FACES if name.startswith(f"{face}.")), None)
    if face is None:
        return
    package = face.rpartition(".")[0]
    own = f"{package}{name.removeprefix(face)}"
    trio = pydoc.locate(own) or pydoc.locate(own.replace("shimctl.", "shimctl.pipes.", 1))
    if trio is None or inspect.getdoc(trio) != inspect.getdoc(found):
        return
    first = " ".join(lines[: lines.index("")]) if "" in lines else " ".join(lines)
    sentence = re.split(r"(?<=[.;])\s", first)[0].rstrip(".;")
    role = {"class": "class", "method": "meth", "property": "attr"}.get(kind, "func")
    lines[:] = [f"{sentence}: as :{role}:`{own}`.", ""]


def name_block(
    _app: Sphinx,
    _kind: str,
    name: str,
    found: object,
    _options: object,
    signature: str,
    returned: str | None,
) -> tuple[str, str] | None:
    """Name the type of a block by its use, ``async with`` or ``with``."""
    found_type = _BLOCK.fullmatch(returned or "")
    if found_type is None:
        return None
    plain = name.startswith("shimctl.blocking.")
    awaited = found_type[1] and not plain
    kind = "AbstractAsyncContextManager" if awaited else "AbstractContextManager"
    value = found_type[2]
    if hasattr(shimctl, value):  # each face has a class of this name
        value = f"~shimctl.{'blocking.' if plain else ''}{value}"
    return signature, f"{kind}[{value}]"
