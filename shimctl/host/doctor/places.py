"""Checks the owners and modes of the directories that shims and shimctl use.

A directory that another user may write to is refused by the shim and by shimctl, see
:mod:`shim.linux.modes`; this check makes no directory.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import partial

from shim import hostfile
from shim.errors import InvalidError
from shim.linux import modes, sockets
from shim.start import identity
from shim.text import explain
from shimctl import directories
from shimctl.host.doctor.finding import Finding, Level

_AREA = "directories"


def check() -> list[Finding]:
    """Check every directory of this project that exists."""
    wanted = {
        "sockets of the shims": sockets.SOCKET_DIR,
        "containers of shimctl": str(directories.state_directory()),
        "sockets of the fork servers": identity.directory(),
        "images": os.environ.get("SHIMCTL_IMAGES") or "/var/lib/trio-shim/images",
    }
    with suppress(InvalidError):  # the check of the configuration reports it
        wanted["spooled output"] = hostfile.read_output(os.environ).directory
    return [judge(path, purpose) for purpose, path in wanted.items()]


def judge(path: str, purpose: str) -> Finding:
    """Judge one directory; one that does not exist is made at the first use."""
    made = partial(Finding, _AREA, path)
    try:
        modes.check_trusted(path)
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return made(Level.OK, f"{purpose}; does not exist yet")
    except InvalidError as exc:
        text, _, remedy = str(exc).rpartition(": ")
        return made(Level.BROKEN, f"{purpose}; {text}", remedy)
    except OSError as exc:
        remedy = "run `shimctl doctor` as root"
        return made(Level.ADVICE, f"{purpose}; cannot be checked: {explain(exc)}", remedy)
    mode = stat.S_IMODE(found.st_mode)
    return made(Level.OK, f"{purpose}; owner {found.st_uid}:{found.st_gid}, mode {mode:04o}")
