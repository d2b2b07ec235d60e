"""doctor: check this host and its shims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import output_options, state_option

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.host.doctor import Report


@declare("doctor", example="shimctl doctor > report.txt")
@click.option("-a", "--all", "everything", is_flag=True, help="Show the checks that pass, too.")
@state_option
@output_options
async def command(everything: bool, state: tuple[str, ...], out: Out) -> int:
    """Check this host, the managers' configuration and all shims.

    It changes nothing, and takes ten seconds at most.  The output names programs, versions,
    paths and ids, but no environment and no arguments of a container: it can go into a
    report.  Exits with 0, with 1 if it has advice, and with 2 if something does not work.
    """
    from shimctl.host.doctor import examine
    from shimctl.standalone import unattended

    report = await examine(states=state, more={unattended.AREA: unattended.check})
    out.show(
        {"version": report.version, "level": report.level, "findings": report.findings},
        lambda: _page(report, out, everything=everything),
    )
    return report.exit_code


def _page(report: Report, out: Out, *, everything: bool) -> str:
    """Return the findings by area: one line each, the remedy and the detail below it."""
    from shim.text import printable
    from shimctl.host.doctor import Level

    counts = {level: [f.level for f in report.findings].count(level) for level in Level}
    lines = [
        f"trio-shim {report.version}: " + ", ".join(f"{n} {k.value}" for k, n in counts.items())
    ]
    area = ""
    for found in report.findings:
        if found.level is Level.OK and not (everything or out.wide or _is_version(found.area)):
            continue
        if found.area != area:
            area = found.area
            lines += ["", printable(area)]
        lines.append(
            f"  {found.level.value:6}  {printable(found.subject)}: {printable(found.text)}"
        )
        if found.remedy:
            lines.append(f"          -> {printable(found.remedy)}")
        lines += [f"          | {printable(line)}" for line in found.detail.split("\n") if line]
    return "\n".join(lines)


def _is_version(area: str) -> bool:
    return area in ("machine", "programs")  # a reader of a report needs these
