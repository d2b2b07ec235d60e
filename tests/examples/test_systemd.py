"""examples/systemd, and Docker 20.10's drop-in: systemd's own check of them.

The unit that a drop-in is for is one like containerd's where it matters.  That the fork
server's works is in tests/shimctl/test_forkserver.py.
"""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.examples.files import EXAMPLES, text_of

if TYPE_CHECKING:
    from pathlib import Path

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


def verify(unit: Path) -> tuple[int, str]:
    """Return the exit status of the check, and its messages about the files beside ``unit``."""
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    ours = [line for line in done.stderr.splitlines() if str(unit.parent) in line]
    return done.returncode, "\n".join(ours)


def settings(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment,method-assign] # case counts in units
    parser.read_string(text)
    return parser


@needs_systemd
def test_minids_unit_is_in_order(tmp_path: Path) -> None:
    unit = tmp_path / "minid.service"
    text = text_of("systemd/minid.service")
    # Verified is also that the program is there.
    text = text.replace("/opt/trio-shim/bin/python", sys.executable)
    unit.write_text(text)
    assert verify(unit) == (0, "")
    unit.write_text(f"{text}[Service]\nKillMod=process\nRestart=allways\n")
    assert "KillMod" in verify(unit)[1]  # it was read


def test_minids_unit_ends_no_container_and_runs_what_is_there() -> None:
    told = settings(text_of("systemd/minid.service"))["Service"]
    assert told["KillMode"] == "process"
    _python, program, *arguments = told["ExecStart"].split()
    assert (EXAMPLES / program.rpartition("/")[2] / "__main__.py").exists()
    assert arguments == ["-c", "/etc/minid.yaml"]
    assert told["ExecReload"].split()[1:] == ["-HUP", "$MAINPID"]


@needs_systemd
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("docker/docker-20.10.conf", "trio-shim.conf"),
        ("systemd/containerd-forkserver.conf", "forkserver.conf"),
    ],
)
def test_a_drop_in_is_in_order(name: str, place: str, tmp_path: Path) -> None:
    unit = tmp_path / "containerd.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nDelegate=yes\nKillMode=process\n")
    dropin = tmp_path / "containerd.service.d" / place
    dropin.parent.mkdir()
    text = text_of(name).replace("/usr/local/bin/shimctl", "/bin/true")
    dropin.write_text(text)
    assert verify(unit) == (0, "")
    dropin.write_text(f"{text}ExecStartPost=no/absolute/path\n")
    assert verify(unit) != (0, "")  # it was read


def test_every_drop_in_says_where_it_goes() -> None:
    for name, place in {
        "docker/docker-20.10.conf": "trio-shim.conf",
        "systemd/containerd-forkserver.conf": "forkserver.conf",
    }.items():
        head = text_of(name).split("[Service]")[0]
        assert f"/etc/systemd/system/containerd.service.d/{place}" in head
        assert name.rpartition("/")[2] in head
