"""The options of the commands that create a container, and the container they describe.

``options`` is the namespace of a command's parameters, with the names that click gives.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shimctl.cli.app import Command, declare
from shimctl.cli.parameters import CPUS, DIRECTORY, FILE, SIZE, Namespace, integer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace as Options

    from shimctl.cli.output import Out
    from shimctl.images import Overrides, Volume
    from shimctl.standalone.run import Run

    T = TypeVar("T")
    Function = Callable[..., T]

_FOR_IMAGES = (
    *("env", "workdir", "user", "entrypoint", "hostname", "volume", "memory", "cpus"),
    *("pids_limit", "read_only", "platform"),
)


class _WithImage(Command):
    """A command whose options may follow a bundle, but not an image: its command follows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from shimctl.images.reference import is_reference

        found, *_ = self.make_parser(ctx).parse_args(list(args))
        bundle, words = found.get("bundle"), found.get("args")
        # click has a value of its own for an argument that is not there.
        if isinstance(bundle, str) and isinstance(words, tuple) and not is_reference(bundle):
            at = len(args) - len(words) - 1
            moved = [*args[:at], *words, *args[at : at + 1]]
            again, *_ = self.make_parser(ctx).parse_args(list(moved))
            if not isinstance(again.get("args"), tuple):
                args = moved
        return super().parse_args(ctx, args)


def declare_creating(name: str, *, example: str) -> Callable[[Function[Any]], Command]:
    """Declare a command that creates a container from a bundle or from an image."""
    settings = {"allow_interspersed_args": False}
    return declare(name, example=example, cls=_WithImage, settings=settings)


def container_options(function: Function[T]) -> Function[T]:
    """Declare all options of such a command that describe the container."""
    return bundle_options(image_options(stdio_options(function)))


def bundle_options(function: Function[T]) -> Function[T]:
    """Declare the argument BUNDLE and the options of every command that creates a container."""
    for decorate in (
        click.option("--debug", is_flag=True, help="Print the shim's log to stderr."),
        click.option(
            "--binary", default="", metavar="FILE", help="The OCI runtime, instead of runc."
        ),
        click.option(
            *("--runtime",),
            default="",
            metavar="RUNTIME",
            help="Name or path (default: io.containerd.trio.v2).",
        ),
        click.option(
            *("-n", "--namespace"),
            type=Namespace(),
            default="",
            metavar="NAMESPACE",
            help="The container's namespace (default: default).",
        ),
        click.option(
            *("--id", "--name", "id_"),
            default="",
            metavar="ID",
            help="The container's id (default: generated).",
        ),
        click.argument(
            "bundle", metavar="BUNDLE", type=FILE, help="A directory with a config.json."
        ),
    ):
        function = decorate(function)
    return function


def stdio_options(function: Function[T]) -> Function[T]:
    """Declare the options for the stdio of a detached container."""
    for decorate in (
        click.option(
            *("--output-policy",),
            type=click.Choice(("block", "spool", "drop")),
            help="Handling of output while no client is attached, instead of a log.",
        ),
        click.option(
            *("--log-limit",),
            type=SIZE,
            metavar="SIZE",
            help="Detached: size of each of the two files for `shimctl logs` (default: 10MiB).",
        ),
        click.option(
            *("--log",),
            type=FILE,
            metavar="FILE",
            help="Detached: write its raw output to this file.",
        ),
        click.option(
            *("-t", "--tty"),
            is_flag=True,
            help="A terminal; without -d also if the bundle has one.",
        ),
        click.option(
            *("-i", "--interactive"),
            is_flag=True,
            help="Detached: a stdin for attached clients.",
        ),
    ):
        function = decorate(function)
    return function


def image_options(function: Function[T]) -> Function[T]:
    """Declare the options of a container that is made from an image, and its command."""
    for decorate in (
        click.option(
            *("--platform",),
            default="",
            metavar="OS/ARCH",
            help="Image: the platform, if it has several.",
        ),
        click.option(
            *("--network",),
            type=click.Choice(("none", "host")),
            default="none",
            help="Image: a private loopback (default), or the host's network.",
        ),
        click.option(
            "--read-only", is_flag=True, help="Image: make all but its volumes read-only."
        ),
        click.option(
            *("--pids-limit",),
            type=integer(1, 1 << 22),
            default=0,
            metavar="N",
            help="Image: limit of its processes and threads.",
        ),
        click.option(
            *("--cpus",),
            type=CPUS,
            default=0,
            metavar="N",
            help="Image: limit of its cpu time in cpus, such as 1.5.",
        ),
        click.option(
            "--memory", type=SIZE, default=0, metavar="SIZE", help="Image: limit of its memory."
        ),
        click.option(
            *("-v", "--volume"),
            multiple=True,
            metavar="SRC:DST[:ro]",
            help="Image: mount a file or directory of the host at DST.",
        ),
        click.option(
            *("--hostname",),
            default="",
            metavar="NAME",
            help="Image: its host name (default: the container's id).",
        ),
        click.option(
            *("--entrypoint",),
            metavar="PROGRAM",
            help="Image: replaces the image's entrypoint; '' for none.",
        ),
        click.option(
            *("-u", "--user"),
            default="",
            metavar="USER[:GROUP]",
            help="Image: the user that it runs as, by name or number.",
        ),
        click.option(
            *("-w", "--workdir"), default="", metavar="DIR", help="Image: its working directory."
        ),
        click.option(
            *("-e", "--env"), multiple=True, metavar="NAME=VALUE", help="Image: set a variable."
        ),
        click.argument(
            *("args",),
            metavar="[COMMAND...]",
            nargs=-1,
            type=click.UNPROCESSED,
            help="With an image: the command line.",
        ),
    ):
        function = decorate(function)
    return function


