"""Arguments after an image are those of its command, and after a bundle shimctl's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest

from shim.errors import InvalidError, NotFoundError
from shimctl.cli.creating import overrides_of, run_of, volume_of, without_dashes
from shimctl.images import Overrides, Volume
from tests.shimctl.commands import parsed

if TYPE_CHECKING:
    from pathlib import Path


def overrides(*argv: str) -> Overrides:
    args = parsed("run", "--id", "c", *argv)
    return overrides_of(args, run_of(args))


@pytest.mark.parametrize("between", [[], ["--"]])
def test_options_after_an_image_are_the_commands(between: list[str]) -> None:
    args = parsed("run", "-d", "oci:a:b", *between, "sh", "-d", "--id", "x")
    assert (args.bundle, args.id_) == ("oci:a:b", "")
    assert without_dashes(args.args) == ["sh", "-d", "--id", "x"]


@pytest.mark.parametrize("command", ["run", "create"])
def test_options_after_a_bundle_are_ours(command: str) -> None:
    args = parsed(command, "--debug", "./b", "--id", "x")
    assert (args.bundle, args.args, args.id_, args.debug) == ("./b", (), "x", True)


def test_a_wrong_option_after_a_bundle_is_told() -> None:
    with pytest.raises(click.NoSuchOption, match="--nonsense"):
        parsed("run", "./b", "--nonsense")


def test_what_is_not_said_is_as_the_image_has_it() -> None:
    assert overrides("oci:a") == Overrides(
        args=[], env=[], volumes=[], hostname="c", cgroup="/shimctl.default.c"
    )


def test_every_option_is_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    monkeypatch.delenv("NOBODYS", raising=False)
    argv = ["-e", "A=1", "--env", "OURS", "-e", "NOBODYS", "-w", "/w", "--entrypoint", "sh"]
    argv += ["--hostname", "h", "-v", "/tmp:/t:ro", "--memory", "1MiB", "--cpus", "0.5"]
    argv += ["--pids-limit", "9", "--read-only", "--network", "host", "-t", "oci:a", "-c", "x"]
    assert overrides(*argv) == Overrides(
        args=["-c", "x"],
        entrypoint=["sh"],
        env=["A=1", "OURS=1"],
        working_dir="/w",
        hostname="h",
        volumes=[Volume("/tmp", "/t", read_only=True)],
        memory=1 << 20,
        cpus=0.5,
        pids=9,
        read_only=True,
        network=True,
        terminal=True,
        cgroup="/shimctl.default.c",
    )
    assert overrides("--entrypoint", "", "oci:a").entrypoint == []


def test_a_volume_is_found_from_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert volume_of(".:/x:rw") == Volume(str(tmp_path), "/x")
    with pytest.raises(NotFoundError, match=r"there is no .*/nothing"):
        volume_of("nothing:/x")


@pytest.mark.parametrize("text", ["/tmp", ":/x", "/tmp:", "/tmp:x", "/tmp:/x:rwx", "/tmp:/x:ro:z"])
def test_what_is_no_volume_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match=r"is not a volume; use SRC:/DST"):
        volume_of(text)
