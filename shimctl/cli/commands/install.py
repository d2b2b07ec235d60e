"""install: install the executables where containerd finds them."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import click

from shim import names
from shimctl.cli.app import declare
from shimctl.cli.parameters import DIRECTORY, output_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shimctl.cli.output import Out


@declare("install", example="shimctl install --prefix /usr/local")
@click.option(
    *("--prefix",),
    type=DIRECTORY,
    default="/usr/local",
    metavar="DIR",
    help="The directory above bin (default: /usr/local).",
)
@click.option(
    *("--name",),
    default=names.EXECUTABLE,
    metavar="NAME",
    help="The name of the shim's executable (default: containerd-shim-trio-v2).",
)
@click.option(
    *("--native/--no-native",),
    default=None,
    help="Build the native launcher, or do not (default: if there is a C compiler).",
)
@click.option("--uninstall", is_flag=True, help="Remove the installed files.")
@click.option(
    "--for",
    "manager",
    type=click.Choice(("containerd", "docker", "crio", "k3s")),
    help="Instead add the shim to the configuration of this manager.",
)
@click.option("--undo", is_flag=True, help="With --for: remove what it added.")
@click.option("--dry-run", is_flag=True, help="With --for: only show the difference.")
@click.option("-y", "--yes", is_flag=True, help="With --for: do not ask.")
@click.option(
    "--systemd-cgroup/--no-systemd-cgroup",
    "systemd",
    default=None,
    help="With --for: whether systemd makes the cgroups (default: as in its configuration).",
)
@output_options
async def command(
    prefix: str,
    name: str,
    native: bool | None,
    uninstall: bool,
    manager: str | None,
    undo: bool,
    dry_run: bool,
    yes: bool,
    systemd: bool | None,
    out: Out,
) -> int:
    """Install the shim where containerd finds it.

    It gets the fastest available launcher.  The installed executables run this interpreter
    with -I -S.  Install again after an upgrade of Python or of the shim.

    The man pages, and the completions for bash, zsh and fish, are installed below
    DIR/share.  A file there that pip or a package installed is not replaced.

    --for shows the change of a manager's configuration as a difference, asks, and writes
    it; the manager's own program reads the result before that.  A present file that is
    invalid is not changed.  --undo restores every byte.
    """
    from shim.errors import InvalidError
    from shim.text import printable
    from shimctl.cli.shared import shared_files
    from shimctl.host import install

    if manager:
        return await _configure(
            manager, undo=undo or uninstall, dry_run=dry_run, yes=yes, systemd=systemd
        )
    if undo or dry_run or yes or systemd is not None:
        raise InvalidError("--undo, --dry-run, --yes and --systemd-cgroup go with --for")

    shared = shared_files()
    if uninstall:
        done = install.uninstall(prefix, name=name, shared=shared)
    else:
        done = await install.install(prefix, name=name, native=native, shared=shared)
    if done.remark:
        print(f"shimctl: {printable(done.remark)}", file=sys.stderr)
    lines = [*done.files, *_counted(done.shared)]
    out.show(done, (lambda: "\n".join(map(printable, lines))) if lines else None)
    return 0


def _counted(files: Iterable[str]) -> list[str]:
    """Return a line for each directory of ``files``, with the number of its files."""
    directories = Counter(file.rpartition("/")[0] for file in files)
    return [
        f"{directory} ({count} {'file' if count == 1 else 'files'})"
        for directory, count in directories.items()
    ]


async def _configure(
    manager: str, *, undo: bool, dry_run: bool, yes: bool, systemd: bool | None
) -> int:
    """Show the change of a manager's configuration, ask, and make it."""
    from shim.errors import InvalidError
    from shim.text import printable
    from shimctl.host import setup

    plan = await setup.make_plan(manager, undo=undo, systemd_cgroups=systemd)
    remarks = list(plan.remarks)
    difference = "".join(change.difference for change in plan.changes)
    for line in difference.split("\n")[:-1]:
        print(printable(line))
    if difference and (remark := await setup.check(manager, plan)):
        remarks.append(remark)
    for remark in remarks:
        print(f"shimctl: {printable(remark)}", file=sys.stderr)
    if not difference:
        state = "does not have this shim" if undo else "has this shim already"
        print(f"the configuration of {manager} {state}")
        return 0
    if dry_run:
        return 0
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidError("cannot ask without a terminal, so nothing was changed; add --yes")
        if not click.confirm("Write this?", default=False, err=True):
            return 1
    setup.execute(plan.changes)
    if plan.restart:
        print(
            f"shimctl: the change takes effect after: {printable(plan.restart)}", file=sys.stderr
        )
    return 0
