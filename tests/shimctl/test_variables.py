from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError, NotFoundError
from shimctl.standalone.variables import parse_file, variables

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\ufeff# a comment
A=1
  B= two words \r

# C=3
D=x=#y
HOME
MISSING
A=4
"""


def test_files_come_first_and_later_variables_win(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(TEXT)
    (tmp_path / "two").write_text("D=2")
    found = variables(
        ["E", "D=", "NONE"], [tmp_path / "one", tmp_path / "two"], {"HOME": "/h", "E": ""}
    )
    assert found == ["A=4", "B= two words ", "D=", "HOME=/h", "E="]


@pytest.mark.parametrize("text", ["=1", "A B=1", "A\tB", " A =1"])
def test_a_malformed_line_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(f"X=1\n{text}\n")
    with pytest.raises(InvalidError, match=r"f, line 2: .* is not NAME=VALUE"):
        variables([], [tmp_path / "f"], {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"cannot read .*none: No such file"):
        variables([], [tmp_path / "none"], {})
    (tmp_path / "f").write_bytes(b"A=\xff")
    with pytest.raises(InvalidError, match="is not UTF-8"):
        variables([], [tmp_path / "f"], {})
    with pytest.raises(InvalidError, match="is not a variable"):
        variables(["=1"], [], {})


@given(st.text())
def test_what_is_read_is_a_variable_or_an_error(text: str) -> None:
    try:
        entries = parse_file(text)
    except InvalidError:
        return
    assert all(entry.partition("=")[0] and "\n" not in entry for entry in entries)
