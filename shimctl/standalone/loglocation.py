"""Find the log file of a container of any manager.

A container of ``shimctl`` has its log in its own directory.  The other managers do not
pass the log's path to the shim, but its place follows from the bundle's config.json:

- CRI-O: the annotation ``io.kubernetes.cri-o.LogPath``.
- containerd's CRI plugin: the pod's directory of logs is an annotation of the sandbox,
  whose bundle lies beside the container's.  Without it, kubelet's layout is assumed.
- nerdctl: ``ID-json.log`` in the directory of the annotation ``nerdctl/state-dir``.
- Docker: ``ID-json.log`` in the directory from which /etc/hostname is mounted.

Source: containerd internal/cri/annotations; kubelet's pod log directory; cri-o
internal/annotations; nerdctl pkg/labels and pkg/logging/jsonfile; moby
daemon/container/container.go.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.errors import NotFoundError, ShimError
from shim.outputaddress import parse_address
from shimctl.directories import listed
from shimctl.listing.manager import Manager, show_log
from shimctl.standalone.detached import log_in
from shimctl.standalone.logs import RAW
from shimctl.standalone.workdir import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimctl.discover import Found
    from shimctl.values import Stdio

_CRI = "io.kubernetes.cri."
_CRIO = "io.kubernetes.cri-o."
_PODS = "/var/log/pods"


@dataclass(frozen=True, slots=True)
class Located:
    """A log file and its format: ``cri``, ``json`` or ``raw``.  The file need not exist."""

    path: Path
    form: str


def own_log(found: Found) -> Located | None:
    """Return the log that ``shimctl run -d`` keeps; None for another container, or without."""
    if not found.managed:
        return None
    own = log_in(Path(found.bundle))
    if own.is_symlink():
        return Located(own.readlink(), RAW)
    return Located(own, "cri") if own.exists() else None


def locate(found: Found, stdio: Stdio) -> Located:
    """Return the log of a container whose stdio the shim reports as ``stdio``.

    :raises NotFoundError: it has none that can be found; the message names the command that
        shows its output, if there is one.
    """
    if own := own_log(found):
        return own
    address = parse_address(stdio.stdout)
    if address.scheme == "file":
        return Located(Path(address.path), RAW)
    if found.managed:
        if address.scheme == "binary":
            return Located(log_in(Path(found.bundle)), "cri")  # nothing is written yet
        where = "goes to /dev/null" if not stdio.stdout else "goes to its reader, not to a file"
        raise NotFoundError(
            f"{found.id} has no log: its output {where}; `shimctl attach {found.id}` reads it"
        )
    bundle = Path(found.bundle)
    try:
        config = read_config(bundle)
    except ShimError:
        config = {}
    return locate_foreign(found.namespace, found.id, bundle, config, stdio)


def locate_foreign(
    namespace: str, container: str, bundle: Path, config: Mapping[str, Any], stdio: Stdio
) -> Located:
    """Return the log of another manager's container.

    :raises NotFoundError: as :func:`locate`.
    """
    notes = _texts(config.get("annotations"))
    where = "no log file was found at the places where its manager keeps logs"
    if f"{_CRIO}ContainerType" in notes or f"{_CRI}container-type" in notes:
        if "sandbox" in (
            notes.get(f"{_CRI}container-type"),
            notes.get(f"{_CRIO}ContainerType"),
        ):
            raise NotFoundError(f"{container} has no log: it is the sandbox of a pod")
        path, command = _cri_log(bundle, notes), show_log(Manager.KUBERNETES, namespace, container)
        form = "cri"
    elif "nerdctl/state-dir" in notes:
        path, driver = _nerdctl_log(container, Path(notes["nerdctl/state-dir"]))
        where = where if driver == "json-file" else f"its log driver is {driver}"
        command, form = show_log(Manager.NERDCTL, namespace, container), "json"
    elif namespace == "moby":
        path = _docker_log(container, config)
        command, form = show_log(Manager.DOCKER, namespace, container), "json"
    elif not stdio.stdout:
        raise NotFoundError(f"{container} has no log: its output goes to /dev/null")
    else:
        raise NotFoundError(
            f"{container} has no log: its output goes to {_target(stdio.stdout)}; "
            "the program that reads it has the output"
        )
    if path is None:
        raise NotFoundError(f"cannot show the log of {container}: {where}; see `{command}`")
    return Located(path, form)


def _target(stdout: str) -> str:
    """Describe where a stdout address leads."""
    address = parse_address(stdout)
    if address.scheme == "path":
        return f"the fifo {address.path}"
    return "a logging program"


def _cri_log(bundle: Path, notes: Mapping[str, str]) -> Path | None:
    if path := notes.get(f"{_CRIO}LogPath"):
        return Path(path)
    name = notes.get(f"{_CRI}container-name", "")
    if not name:
        return None
    try:
        sandbox = read_config(bundle.parent / notes.get(f"{_CRI}sandbox-id", "."))
    except ShimError:
        sandbox = {}  # the sandbox has ended
    directory = _texts(sandbox.get("annotations")).get(f"{_CRI}sandbox-log-directory")
    if not directory:
        pod = [notes.get(f"{_CRI}sandbox-{part}", "") for part in ("namespace", "name", "uid")]
        directory = f"{_PODS}/{'_'.join(pod)}"
    return _newest(Path(directory), name)


def _newest(directory: Path, name: str) -> Path | None:
    """Return the log of the last attempt: ``NAME/0.log`` as of a kubelet, or ``NAME-0.log``."""
    pattern = re.compile(rf"{re.escape(name)}(?:[/._-](\d+))?\.log")
    paths = [*listed(directory, "*.log"), *listed(directory, "*/*.log")]
    found = [
        (int(match[1] or 0), path)
        for path in paths
        if (match := pattern.fullmatch(str(path.relative_to(directory))))
    ]
    return max(found)[1] if found else None


def _nerdctl_log(container: str, state: Path) -> tuple[Path | None, str]:
    """Return the path, or None and the name of the log driver that keeps no such file."""
    try:
        settings = json.loads((state / "log-config.json").read_bytes())
        driver = str(settings.get("driver") or "json-file")
        path = Path((settings.get("opts") or {}).get("log-path") or "")
    except (OSError, ValueError, AttributeError, TypeError):
        driver, path = "json-file", Path()
    if driver != "json-file":
        return None, driver
    path = path if path.is_absolute() else state / f"{container}-json.log"
    return (path if path.exists() else None), driver


def _docker_log(container: str, config: Mapping[str, Any]) -> Path | None:
    mounts = config.get("mounts")
    for mount in mounts if isinstance(mounts, list) else []:
        if isinstance(mount, dict) and mount.get("destination") in (
            "/etc/hostname",
            "/etc/hosts",
            "/etc/resolv.conf",
        ):
            path = Path(str(mount.get("source"))).parent / f"{container}-json.log"
            if path.exists():
                return path
    path = Path(f"/var/lib/docker/containers/{container}/{container}-json.log")
    return path if path.exists() else None


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)}
