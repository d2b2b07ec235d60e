"""The containerds there are: the machine's own, and those of other releases.

tests/managers/fetch.sh unpacks the others below .cache/managers.  Each version is used once, so
a machine with 1.7 installed does without the fetched 1.7.
SHIM_TEST_CONTAINERD_BIN, a directory, leaves only the one in it.

Each calls the shim the way it does.  The newest does so a second time through
``tests/e2e/modern.py``, the way of 2.3, of which there is no package yet.
A version before 2 calls pip's script, a newer one the native launcher.

A run takes the oldest release, the newest, and the newest as 2.3.
``TRIO_SHIM_TEST_MANAGERS=all`` takes every release (``tests/run.sh --all-managers``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests import nativelauncher
from tests.e2e.ctr import RUNTIME
from tests.e2e.image import BUSYBOX

if TYPE_CHECKING:
    from collections.abc import Sequence

_Found = TypeVar("_Found")

OURS = "io.containerd.trio.v2"
EXECUTABLE = "containerd-shim-trio-v2"
FETCHED = Path(__file__).parent.parent.parent / ".cache/managers"
_GIVEN = os.environ.get("SHIM_TEST_CONTAINERD_BIN")


@dataclass(frozen=True)
class Manager:
    directory: Path | None  # where containerd and ctr are; None is PATH
    version: tuple[int, ...]  # empty when it is not there
    modern: bool = False  # calls the shim through tests/e2e/modern.py
    native: bool = False  # calls the native launcher, and not pip's script

    def __str__(self) -> str:
        """Name it as a test's id does: 1.6, 1.7, 2."""
        if not self.version:
            return f"containerd-of-{self.directory}"
        shown = self.version[: 2 if self.version < (2,) else 1]
        return "containerd-" + ".".join(map(str, shown)) + ("-modern" if self.modern else "")

    @property
    def name(self) -> str:
        name = "containerd " + ".".join(map(str, self.version))
        return f"{name} as 2.3" if self.modern else name

    @property
    def there(self) -> bool:
        return bool(self.version)

    @property
    def path(self) -> list[str]:
        """Return the directories to put before PATH."""
        return [str(self.directory)] if self.directory else []

    @property
    def launcher(self) -> Path:
        """Return the shim's executable that this containerd calls."""
        directory = nativelauncher.directory() if self.native else Path(sys.executable).parent
        return directory / EXECUTABLE

    def tool(self, name: str) -> str:
        """Return the command that runs this containerd's ``name``."""
        return str(self.directory / name) if self.directory else name


def find(directory: Path | None) -> Manager:
    manager = Manager(directory, ())
    try:
        said = subprocess.run(
            [manager.tool("containerd"), "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return manager
    # containerd REPOSITORY [v]VERSION[~SUFFIX] REVISION
    match = re.search(r"\sv?(\d+)\.(\d+)\.(\d+)", said)
    assert match is not None, f"no version in {said!r}"
    version = tuple(int(number) for number in match.groups())
    return Manager(directory, version, native=version >= (2,))


def find_all() -> list[Manager]:
    given = (
        [Path(_GIVEN)] if _GIVEN else [None, FETCHED / "trixie/usr/bin", FETCHED / "sid/usr/bin"]
    )
    found: dict[str, Manager] = {}
    for directory in given:
        manager = find(directory)
        found.setdefault(str(manager), manager)
    newest = max(found.values(), key=lambda manager: manager.version)
    if newest.version >= (2,) and RUNTIME == OURS:
        found["modern"] = replace(newest, modern=True)
    return list(found.values())


def oldest_and_newest(found: Sequence[_Found]) -> list[_Found]:
    """Choose the first and the last of ``found``, which is sorted from old to new."""
    return list(found) if ALL else [*found[:1], *found[1:][-1:]]


def choose() -> list[Manager]:
    found = find_all()
    plain = sorted((m for m in found if not m.modern), key=lambda manager: manager.version)
    return oldest_and_newest(plain) + [m for m in found if m.modern]


ALL = os.environ.get("TRIO_SHIM_TEST_MANAGERS") == "all"
MANAGERS = choose()


def skip_without(manager: Manager) -> None:
    """Skip where ``manager`` was not fetched, or where it cannot run containers."""
    if not manager.there:
        pytest.skip(f"tests/managers/fetch.sh has not fetched {manager.directory}")
    tools = [manager.tool("containerd"), manager.tool("ctr"), "runc"]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing or not BUSYBOX.exists():
        pytest.skip(f"needs root, busybox, containerd and runc; missing: {missing}")