def checkpoint_options(help_: str) -> Callable[[Function[T]], Function[T]]:
    """Declare ``--image-path``, with this help, and ``--work-path``."""

    def decorate(function: Function[T]) -> Function[T]:
        function = click.option(
            "--work-path", type=DIRECTORY, metavar="DIR", help="The directory for criu's log."
        )(function)
        return click.option(
            "--image-path", type=DIRECTORY, metavar="DIR", required=True, help=help_
        )(function)

    return decorate


def run_of(options: Options) -> Run:
    """Return the Run for the options of :func:`bundle_options` and :func:`stdio_options`."""
    from shimctl.launching import DEFAULT_RUNTIME
    from shimctl.standalone import logger, workdir
    from shimctl.standalone.run import Run

    bundle = Path(options.bundle)
    binary = options.binary
    return Run(
        bundle=bundle,
        container=workdir.check_id(options.id_)
        if options.id_
        else workdir.new_id(bundle.absolute()),
        namespace=workdir.check_id(options.namespace or "default", "namespace"),
        runtime=options.runtime or DEFAULT_RUNTIME,
        binary=str(Path(binary).absolute()) if "/" in binary else binary,
        interactive=options.interactive,
        terminal=options.tty or None,
        log=Path(options.log) if options.log else None,
        log_limit=logger.LIMIT if options.log_limit is None else options.log_limit,
        policy=options.output_policy or "",
        debug=options.debug,
    )


async def with_image(options: Options, wanted: Run) -> Run:
    """Unpack the image that ``options`` name; return ``wanted`` with its config and rootfs.

    For a bundle, return ``wanted`` unchanged.

    :raises InvalidError: an option is invalid, or needs an image but BUNDLE is a bundle.
    :raises NotFoundError: there is neither a bundle nor an image of that name.
    """
    from shim.errors import InvalidError, NotFoundError
    from shimctl.images.reference import hint_for, is_reference

    if not is_reference(options.bundle):
        if not Path(options.bundle).exists():
            hint = hint_for(options.bundle)
            raise NotFoundError(f"there is no bundle {options.bundle}; for an image {hint}")
        given = [name for name in _FOR_IMAGES if getattr(options, name) not in (None, "", 0, ())]
        if options.args or given or options.network != "none":
            what = f"--{given[0].replace('_', '-')}" if given else "a command, or --network,"
            raise InvalidError(f"{what} needs an image; for a bundle, change its config.json")
        return wanted
    from shimctl.cli.progress import open_progress
    from shimctl.images import mounts_for, prepare

    overrides = overrides_of(options, wanted)
    with open_progress() as progress:
        image = await prepare(options.bundle, platform=options.platform, progress=progress)
    return replace(
        wanted,
        config=image.oci_config(user=options.user, overrides=overrides),
        rootfs=partial(mounts_for, image, hostname=overrides.hostname),
    )


def overrides_of(options: Options, wanted: Run) -> Overrides:
    """Return the overrides in the options that :func:`image_options` declares."""
    from shimctl.images import Overrides

    entrypoint = options.entrypoint
    return Overrides(
        args=without_dashes(options.args),
        entrypoint=entrypoint if entrypoint is None else [entrypoint] if entrypoint else [],
        env=[variable for entry in options.env for variable in _variable(entry)],
        working_dir=options.workdir,
        # Linux limits a host name to 64 bytes.
        hostname=options.hostname or wanted.container[:64],
        volumes=[volume_of(text) for text in options.volume],
        memory=options.memory,
        cpus=options.cpus,
        pids=options.pids_limit,
        read_only=options.read_only,
        network=options.network == "host",
        terminal=options.tty,
        cgroup=f"/shimctl.{wanted.namespace}.{wanted.container}",
    )


def without_dashes(words: tuple[str, ...]) -> list[str]:
    """Return a command line without the ``--`` that may precede it."""
    return list(words[1:] if words[:1] == ("--",) else words)


def volume_of(text: str) -> Volume:
    """Parse ``SRC:DST[:ro|rw]``.

    :raises InvalidError: the text has another form, or DST is not absolute.
    :raises NotFoundError: SRC does not exist.
    """
    from shim.errors import InvalidError, NotFoundError
    from shimctl.images import Volume

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


def show_created(out: Out, wanted: Run, pid: int) -> None:
    """Print the id of a container that was created."""
    made: dict[str, Any] = {"namespace": wanted.namespace, "id": wanted.container, "pid": pid}
    out.show(made, lambda: wanted.container)
