"""The directory of one generation: its copy of config.json, and its fifos.

:func:`is_complete` is true once the directory is complete, so that minid can use it
after a crash.

Source: OCI runtime specification, config.md and config-linux.md.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from minid.ledger import write_json
from shimctl import InvalidError, Mount, NotFoundError, images, remove_tree

if TYPE_CHECKING:
    from minid.config import Spec

# The policy for output that is not read.  Without this annotation the container would
# block while minid is not running.
_OUTPUT = "io.trio-shim.output"
_LAST_FILE = "mounts.json"  # is written last
_PERIOD = 100_000  # us, of the CPU quota


async def make(home: Path, spec: Spec, cgroup: str) -> None:
    """Make the directory ``home`` for a container of ``spec`` in ``cgroup``.

    :raises ShimError: the bundle or the image is missing or invalid.
    :raises OSError: a file cannot be written.
    """
    remove(home)  # an incomplete directory of an earlier attempt
    home.mkdir(mode=0o700)
    mounts: list[Mount] = []
    if spec.bundle is not None:
        config = _read(spec.bundle, spec.command)
    else:
        image = await images.prepare(spec.image)
        config = image.oci_config(spec.command, terminal=spec.tty)
        mounts = await trio.to_thread.run_sync(images.mounts_for, image, home)
    _apply(config, spec)
    # Replaces the bundle's value: two containers of one bundle must not share a cgroup.
    config["linux"]["cgroupsPath"] = cgroup
    (home / "config.json").write_text(json.dumps(config))
    for name in ("stdout",) if spec.tty else ("stdout", "stderr"):
        os.mkfifo(home / name, 0o600)
    described = [(one.type, one.source, one.target, list(one.options)) for one in mounts]
    write_json(home / _LAST_FILE, described)


def is_complete(home: Path) -> bool:
    """Return whether :func:`make` has made all of the directory."""
    return (home / _LAST_FILE).exists()


def mounts_in(home: Path) -> list[Mount]:
    """Return the mounts of the rootfs; the list is empty for a bundle."""
    described = json.loads((home / _LAST_FILE).read_bytes())
    return [Mount(type=a, source=b, target=c, options=d) for a, b, c, d in described]


def _read(bundle: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """Return a bundle's config.json with absolute paths.

    :raises NotFoundError: the file or the root directory does not exist.
    :raises InvalidError: the file is not an OCI configuration.
    """
    path = bundle / "config.json"
    try:
        # The runtime reads a byte that is not UTF-8 as U+FFFD.  It reads the escape that is
        # written for such a byte as U+FFFD, too.
        config = json.loads(path.read_bytes().decode(errors="surrogateescape"))
        root, process = config["root"], config["process"]
        root["path"] = str(bundle / root["path"])
        for mount in config.get("mounts") or ():
            if mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ()):
                mount["source"] = str(bundle / mount["source"])
        process["args"] = list(command or process.get("args") or ())
    except OSError as exc:
        raise NotFoundError(f"cannot read {path}: {exc.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidError(
            f"{path} is not an OCI configuration with a process and a root"
        ) from None
    if not Path(root["path"]).is_dir():
        raise NotFoundError(f"the root {root['path']} is not a directory")
    return dict(config)


def _apply(config: dict[str, Any], spec: Spec) -> None:
    """Apply the settings of ``spec`` to ``config``."""
    process = config["process"]
    process["terminal"] = spec.tty
    names = dict(spec.environment)
    kept = [old for old in process.get("env") or () if old.partition("=")[0] not in names]
    process["env"] = [*kept, *(f"{name}={value}" for name, value in spec.environment)]
    mounts = config["mounts"] = list(config.get("mounts") or ())
    for one in spec.mounts:
        options = ["rbind", "ro" if one.readonly else "rw"]
        mounts.append(
            {"destination": one.target, "type": "bind", "source": one.source, "options": options}
        )
    resources = config.setdefault("linux", {}).setdefault("resources", {})
    limits = spec.limits
    if limits.memory is not None:
        resources["memory"] = {"limit": limits.memory}
    if limits.cpus is not None:
        resources["cpu"] = {"quota": round(limits.cpus * _PERIOD), "period": _PERIOD}
    if limits.pids is not None:
        resources["pids"] = {"limit": limits.pids}
    config["annotations"] = {_OUTPUT: "spool"} | (config.get("annotations") or {})


def remove(home: Path) -> None:
    """Remove a generation's directory, and the files that it wrote above its image.

    :raises WrongStateError: something is mounted in the directory; removing it would
        remove the mounted files.
    """
    images.release(home)
    remove_tree(home)
