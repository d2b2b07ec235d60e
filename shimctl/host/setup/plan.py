"""Plans the change of a manager's configuration that adds a runtime of this shim, or removes it.

No plan changes a file.  A present file that is invalid, or that has another runtime of
the same name, is refused: the manager must not fail at its next start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shim import names
from shim.errors import InvalidError
from shimctl.host import managerfiles
from shimctl.host.setup.change import Change

HANDLER = "trio"  # the name of the runtime
_OPTIONS_HEAD = "# How the shim runs the OCI runtime, written by `shimctl install`.\n"

Read = Callable[[str], str | None]
Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """The facts of the host that a plan depends on.

    ``read`` returns the text of a file, None if it does not exist.  ``executable`` is the
    path of the shim, empty if it is not installed.  ``versions`` are those of the programs
    that are installed.  ``systemd_cgroups`` is whether systemd makes the cgroups of
    containers; None means that the manager's own configuration decides.
    """

    read: Read
    executable: str = ""
    versions: Mapping[str, Version] = field(default_factory=dict)
    systemd_cgroups: bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes, remarks on them, and the command that makes them effective.

    The first change is that of the manager's own file.
    """

    changes: tuple[Change, ...]
    remarks: tuple[str, ...] = ()
    restart: str = ""


def refusal(path: str, reason: str, remedy: str) -> InvalidError:
    """Return the error for a file that cannot be changed."""
    return InvalidError(f"cannot change {path}: {reason}; {remedy}")


def options_change(host: Host, *, systemd: bool) -> tuple[Change, list[str]]:
    """Return the change of the options file, and a remark if it contradicts ``systemd``."""
    text = host.read(managerfiles.OPTIONS)
    wanted = options_text(systemd=systemd)
    if text is None:
        return Change(managerfiles.OPTIONS, None, wanted), []
    remarks = []
    if text != wanted:
        remarks = [f"{managerfiles.OPTIONS} exists and stays; check its SystemdCgroup"]
    return Change(managerfiles.OPTIONS, text, text), remarks


def options_text(*, systemd: bool) -> str:
    """Return the content of the options file that an installation writes."""
    return f"{_OPTIONS_HEAD}SystemdCgroup = {str(systemd).lower()}\n"


def options_removal(host: Host, changes: list[Change]) -> list[Change]:
    """Return the removal of the options file, if we wrote it and no manager names it."""
    text = host.read(managerfiles.OPTIONS)
    if text is None or text not in (options_text(systemd=True), options_text(systemd=False)):
        return []
    after = {change.path: change.after for change in changes}
    for path in (
        managerfiles.CONTAINERD,
        managerfiles.CONTAINERD_DROPIN,
        managerfiles.DOCKER,
        managerfiles.CRIO,
        managerfiles.CRIO_DROPIN,
    ):
        if managerfiles.OPTIONS in ((after[path] if path in after else host.read(path)) or ""):
            return []
    return [Change(managerfiles.OPTIONS, text, None)]


def is_ours(entry: object) -> bool:
    """Return whether a runtime in parsed TOML is this shim."""
    kind = managerfiles.table(entry).get("runtime_type")
    path = str(managerfiles.table(entry).get("runtime_path") or "")
    return kind == names.RUNTIME or path.rpartition("/")[2] == names.EXECUTABLE
