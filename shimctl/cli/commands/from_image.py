"""Prepare the image that the arguments of `shimctl run` or `shimctl create` name."""

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
    """Unpack the image that ``args`` names; return ``wanted`` with its config and rootfs.

    For a bundle, return ``wanted`` unchanged.

    :raises InvalidError: an argument is invalid, or needs an image but BUNDLE is a bundle.
    :raises NotFoundError: there is neither a bundle nor an image of that name.
    """
    if not is_reference(args.bundle):
        if not Path(args.bundle).exists():
            hint = hint_for(args.bundle)
            raise NotFoundError(f"there is no bundle {args.bundle}; for an image {hint}")
        given = [name for name in _FOR_IMAGES if getattr(args, name) not in (None, "", 0, [])]
        if args.args or given or args.network != "none":
            what = f"--{given[0].replace('_', '-')}" if given else "a command, or --network,"
            raise InvalidError(f"{what} needs an image; for a bundle, change its config.json")
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
    """Return the overrides in the arguments that :func:`add_image_options` declares."""
    entrypoint = args.entrypoint
    return Overrides(
        args=args.args[1:] if args.args[:1] == ["--"] else args.args,
        entrypoint=entrypoint if entrypoint is None else [entrypoint] if entrypoint else [],
        env=[variable for entry in args.env for variable in _variable(entry)],
        working_dir=args.workdir,
        # Linux limits a host name to 64 bytes.
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
    """Parse ``SRC:DST[:ro|rw]``.

    :raises InvalidError: the text has another form, or DST is not absolute.
    :raises NotFoundError: SRC does not exist.
    """
    source, _, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    if not source or not destination.startswith("/") or mode not in ("", "ro", "rw"):
        raise InvalidError(f"{text!r} is not a volume; use SRC:/DST or SRC:/DST:ro")
    path = Path(source).absolute()
    if not path.exists():
        raise NotFoundError(f"cannot mount the volume {text}: there is no {path}")
    return Volume(str(path), destination, read_only=mode == "ro")


def _variable(entry: str) -> list[str]:
    # A name without = takes its value from our environment, as with docker.
    if "=" in entry:
        return [entry]
    return [f"{entry}={os.environ[entry]}"] if entry in os.environ else []


def stop_signal(bundle: str) -> str:
    """Return the stop signal of the image of the container in ``bundle``, or an empty string."""
    try:
        annotations = workdir.read_config(Path(bundle)).get("annotations")
    except (InvalidError, NotFoundError):
        return ""
    found = annotations.get(_STOP_SIGNAL) if isinstance(annotations, dict) else None
    return found if isinstance(found, str) else ""
