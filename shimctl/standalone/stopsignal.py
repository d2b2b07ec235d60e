"""Find the stop signal of a container, and the time from it until SIGKILL.

The image or the user sets both, and each manager records them in another place:

- an annotation in the bundle: ``shimctl run``, CRI-O, and buildah's and umoci's bundles;
- ``config.v2.json``: Docker;
- the container's record in containerd: ``ctr``, nerdctl and the CRI plugin;
- an annotation of nerdctl, for the time.

Source: OCI image specification, conversion.md, "Annotation Fields"; moby
daemon/container/container.go (StopSignal, StopTimeout); nerdctl pkg/labels.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import jsontext
from shim.linux.files import read_whole
from shimctl.listing.origin import docker_file

_CONFIG = 64 << 20  # the most bytes of a file that are read
_ANNOTATION = "org.opencontainers.image.stopSignal"
_OF_NERDCTL = "nerdctl/stop-timeout"


@dataclass(frozen=True, slots=True)
class Stopping:
    """``signal`` is a name or a number, empty if none was chosen.

    ``grace`` is in seconds, None if none was chosen, and infinite for no SIGKILL.
    """

    signal: str = ""
    grace: float | None = None


async def stopping_of(bundle: str | Path, namespace: str, container: str) -> Stopping:
    """Return how to stop the container in ``bundle``; a value that cannot be read is absent."""
    found = in_files(Path(bundle))
    if found.signal:
        return found
    from shimctl.standalone.containerdrecords import read_record, stop_signal_in  # late: slow

    record = await read_record(Path(bundle), namespace, container)
    return Stopping(stop_signal_in(record), found.grace) if record else found


def in_files(bundle: Path) -> Stopping:
    """Return the values in the bundle and in Docker's file about the container."""
    config = _read_object(str(bundle / "config.json"))
    annotations = _mapping(config.get("annotations"))
    signal = _text(annotations.get(_ANNOTATION))
    grace = None
    with suppress(ValueError):
        grace = _grace(int(_text(annotations.get(_OF_NERDCTL))))
    if path := docker_file(config):
        made = _mapping(_read_object(path).get("Config"))
        signal = signal or _text(made.get("StopSignal"))
        if type(seconds := made.get("StopTimeout")) is int:
            grace = _grace(seconds)
    return Stopping(signal, grace)


def _grace(seconds: int) -> float:
    return float(seconds) if seconds >= 0 else float("inf")


def _read_object(path: str) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        return _mapping(jsontext.loads(read_whole(path, _CONFIG)))
    return {}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
