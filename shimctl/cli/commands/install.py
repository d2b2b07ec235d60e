"""install: install the executables where containerd finds them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shim import names
from shimctl.cli.app import declare
from shimctl.cli.parameters import DIRECTORY, output_options

if TYPE_CHECKING:
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
@output_options
async def command(prefix: str, name: str, native: bool | None, uninstall: bool, out: Out) -> None:
    """Install the shim where containerd finds it.

    It gets the fastest available launcher.  The installed executables run this interpreter
    with -I -S.  Install again after an upgrade of Python or of the shim.
    """
    from shim.text import printable
    from shimctl.host import install

    if uninstall:
        done = install.uninstall(prefix, name=name)
    else:
        done = await install.install(prefix, name=name, native=native)
    if done.remark:
        print(f"shimctl: {printable(done.remark)}", file=sys.stderr)
    files = "\n".join(map(printable, done.files))
    out.show(done, (lambda: files) if files else None)
