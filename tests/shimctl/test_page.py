"""docs/shimctl.md names every command and option, and its examples are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from shimctl.cli import FAILED, pages
from shimctl.cli.output import FORMATS
from tests.shimctl.commands import COMMANDS, options, parsed, verbs

MACROS = {".TH", ".SH", ".SS", ".PP", ".TP", ".B", ".BR", ".EX", ".EE"}
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/shimctl.md").read_text()
SHARED, *_ = PAGE.partition(pages.BEGIN)


def section(command: str) -> str:
    """Return the page's part about one command."""
    found = re.search(rf"(?ms)^### `shimctl {command}\b.*?(?=^##|\Z)", PAGE)
    assert found, f"docs/shimctl.md has no section for {command}"
    return found[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_names_every_command_and_option(command: str) -> None:
    text = section(command)
    for one in verbs(COMMANDS[command]):
        for option in options(one):
            assert f"`{option}`" in text + SHARED, f"{command} has {option}"
        for parameter in one.params:
            if isinstance(parameter, click.Argument) and parameter.metavar:
                assert parameter.metavar.strip("[].") in text
        assert str(one.name) in text


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_of_one_command_has_a_row_with_its_whole_argument(command: str) -> None:
    text = section(command)
    for one in verbs(COMMANDS[command]):
        for option in one.params:
            if not isinstance(option, click.Option) or option.hidden:
                continue
            if tuple(option.opts) not in pages.SHARED:
                names = ", ".join(f"`{name}`" for name in option.opts)
                words = [names, *([option.metavar] if option.metavar else [])]
                assert " ".join(words) in text


def test_the_page_names_nothing_that_is_not_there() -> None:
    named = re.findall(r"^### `shimctl ([a-z]+)", PAGE, re.MULTILINE)
    assert sorted(named) == sorted(COMMANDS)
    for name, command in COMMANDS.items():
        known = {option for one in verbs(command) for option in options(one)}
        rows = re.findall(r"^\| (`-.*?) \|", section(name), re.MULTILINE)
        assert set(re.findall(r"`(--?[a-z][a-z-]*)`", "".join(rows))) <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_each_is_on_the_page_and_is_understood(name: str) -> None:
    example = COMMANDS[name].example
    assert f"```\n{example}\n```" in section(name)
    # Return the arguments up to the first operator of the shell.
    words = re.split(r" ?[|>;&]", example)[0]
    program, *argv = shlex.split(words)
    assert (program, argv[0]) == ("shimctl", name)
    assert parsed(*argv)


def test_the_page_tells_the_exit_codes_and_the_formats() -> None:
    for code in (FAILED, 126, 127, 130, 141):
        assert f"| {code} |" in SHARED
    for name in FORMATS:
        assert name in SHARED


def test_the_page_tells_what_the_environment_changes() -> None:
    read = set()
    for path in (ROOT / "shimctl").rglob("*.py"):
        read |= set(re.findall(r"environ\.get\(\s*\"([A-Z_]+)\"", path.read_text()))
    assert read >= {"NO_COLOR", "SHIMCTL_STATE"}
    for name in read:
        assert f"`{name}`" in SHARED, name


def test_the_page_has_one_sentence_per_line() -> None:
    code = False
    for line in PAGE.splitlines():
        code ^= line.startswith("```")
        if not code and not line.startswith("|"):
            assert not re.search(r"[a-z]\. [A-Z]", line), line


def test_the_reference_on_the_page_is_the_current_help() -> None:
    assert pages.replaced(PAGE) == PAGE, "run python -m shimctl.cli.pages docs/shimctl.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_man_page_of_a_command_has_its_options_and_its_example(name: str) -> None:
    page = pages.man_pages()[f"shimctl-{name}.1"]
    text = page.replace("\\-", "-").replace("\\&", "")
    assert page.startswith(f".TH SHIMCTL\\-{name.upper()} 1 ")
    for option in options(COMMANDS[name]):
        assert option in text, option
    assert f".EX\n{COMMANDS[name].example}\n.EE" in text
    for line in page.splitlines():  # an unknown macro would swallow its line
        assert not line.startswith("'")
        assert not line.startswith(".") or line.split(" ")[0] in MACROS, line


def test_the_man_page_of_shimctl_names_every_command() -> None:
    page = pages.man_pages()["shimctl.1"]
    for name in COMMANDS:
        assert f".BR shimctl\\-{name} (1)\n" in page
