"""upgrade: replace running shims by the installed version."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import CONTAINER, Where, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.discover import Found


@declare("upgrade", example="shimctl upgrade --all")
@click.argument("ids", nargs=-1, metavar="[ID]...", type=CONTAINER, help="Their shims.")
@click.option("--all", "everything", is_flag=True, help="All shims of this project.")
@click.option("--check", is_flag=True, help="Change nothing; tell which could be replaced.")
@click.option("--force", is_flag=True, help="Also replace shims that have this version.")
@search_options
@output_options
async def command(
    ids: tuple[str, ...], everything: bool, check: bool, force: bool, where: Where, out: Out
) -> int:
    """Replace running shims by the installed version.

    The containers run on, and the connections of managers stay open.  One shim is replaced
    after the other; if the new version does not serve, the old one goes on.  A shim is
    replaced only if `survive = true` was in the host's file when it started.
    """
    from shim.errors import InvalidError

    if bool(ids) == everything:
        raise InvalidError("name containers, or use --all; see `shimctl upgrade --help`")
    code = 0
    done: list[object] = []
    shims, code = await _found(ids, where)
    for found in shims:
        code = (
            await _upgrade(found, done, out, check=check, force=force, everything=everything)
            or code
        )
    if not out.is_table:
        out.show(done)
    return code


async def _found(ids: tuple[str, ...], where: Where) -> tuple[list[Found], int]:
    """Return one container of each shim, and the exit code: not 0 if one was not found."""
    from shim.errors import NotFoundError
    from shimctl.cli.report import report
    from shimctl.discover import Health, list_shims

    code = 0
    chosen: list[Found] = []
    if ids:
        for text in dict.fromkeys(ids):
            try:
                chosen.append(await where.find_to_change(text))
            except Exception as exc:
                code = report(exc, "upgrade", text, several=len(ids) > 1)
    else:
        listed = await list_shims(states=where.states)
        chosen = [
            found
            for found in listed
            if found.health in (Health.UP, Health.SILENT)
            and where.namespace in ("", found.namespace)
        ]
        if not chosen and os.geteuid():
            raise NotFoundError("no shim was found")  # with the remedy of another user
    return list({found.shim_pid or found.address: found for found in chosen}.values()), code


async def _upgrade(
    found: Found, done: list[object], out: Out, *, check: bool, force: bool, everything: bool
) -> int:
    """Upgrade one shim and print a line; return the exit code."""
    from shim.text import printable
    from shimctl.cli.report import report
    from shimctl.discover import Health
    from shimctl.host.upgrade import OtherShimError, upgrade

    try:
        result = await upgrade(found, check=check, force=force)
    except Exception as exc:
        cannot_know = isinstance(exc, OtherShimError) or found.health is Health.SILENT
        if everything and cannot_know and _is_foreign(found):
            return 0
        return report(exc, "upgrade", found.id, several=True)
    done.append(result)
    if out.is_table:
        versions = f"{result.old_version} -> {result.version}"
        if result.old_version == result.version and not result.changed:
            versions = f"{result.version} is installed"
        print(printable(f"{found.id}  {versions}"), flush=True)
    return 0


def _is_foreign(found: Found) -> bool:
    """Return whether the shim of ``found`` is known to be another project's."""
    from shimctl.host.executable import executable_of

    executable = executable_of(found.bundle, found.shim_pid)
    return bool(executable) and "-trio-" not in executable
