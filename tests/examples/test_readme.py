"""examples/README.md is the list of what there is."""

from __future__ import annotations

import re

from tests.examples.files import EXAMPLES, text_of

# Programs, each with its own tests and README.
PROGRAMS = ("minid/", "quickstart.sh", "survive.sh", "prepare.sh", "README.md")


def rows() -> dict[str, list[str]]:
    """Return the cells of the table's rows, by file."""
    table = [
        line.strip("|").split("|")
        for line in text_of("README.md").splitlines()
        if "](" in line and line.startswith("|")
    ]
    return {
        re.findall(r"\]\((.*?)\)", cells[0])[0]: [cell.strip() for cell in cells]
        for cells in table
    }


def test_every_file_is_in_the_table_and_every_row_is_a_file() -> None:
    files = [path for path in EXAMPLES.rglob("*") if path.is_file()]
    there = {str(path.relative_to(EXAMPLES)) for path in files if path.suffix != ".pyc"}
    assert rows().keys() == {name for name in there if not name.startswith(PROGRAMS)}


def test_a_file_goes_where_its_head_says() -> None:
    for name, (_file, place, _what, _how) in rows().items():
        target = re.search(r"`(/etc/[^`]*)`", place)
        if target and not name.endswith(".json"):  # which cannot have comments
            directory = target[1].rpartition("/")[0]
            assert target[1] in text_of(name) or f"{directory}/" in text_of(name), name


def test_every_link_leads_somewhere() -> None:
    for link in re.findall(r"\]\((.*?)\)", text_of("README.md")):
        assert (EXAMPLES / link).exists() or link == "minid/README.md", link
