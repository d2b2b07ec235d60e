"""``--format``: a template for each container, or a table of templates.

Source: docker's "Format command and log output": ``table TEMPLATE`` has a header, and its
columns are separated by tabs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from shimctl.gotemplate import Template, TemplateError
from shimctl.listing.fields import HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_GAP = "   "
_TABLE = re.compile(r"table(?=\s|\\t|\{|$)")


class Format:
    """A parsed ``--format``: ``json``, ``TEMPLATE`` or ``table TEMPLATE``.

    :raises TemplateError: the template is malformed.
    """

    def __init__(self, text: str) -> None:
        text = text.strip()
        self.is_table = _TABLE.match(text) is not None
        if self.is_table:
            text = text[len("table") :].removeprefix(r"\t").strip()
            if not text:
                raise TemplateError("table has no template", r"use 'table {{.ID}}\t{{.Names}}'")
        elif text == "json":
            text = "{{json .}}"
        self._template = Template(text)

    def render(
        self, documents: Iterable[Mapping[str, Any]], as_json: Callable[[object], str]
    ) -> str:
        """Return the text: one line or more for each document, each ended by a newline."""
        lines = [self._template.render(document, as_json) for document in documents]
        if self.is_table:
            header = self._header()
            lines = _aligned([header, *lines] if header else lines)
        return "".join(f"{line}\n" for line in lines)

    def _header(self) -> str:
        try:
            return self._template.render(_Header(), str)
        except TemplateError:
            return ""  # a template that computes with its fields has no header


class _Header(dict[str, Any]):
    """Has each field; its value is the field's header."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return HEADERS.get(name, name.upper())


def _aligned(lines: list[str]) -> list[str]:
    grid = [line.split("\t") for text in lines for line in text.split("\n")]
    columns = max(map(len, grid), default=0)
    widths = [
        max((len(cells[at]) for cells in grid if at < len(cells) - 1), default=0)
        for at in range(columns)
    ]
    return [
        _GAP.join(cell.ljust(widths[at]) for at, cell in enumerate(cells)).rstrip()
        for cells in grid
    ]
