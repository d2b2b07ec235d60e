"""A container from an image, as `shimctl run` and `shimctl create` are asked for one."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import InvalidError, NotFoundError
from shimctl.cli.progress import open_progress
from shimctl.images import Overrides, Volume, is_reference, mounts_for, prepare
from shimctl.images.reference import hint_for
from shimctl.standalone import workdir

if TYPE_CHECKING:
    from argparse import Namespace

    from shimctl.standalone.run import Run

_FOR_IMAGES = (
    *("env", "workdir", "user", "entrypoint", "hostname", "volume", "memory", "cpus"),
    *("pids_limit", "read_only", "platform"),
)
_STOP_SIGNAL = "org.opencontainers.image.stopSignal"


async def with_image(args: Namespace, wanted: Run) -> Run:
    """Unpack the image that is asked for, and say so in ``wanted``; nothing for a bundle.

    :raises InvalidError: an argument makes no sense, or not with a bundle.
    :raises NotFoundError: there is neither a bundle nor an image of that name.
    """
    if not is_reference(args.bundle):
        if not Path(args.bundle).exists():
            hint = hint_for(args.bundle)
            raise NotFoundError(f"there is no bundle {args.bundle}; for an image {hint}")
        said = [name for name in _FOR_IMAGES if getattr(args, name) not in (None, "", 0, [])]
        if args.args or said or args.network != "none":
            what = f"--{said[0].replace('_', '-')}" if said else "a command, or --network,"
            raise InvalidError(f"{what} is for an image; a bundle has it in its config.json")
        return wanted
    overrides = overrides_of(args, wanted)
    with open_progress() as progress:
        image = await prepare(args.bundle, platform=args.platform, progress=progress)
    return replace(
        wanted,
        config=image.oci_config(user=args.user, overrides=overrides),
        rootfs=partial(mounts_for, image, hostname=overrides.hostname),
    )


def overrides_of(args: Namespace, wanted: Run) -> Overrides:
    """Return what :func:`add_image_options` was told."""
    entrypoint = args.entrypoint
    return Overrides(
        args=args.args[1:] if args.args[:1] == ["--"] else args.args,
        entrypoint=entrypoint if entrypoint is None else [entrypoint] if entrypoint else [],
        env=[variable for entry in args.env for variable in _variable(entry)],
        working_dir=args.workdir,
        # No longer than the kernel's, which is Linux's limit for a host name.
        hostname=args.hostname or wanted.container[:64],
        volumes=[volume_of(text) for text in args.volume],
        memory=args.memory,
        cpus=args.cpus,
        pids=args.pids_limit,
        read_only=args.read_only,
        network=args.network == "host",
        terminal=args.tty,
        cgroup=f"/shimctl.{wanted.namespace}.{wanted.container}",
    )


def volume_of(text: str) -> Volume:
    """Read ``SRC:DST[:ro|rw]``.

    :raises InvalidError: it is not that, or DST is not absolute.
    :raises NotFoundError: there is no SRC.
    """
    source, _, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    if not source or not destination.startswith("/") or mode not in ("", "ro", "rw"):
        raise InvalidError(f"{text!r} is no volume; say SRC:/DST or SRC:/DST:ro")
    path = Path(source).absolute()
    if not path.exists():
        raise NotFoundError(f"there is no {path} to show as a volume")
    return Volume(str(path), destination, read_only=mode == "ro")


def _variable(entry: str) -> list[str]:
    # A name alone is ours, if we have it: as docker's.
    if "=" in entry:
        return [entry]
    return [f"{entry}={os.environ[entry]}"] if entry in os.environ else []


def stop_signal(bundle: str) -> str:
    """Return what the image of the container in ``bundle`` wants for a TERM; empty if nothing."""
    try:
        annotations = workdir.read_config(Path(bundle)).get("annotations")
    except (InvalidError, NotFoundError):
        return ""
    found = annotations.get(_STOP_SIGNAL) if isinstance(annotations, dict) else None
    return found if isinstance(found, str) else ""
