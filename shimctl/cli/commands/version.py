"""version: show the version of shimctl, or of a container's shim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import CONTAINER, Where, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare("version", example="shimctl version redis")
@click.argument("id_", metavar="[ID]", type=CONTAINER, default="", help="The container's id.")
@search_options
@output_options
async def command(id_: str, where: Where, out: Out) -> None:
    """Show the version of shimctl, or of a container's shim.

    For a shim, shows the version of the running daemon and of its executable.
    """
    import platform
    from contextlib import suppress

    from shim.errors import ShimError
    from shim.version import VERSION
    from shimctl.cli.connected import open_found
    from shimctl.host.executable import executable_of, version_of

    if not id_:
        ours = {"version": VERSION, "python": platform.python_version(), "api_versions": [3, 2]}
        out.show(ours, lambda: f"shimctl {VERSION}")
        return
    found = await where.find(id_)
    async with open_found(found) as task:
        who = await task.shim.connect(task.id)
        bundle = found.bundle
        with suppress(ShimError):  # the bundle is unknown if only the socket was found
            bundle = bundle or (await task.state()).bundle
        executable = executable_of(bundle, who.shim_pid)
        said = await version_of(executable) if executable else ""
        version = {
            "id": task.id,
            "namespace": found.namespace,
            "version": who.version,
            "api_version": task.shim.api_version,
            "shim_pid": who.shim_pid,
            "executable": executable,
            "executable_says": said,
        }
    rows = [
        ("id", version["id"]),
        ("version", version["version"]),
        ("task api", version["api_version"]),
        ("shim pid", version["shim_pid"]),
        ("executable", version["executable"]),
        ("it says", " ".join(said.split())),
    ]
    out.show_table(version, ("FIELD", "VALUE"), rows)
