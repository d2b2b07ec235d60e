"""Adds this shim to the configuration of a manager, and removes it.

A plan shows what would change; :func:`check` has the manager's own program read the
result before it is written.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shim import names
from shim.errors import InvalidError
from shim.linux.modes import write_file
from shimctl.host.doctor import bounded
from shimctl.host.doctor.programs import find, version_in
from shimctl.host.setup import change, containerd, crio, docker, k3s
from shimctl.host.setup.change import Change, execute
from shimctl.host.setup.plan import Host, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from shimctl.host.setup.plan import Version

__all__ = ["MANAGERS", "Change", "Plan", "check", "execute", "make_plan"]

_MODULES = {"containerd": containerd, "docker": docker, "crio": crio, "k3s": k3s}
MANAGERS = tuple(_MODULES)
_INSTALL: dict[str, Callable[[Host], Plan]] = {n: m.install for n, m in _MODULES.items()}
_UNINSTALL: dict[str, Callable[[Host], Plan]] = {n: m.uninstall for n, m in _MODULES.items()}
# The program of a manager that prints its version.
_PROGRAMS = {"containerd": "containerd", "docker": "dockerd"}
_CHECK = 20.0  # s for a manager's check of its configuration


async def make_plan(
    manager: str, *, undo: bool = False, root: str = "/", systemd_cgroups: bool | None = None
) -> Plan:
    """Plan the addition of this shim to the configuration of ``manager``, or its removal.

    ``root`` is the directory below which files are read; below another root than ``/``
    no program is run, and the newest format is written.  ``systemd_cgroups`` is whether
    systemd makes the cgroups; None reads it from the manager's configuration.

    :raises InvalidError: a present file is invalid, or cannot be changed safely.
    :raises OSError: a file cannot be read.
    """
    host = Host(
        partial(change.read, root),
        _executable(root),
        await _versions(manager, root),
        systemd_cgroups,
    )
    return (_UNINSTALL if undo else _INSTALL)[manager](host)


def _executable(root: str) -> str:
    if root == "/":
        return find(names.EXECUTABLE)
    for directory in ("/usr/local/bin", "/usr/bin"):
        if os.path.exists(f"{root}{directory}/{names.EXECUTABLE}"):  # noqa: PTH110
            return f"{directory}/{names.EXECUTABLE}"
    return ""


async def _versions(manager: str, root: str) -> dict[str, Version]:
    program = _PROGRAMS.get(manager, "")
    path = find(program) if program and root == "/" else ""
    if not path:
        return {program: (2, 2)} if manager == "containerd" else {}
    version = version_in((await bounded.run([path, "--version"])).text)
    return {program: version} if version else {}


async def check(manager: str, plan: Plan) -> str:
    """Have the manager's program read the new file; return why that was not done, or "".

    :raises InvalidError: the program rejects the file.
    """
    program = _PROGRAMS.get(manager, "")
    after = plan.changes[0].after if plan.changes else None
    if not program or after is None:
        return ""
    if not (path := find(program)):
        return f"{program} is not installed, so the new file was not validated by it"
    with tempfile.TemporaryDirectory(prefix="shimctl-") as directory:
        file = Path(directory, Path(plan.changes[0].path).name)
        write_file(file, after)
        command = {
            "containerd": [path, "--config", str(file), "config", "dump"],
            "docker": [path, "--validate", "--config-file", str(file)],
        }[manager]
        done = await bounded.run(command, _CHECK)
    if done.exit_code:
        last = done.text.strip().rpartition("\n")[2]
        raise InvalidError(
            f"cannot change {plan.changes[0].path}: {program} rejects the result: {last}; "
            "nothing was changed"
        )
    return "" if done.exit_code == 0 else f"{program} did not validate the file in time"
