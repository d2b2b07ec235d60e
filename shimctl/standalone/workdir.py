"""The private working directory of a container that ``shimctl run`` started.

A shim writes into its bundle, so it never gets the user's bundle.  It gets the
directory ``<state>/<namespace>/<id>`` with a copy of config.json in which every
path into the user's bundle is absolute.  The fifos are in that directory, too.

Source: OCI runtime specification, config.md ("Root", "Mounts") for which paths
are relative to the bundle; containerd pkg/identifiers for the ids.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shim import jsontext, names
from shim.errors import ExistsError, InvalidError, NotFoundError
from shim.jsontext import as_runc_reads
from shim.linux.modes import make_directory, make_trusted, write_file
from shim.linux.removal import remove_tree
from shimctl import directories
from shimctl.images.store import release

if TYPE_CHECKING:
    from pathlib import Path


def state_directory() -> Path:
    """Return the directory of our containers: SHIMCTL_STATE, or /run/trio-shim."""
    return directories.state_directory()


def events_socket() -> Path:
    """Return the socket to which the shims that we launch send their events."""
    return directories.events_socket()


def check_id(text: str, what: str = "id") -> str:
    """Return ``text`` if containerd accepts it as an id or a namespace.

    :raises InvalidError: containerd does not accept it.
    """
    if names.is_id(text):
        return text
    raise InvalidError(
        f"{text!r} is not a valid {what}; use up to {names.ID_MAX} letters and digits, "
        "with single '.', '_' or '-' between them"
    )


def new_id(bundle: Path) -> str:
    """Generate an id that begins with the name of the bundle."""
    words = "-".join(re.findall(r"[A-Za-z0-9]+", bundle.name))
    return f"{words[:40].strip('-') or 'c'}-{secrets.token_hex(3)}"


def read_config(bundle: Path) -> dict[str, Any]:
    """Read the bundle's config.json.

    :raises NotFoundError: there is no such bundle, or it has no config.json.
    :raises InvalidError: it is not a JSON object.
    """
    path = bundle / "config.json"
    try:
        config = jsontext.loads(path.read_bytes())
    except FileNotFoundError:
        if not bundle.is_dir():
            raise NotFoundError(f"there is no bundle {bundle}") from None
        raise NotFoundError(f"{path} is missing; `runc spec` writes one") from None
    except OSError as exc:
        raise NotFoundError(f"cannot read {path}: {exc.strerror}") from None
    except ValueError as exc:
        raise InvalidError(f"{path} is not valid JSON: {exc}") from None
    if not isinstance(config, dict):
        raise InvalidError(f"{path} must hold a JSON object")
    return config


def absolute_paths(config: dict[str, Any], bundle: Path) -> dict[str, Any]:
    """Return ``config`` with every path that is relative to ``bundle`` made absolute.

    :raises InvalidError: the root or a mount does not follow the specification.
    """
    root = config.get("root")
    if not isinstance(root, dict) or not isinstance(root.get("path"), str):
        raise InvalidError(f"{bundle / 'config.json'} has no root.path")
    if "\0" in root["path"] or as_runc_reads(str(bundle)) != str(bundle):
        raise InvalidError(f"the root of {str(bundle)!r} has no path that is UTF-8; rename it")
    changed = config | {"root": root | {"path": str(bundle / root["path"])}}
    mounts = config.get("mounts") or []
    try:
        changed["mounts"] = [_absolute_mount(mount, bundle) for mount in mounts]
    except (AttributeError, TypeError):
        raise InvalidError(f"{bundle / 'config.json'}: mounts must be a list of objects") from None
    return changed


def _absolute_mount(mount: dict[str, Any], bundle: Path) -> dict[str, Any]:
    bind = mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ())
    if bind and mount.get("source"):
        return mount | {"source": str(bundle / mount["source"])}
    return mount


def make(config: dict[str, Any], namespace: str, container: str) -> Path:
    """Create the working directory and write ``config`` into it; return its path.

    :raises ExistsError: a directory of this id exists.
    """
    state = state_directory()
    make_trusted(str(state))
    path = state / namespace / container
    make_directory(path.parent, exist_ok=True)
    try:
        make_directory(path)
    except FileExistsError:
        raise ExistsError(
            f"{container} is already in namespace {namespace}; "
            f"`shimctl delete -f {container}` removes it"
        ) from None
    write_file(path / "config.json", jsontext.dumps(config))
    make_directory(path / "work")  # some shims use it for criu and do not create it
    return path


def remove(path: Path) -> None:
    """Remove a working directory, and the namespace's directory once it is empty.

    :raises WrongStateError: a file system is mounted inside.
    """
    release(path)
    remove_tree(path)
    with suppress(OSError):  # the namespace has other containers
        path.parent.rmdir()
