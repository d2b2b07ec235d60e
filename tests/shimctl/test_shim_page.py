"""docs/shim.md and the man page of the shim name each flag, action and variable."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from shim.start.flags import Flags
from shimctl.cli import shimpage
from tests.shimctl.test_page import MACROS

ROOT = Path(__file__).parents[2]


def sources() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "shim").rglob("*.py"))


def test_the_page_is_the_current_one() -> None:
    page = (ROOT / "docs/shim.md").read_text()
    assert page == shimpage.markdown(), "run python -m shimctl.cli.shimpage docs/shim.md"


def test_each_flag_and_action_is_described() -> None:
    flags = " ".join(one.name for one in shimpage.FLAGS)
    described = set(re.findall(r"-([a-z-]+)", flags))
    assert described == {one.name.replace("_", "-") for one in fields(Flags)} - {"action"}
    actions = set(re.findall(r'case "(\w+)":', (ROOT / "shim/start/actions.py").read_text()))
    assert {one.name for one in shimpage.ACTIONS} == actions


def test_each_variable_is_described() -> None:
    used = set(re.findall(r"TRIO_SHIM_[A-Z_]+", sources()))
    assert used == {one.name for one in shimpage.ENVIRONMENT if one.name.startswith("TRIO_")}


def test_the_man_page_has_only_known_macros() -> None:
    page = shimpage.man_page()
    for line in page.splitlines():  # an unknown macro would swallow its line
        assert not line.startswith("'")
        assert not line.startswith(".") or line.split(" ")[0] in MACROS | {".nf", ".fi"}, line
    for entry in (*shimpage.ACTIONS, *shimpage.FLAGS, *shimpage.ENVIRONMENT, *shimpage.FILES):
        assert entry.name in page.replace("\\-", "-")
    # Without a backslash it would be a hyphen, which no shell takes for the begin of a flag.
    assert not re.search(r"(?<!\\)-", page)


def test_groff_formats_the_man_page_without_a_warning(tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("needs groff")
    path = tmp_path / shimpage.MAN
    path.write_text(shimpage.man_page())
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
