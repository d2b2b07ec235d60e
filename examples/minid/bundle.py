"""The directory of one generation: its own copy of the bundle, and its fifos.

Whoever finds one that is whole can go on from there.

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

# What the shim does with output nobody reads: without this the container would wait for us.
_OUTPUT = "io.trio-shim.output"
_WHOLE = "mounts.json"  # is written last
_PERIOD = 100_000  # us, of the CPU quota


async def make(home: Path, spec: Spec, cgroup: str) -> None:
    """Make the directory ``home`` for a container of ``spec`` in ``cgroup``.

    :raises ShimError: the bundle or the image is not what it should be.
    """
    remove(home)  # what somebody made half of
    home.mkdir(mode=0o700)
    mounts: list[Mount] = []
    if spec.bundle is not None:
        config = _read(spec.bundle, spec.command)
    else:
        image = await images.prepare(spec.image)
        config = image.oci_config(spec.command, terminal=spec.tty)
        mounts = await trio.to_thread.run_sync(images.mounts_for, image, home)
    _apply(config, spec)
    # Whatever the bundle says: two containers of one bundle are not to share it.
    config["linux"]["cgroupsPath"] = cgroup
    (home / "config.json").write_text(json.dumps(config))
    for name in ("stdout",) if spec.tty else ("stdout", "stderr"):
        os.mkfifo(home / name, 0o600)
    described = [(one.type, one.source, one.target, list(one.options)) for one in mounts]
    write_json(home / _WHOLE, described)


def is_whole(home: Path) -> bool:
    return (home / _WHOLE).exists()


def mounts_in(home: Path) -> list[Mount]:
    """Return the mounts that make the rootfs; a bundle has none."""
    described = json.loads((home / _WHOLE).read_bytes())
    return [Mount(type=a, source=b, target=c, options=d) for a, b, c, d in described]


def _read(bundle: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """Read a bundle's config.json; what is relative to the bundle becomes absolute."""
    path = bundle / "config.json"
    try:
        # A byte that is no UTF-8 is U+FFFD to the runtime, and so is what is written for it.
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
        raise InvalidError(f"{path} is no OCI configuration with a process and a root") from None
    if not Path(root["path"]).is_dir():
        raise NotFoundError(f"the root {root['path']} is no directory")
    return dict(config)


def _apply(config: dict[str, Any], spec: Spec) -> None:
    """Change ``config`` as ``spec`` says."""
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
    """Remove a generation's directory, and what it wrote over its image.

    :raises WrongStateError: something is mounted in it, and would be removed too.
    """
    images.release(home)
    remove_tree(home)
