"""inspect: one container and its shim, in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, one_id, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.inspection import Inspection
    from shimctl.cli.output import Out


@declare("inspect", example="shimctl inspect -o yaml redis")
@one_id
@search_options
@output_options
async def command(id_: str, where: Where, out: Out) -> None:
    """Show all facts about a container and its shim.

    With -o wide it also shows the environment, mounts, limits and stdio paths.
    """
    from shimctl.cli.inspection import inspect
    from shimctl.exits import read_exit

    found = await where.find(id_)
    inspection = await inspect(found, read_exit(found.bundle) if found.bundle else None)
    out.show_table(inspection, ("FIELD", "VALUE"), _rows(inspection, wide=out.wide))


def _rows(of: Inspection, *, wide: bool) -> list[tuple[str, object]]:
    from shimctl.cli import render

    shim, state, exited, config = of.shim, of.state, of.exited, of.config
    rows: list[tuple[str, object]] = [
        ("namespace", of.namespace),
        ("id", of.id),
        ("bundle", of.bundle),
        ("made by shimctl", "yes" if of.managed else "no"),
        ("shim pid", shim.pid or None),
        ("shim address", shim.address),
        ("shim version", shim.version),
        ("task api", shim.api_version or None),
        ("shim executable", shim.executable),
        ("problem", of.problem),
    ]
    if state:
        rows += [
            ("status", render.status(state.status.value)),
            ("pid", state.pid or None),
            ("terminal", "yes" if state.stdio.terminal else "no"),
            ("exit status", state.exit_status),
            ("exited at", state.exited_at),
        ]
    if exited:
        rows.append(
            ("exit record", f"{exited.exit_status} at {render.time(exited.exited_at) or '-'}")
        )
    if of.output:
        limit = f", at most {render.size(of.output.limit)}" if of.output.limit else ""
        policy = of.output.policy or f"invalid: {of.output.problem}"
        rows.append(("unread output", f"{policy}{limit} ({of.output.source})"))
    rows += [("exec", f"{one.exec_id}, {one.status.value}, pid {one.pid}") for one in of.execs]
    rows.append(("pids", " ".join(str(one.pid) for one in of.pids)))
    rows += [("cgroup", f"{names}: {path}") for names, path in of.cgroups.items()]
    if config:
        rows += [
            ("command", " ".join(config.args)),
            ("directory", config.cwd),
            ("user", config.user),
            ("hostname", config.hostname),
            ("root", config.root + (", read-only" if config.readonly else "")),
            ("namespaces", " ".join(config.namespaces)),
            *(("annotation", f"{key}={value}") for key, value in config.annotations.items()),
        ]
    if config and wide:
        rows += [("env", one) for one in config.env]
        rows += [("mount", one) for one in config.mounts]
        rows += [
            ("limits", f"{key}: {render.as_line(value)}")
            for key, value in config.resources.items()
        ]
    if state and wide:
        rows += [
            ("stdin", state.stdio.stdin),
            ("stdout", state.stdio.stdout),
            ("stderr", state.stdio.stderr),
        ]
    return rows
