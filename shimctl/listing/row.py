"""One container in a list, and the words for its state.

Source: docker's container states and daemon/container/state.go, for the wording.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from shimctl import units
from shimctl.discover import Health
from shimctl.listing.origin import Origin
from shimctl.values import Status

if TYPE_CHECKING:
    from datetime import datetime

    from shimctl.discover import Found

SHORT = 12  # characters of a hexadecimal id, as docker shortens it
_FULL = 64  # digits of an id that docker, nerdctl, CRI-O and the CRI plugin generate
_WORDS = {
    Status.RUNNING: "running",
    Status.PAUSED: "paused",
    Status.PAUSING: "paused",
    Status.CREATED: "created",
    Status.STOPPED: "exited",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A container: its shim, and the facts in its bundle.  An unknown time is None.

    ``created_at`` is the time when the bundle was written, ``started_at`` that of the
    start of the init process.  ``runtime`` is containerd's name of the shim.
    """

    found: Found
    origin: Origin = field(default_factory=Origin)
    command: tuple[str, ...] = ()
    created_at: datetime | None = None
    started_at: datetime | None = None
    runtime: str = ""

    @property
    def name(self) -> str:
        """The name that the manager gave; otherwise the id."""
        return self.origin.name or self.found.id

    @property
    def id(self) -> str:
        """The id, shortened as docker does if it is a generated one."""
        return short_id(self.found.id)

    @property
    def state(self) -> str:
        """The state in docker's words: running, paused, created, exited or dead.

        It is ``silent`` if the shim does not answer, ``foreign`` if it is none, and
        ``unknown`` if the shim does not know the container.
        """
        if self.found.exited is not None:
            return "exited"
        match self.found.health:
            case Health.UP:
                return _WORDS.get(self.found.status, "unknown")
            case Health.SILENT:
                return "silent"
            case Health.FOREIGN:
                return "foreign"
        return "dead"

    @property
    def exit_status(self) -> int | None:
        """The exit status, None if the container runs or the status is unknown."""
        exited = self.found.exited
        return None if exited is None or exited.reason else exited.exit_status

    def status(self, now: datetime) -> str:
        """Return the state and its duration: ``Up 3 minutes``, ``Exited (137) 2 hours ago``."""
        found = self.found
        if found.exited is not None:
            code = "?" if self.exit_status is None else self.exit_status
            ended = units.age(found.exited.exited_at, now)
            text = f"Exited ({code}) {ended}".rstrip()
            if found.health is not Health.UP:
                text += ", shim silent" if found.health is Health.SILENT else ", no shim"
            return text
        match self.state:
            case "running" | "paused" as word:
                up = "Up"
                if self.started_at:
                    up += f" {units.duration((now - self.started_at).total_seconds())}"
                return f"{up} (Paused)" if word == "paused" else up
            case "foreign":
                return "Not a shim"
        return self.state.capitalize()

    def values(self) -> dict[str, Any]:
        """Return the fields for JSON and YAML: those of ``found``, and the others."""
        return asdict(self.found) | {
            "name": self.origin.name or None,
            "image": self.origin.image or None,
            "command": list(self.command),
            "created_at": self.created_at,
            "started_at": self.started_at,
            "state": self.state,
            "runtime": self.runtime or None,
            "pod": self.origin.pod or None,
            "pod_namespace": self.origin.pod_namespace or None,
            "pod_id": self.origin.pod_id or None,
            "labels": dict(self.origin.labels),
        }


def short_id(text: str) -> str:
    """Return the first twelve digits of a generated id; any other id is a name and stays."""
    generated = len(text) == _FULL and all(char in "0123456789abcdef" for char in text)
    return text[:SHORT] if generated else text
