"""Arguments: the accepted values, and the one-line error with a remedy for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError, NotFoundError
from shimctl.cli import parse
from shimctl.cli.commands.update import resources_of
from shimctl.cli.render import size
from tests.shimctl.commands import parsed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1K", 1024),
        ("1kb", 1024),
        ("1KiB", 1024),
        ("1.5MiB", 1536 * 1024),
        ("2g", 2 << 30),
        ("1TiB", 1 << 40),
        (" 7 ", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse.size(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12XB",
        "MiB",
        "-5",
        "1e3",
        "0x10",
        "1,5M",
        "1.M",
        "12 MiB B",
        "٣",
        "9" * 30,
        "nan",
        "inf",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a size|too large"):
        parse.size(text)


@given(st.integers(0, (1 << 63) - 1))
def test_the_sizes_we_print_can_be_given_back(count: int) -> None:
    shown = size(count)
    assert shown
    if not shown.endswith("PiB"):
        assert parse.size(shown) == pytest.approx(count, rel=0.06, abs=1)


@given(st.text(max_size=12))
@pytest.mark.parametrize(
    "read",
    [
        *(parse.size, parse.limit, parse.count_limit, parse.cpus, parse.cpu_set, parse.seconds),
        parse.integer(1, 10),
    ],
)
def test_whatever_is_given_is_read_or_refused(read: Callable[[str], Any], text: str) -> None:
    message = ""
    try:
        read(text)
    except ValueError as exc:
        message = str(exc)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (parse.cpus, "0"),
        (parse.cpus, "nan"),
        (parse.cpus, "inf"),
        (parse.cpus, "-1"),
        (parse.cpus, "many"),
        (parse.cpu_set, "0-"),
        (parse.cpu_set, "a"),
        (parse.cpu_set, "0,,1"),
        (parse.count_limit, "0"),
        (parse.count_limit, "1.5"),
        (parse.integer(10, 1000), "9"),
        (parse.integer(10, 1000), "1001"),
        (parse.integer(10, 1000), "1" * 5000),
        (parse.seconds, "0"),
        (parse.seconds, "0.01"),
        (parse.seconds, "2d"),
        (parse.seconds, "-1"),
        (parse.seconds, "25h"),
    ],
)
def test_what_is_out_of_range_is_refused(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError):
        read(text)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (parse.limit, "max", -1),
        (parse.limit, "-1", -1),
        (parse.count_limit, "max", -1),
        (parse.count_limit, "7", 7),
        (parse.cpus, ".5", 0.5),
        (parse.cpu_set, "0-3,7", "0-3,7"),
        (parse.seconds, "500ms", 0.5),
        (parse.seconds, "2", 2.0),
        (parse.seconds, "1m", 60.0),
    ],
)
def test_what_is_in_range_is_read(read: Callable[[str], Any], text: str, value: object) -> None:
    assert read(text) == value


def resources(*argv: str) -> dict[str, Any]:
    return resources_of(vars(parsed("update", "redis", *argv)))


def test_each_option_of_update_has_its_place_in_the_resources() -> None:
    assert resources(
        *("--memory", "64MiB", "--memory-swap", "max", "--memory-reservation", "1MiB"),
        *("--cpus", "1.5", "--cpu-shares", "512", "--cpuset-cpus", "0-1", "--cpuset-mems", "0"),
        *("--pids-limit", "10", "--blkio-weight", "500"),
    ) == {
        "memory": {"limit": 64 << 20, "swap": -1, "reservation": 1 << 20},
        "cpu": {"quota": 150_000, "period": 100_000, "shares": 512, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 10},
        "blockIO": {"weight": 500},
    }


def test_options_win_over_the_file_of_resources(tmp_path: Path) -> None:
    file = tmp_path / "resources.json"
    file.write_text('{"memory": {"limit": 1, "swap": 2}, "hugepageLimits": []}')
    assert resources("--resources", str(file), "--memory", "4K") == {
        "memory": {"limit": 4096, "swap": 2},
        "hugepageLimits": [],
    }


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "7", '{"memory": 7}', '{"cpu": null}'])
def test_a_file_that_holds_no_resources_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "resources.json"
    file.write_text(text)
    with pytest.raises(InvalidError, match=r"resources\.json"):
        resources("--resources", str(file), "--memory", "4K")


def test_a_file_that_is_not_there_is_said() -> None:
    with pytest.raises(NotFoundError, match="no file"):
        resources("--resources", "/no/such/file")


def test_an_update_of_nothing_is_refused_with_an_example() -> None:
    with pytest.raises(InvalidError, match="try --memory 512MiB"):
        resources()


@pytest.mark.parametrize(
    ("argv", "detach", "runtime", "args"),
    [
        (["b"], False, "", []),
        (["b", "-d"], True, "", []),
        (["b", "--runtime", "r", "-d"], True, "r", []),
        (["b", "--runtime=r"], False, "r", []),
        (["b", "sh", "-d"], False, "", ["sh", "-d"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_run_may_stand_after_the_bundle(
    argv: list[str], detach: bool, runtime: str, args: list[str]
) -> None:
    found = parsed("run", *argv)
    assert (found.bundle, found.detach, found.runtime) == ("b", detach, runtime)
    assert list(found.args) == args


def test_an_option_after_the_bundle_that_does_not_exist_is_refused() -> None:
    with pytest.raises(click.NoSuchOption):
        parsed("run", "b", "--nonsense")
