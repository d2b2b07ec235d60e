"""inspect: one container and its shim, in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import (
    Where,
    format_option,
    output_options,
    search_options,
    several_ids,
)

if TYPE_CHECKING:
    from shimctl.cli.inspection import Inspection
    from shimctl.cli.output import Out
    from shimctl.discover import Found


@declare("inspect", example="shimctl inspect -o yaml redis")
@several_ids
@format_option
@search_options
@output_options
async def command(ids: tuple[str, ...], template: str, where: Where, out: Out) -> None:
    """Show all facts about containers and their shims.

    With -o wide it also shows the environment, mounts, limits and stdio paths.  --format is
    a template over the JSON, such as '{{.state.pid}}'; docker's names such as
    {{.State.Status}} are there, too.
    """
    from shimctl.cli import render
    from shimctl.cli.inspection import inspect
    from shimctl.exits import read_exit
    from shimctl.listing.collect import row_of
    from shimctl.listing.fields import inspected
    from shimctl.listing.formatting import Format

    wanted = Format(template) if template else None
    found = [await where.find(name) for name in dict.fromkeys(ids)]
    inspections = [
        await inspect(one, read_exit(one.bundle) if one.bundle else None) for one in found
    ]
    if wanted is not None:
        documents = [
            inspected(render.plain(inspection), row_of(_answered(one, inspection)))
            for one, inspection in zip(found, inspections, strict=True)
        ]
        out.text(wanted.render(documents, lambda value: render.as_json(value, indent=None)))
        return
    value = inspections if len(ids) > 1 else inspections[0]
    out.show(
        value,
        lambda: "\n\n".join(
            out.table(("FIELD", "VALUE"), _rows(inspection, wide=out.wide))
            for inspection in inspections
        ),
    )


def _answered(found: Found, inspection: Inspection) -> Found:
    """Return ``found`` with the state that its shim has returned."""
    from dataclasses import replace

    from shimctl.discover import Health

    state = inspection.state
    if state is None:
        return replace(found, exited=inspection.exited)
    return replace(
        found, health=Health.UP, status=state.status, pid=state.pid, exited=state.exited
    )


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
    if shim.unkept:
        rows.append(("would not survive", shim.unkept))
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
