"""The private working directory of a container that ``shimctl run`` started.

A shim writes into its bundle, so it never gets the user's bundle.  It gets the
directory ``<state>/<namespace>/<id>`` with a copy of config.json in which every
path into the user's bundle is absolute.  The fifos are in that directory, too.

Source: OCI runtime specification, config.md ("Root", "Mounts") for which paths
are relative to the bundle.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from shim import jsontext
from shim.errors import ExistsError, InvalidError, NotFoundError, WrongStateError
from shim.jsontext import as_runc_reads
from shim.linux.modes import make_directory, make_trusted, write_file
from shim.linux.removal import remove_tree
from shimctl import directories
from shimctl.bundles import read_config as read_config
from shimctl.checks import check_id as check_id


def state_directory() -> Path:
    """Return the directory of our containers: SHIMCTL_STATE, or /run/trio-shim."""
    return directories.state_directory()


def events_socket() -> Path:
    """Return the socket to which the shims that we launch send their events."""
    return directories.events_socket()


def new_id(bundle: Path) -> str:
    """Generate an id that begins with the name of the bundle."""
    words = "-".join(re.findall(r"[A-Za-z0-9]+", bundle.name))
    return f"{words[:40].strip('-') or 'c'}-{secrets.token_hex(3)}"


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


def config_of(bundle: Path) -> dict[str, Any]:
    """Return the config.json of a user's bundle, with absolute paths.

    :raises NotFoundError: there is no such bundle, or no root in it.
    :raises InvalidError: the file does not follow the specification.
    """
    config = absolute_paths(read_config(bundle), bundle)
    if not isinstance(config.get("process"), dict):
        raise InvalidError(f"{bundle / 'config.json'} has no process to run")
    root = as_runc_reads(config["root"]["path"])
    if not Path(root).is_dir():
        raise NotFoundError(f"the bundle's root {root} is not a directory")
    return config


def path_of(namespace: str, container: str) -> Path:
    """Return the working directory of a container."""
    return state_directory() / namespace / container


def make(config: dict[str, Any], namespace: str, container: str) -> Path:
    """Create the working directory and write ``config`` into it; return its path.

    :raises ExistsError: a directory of this id exists.
    """
    make_trusted(str(state_directory()))
    path = path_of(namespace, container)
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

    :raises WrongStateError: a file system is mounted inside, or a file cannot be removed.
    """
    from shimctl.images.store import release  # late: it loads trio

    release(path)
    try:
        removed = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(path)
        # Another command may already have made the directory of a new container here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(removed), path.lstat()):
                stays = next(path.iterdir(), path)
                raise WrongStateError(
                    f"cannot remove {stays}: remove it, or end the process that "
                    "creates it, then try again"
                )
    finally:
        os.close(removed)
    with suppress(OSError):  # the namespace has other containers
        path.parent.rmdir()
