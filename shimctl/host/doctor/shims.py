"""Checks the shims of this host: versions, dead sockets, and shims that do not answer."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import names
from shim.errors import ShimError
from shim.linux.files import read_whole
from shim.version import VERSION
from shimctl.client import connect
from shimctl.discover import Found, Health, list_shims
from shimctl.host.doctor import stack
from shimctl.host.doctor.finding import Finding, Level
from shimctl.host.executable import executable_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_AREA = "shims"
ANSWER = 1.0  # s for a shim's answer
_SHOWN = 20  # the most shims that are named
_CONFIG = 64 << 20  # the most bytes of config.json that are read


@dataclass(frozen=True, slots=True)
class Build:
    """An executable and a version of shims that answer."""

    executable: str
    version: str


async def check(states: Sequence[str | Path] = ()) -> list[Finding]:
    """Check every shim at the same time."""
    shims = await list_shims(states=states, timeout=ANSWER)
    up = [found for found in shims if found.health is Health.UP]
    builds: Counter[Build] = Counter()
    silent: list[Finding] = []
    unkept: dict[str, list[Found]] = {}

    async def ask(found: Found) -> None:
        version = ""
        with trio.move_on_after(ANSWER):
            try:
                async with connect(found.address, namespace=found.namespace) as shim:
                    who = await shim.connect(found.id, timeout=ANSWER)
                version = who.version
                if who.unkept:
                    unkept.setdefault(who.unkept, []).append(found)
            except ShimError:
                pass
        builds[Build(executable_of(found.bundle, found.shim_pid), version)] += 1

    async def look(found: Found) -> None:
        silent.append(judge_silent(found, await stack.stack_of(found.shim_pid)))

    async with trio.open_nursery() as nursery:
        # The containers of a pod have one shim, and those of several pods may have one.
        for found in {found.shim_pid or found.address: found for found in up}.values():
            nursery.start_soon(ask, found)
        for found in {f.address: f for f in shims if f.health is Health.SILENT}.values():
            nursery.start_soon(look, found)
    rest = [found for found in shims if found.health in (Health.DEAD, Health.FOREIGN)]
    return [
        *judge_builds(builds),
        *judge_unkept(unkept),
        *judge_shared(up),
        *sorted(silent, key=lambda finding: finding.subject)[:_SHOWN],
        *judge_dead(rest),
    ]


def judge_builds(builds: Counter[Build]) -> list[Finding]:
    """Judge the versions of the shims that answer."""
    if not builds:
        return [Finding(_AREA, "running", Level.OK, "none")]
    found = []
    for build, count in sorted(
        builds.items(), key=lambda item: (item[0].executable, item[0].version)
    ):
        name = Path(build.executable).name or "an unknown executable"
        text = f"{count} of version {build.version or 'unknown'}"
        if "-trio-" in name and build.version != VERSION:
            text += f"; this is {VERSION}, which new containers get"
            remedy = (
                "`shimctl upgrade --all` replaces those that survive (`ps -o wide` shows them)"
            )
            found.append(Finding(_AREA, name, Level.NOTE, text, remedy))
        elif build.executable and not Path(build.executable).exists():
            text += f"; {build.executable} does not exist any more"
            remedy = "install the shim again: the manager needs it to delete these containers"
            found.append(Finding(_AREA, name, Level.BROKEN, text, remedy))
        else:
            found.append(Finding(_AREA, name, Level.OK, text))
    return found


def judge_unkept(unkept: Mapping[str, Sequence[Found]]) -> list[Finding]:
    """Judge the shims that are to survive and would not, by the reason.

    The fork server of each has ended, and another one has refused it, or none listens.
    """
    findings = []
    for reason, shims in sorted(unkept.items()):
        names_of = ", ".join(sorted(_name(found) for found in shims)[:_SHOWN])
        pid = min(found.shim_pid for found in shims)
        text = f"{len(shims)} have no fork server, and would not survive now: {names_of}"
        remedy = f"start a container, or run `shimctl forkserver warm --like {pid}`"
        if reason != names.NO_KEEPER:
            text += f"; a fork server refused them: {reason}"
            remedy = (
                "install a version that can read their states, and run "
                f"`shimctl forkserver warm --like {pid}`; or end the containers first"
            )
        findings.append(Finding(_AREA, "survive", Level.ADVICE, text, remedy))
    return findings


def judge_shared(shims: Iterable[Found]) -> list[Finding]:
    """Name the shims that serve several pods, or several containers without a pod."""
    served: dict[int, list[str]] = {}
    for found in shims:
        if found.shim_pid and found.bundle:
            served.setdefault(found.shim_pid, []).append(_pod_of(found.bundle) or found.id)
    shared = {pid: len(groups) for pid, groups in served.items() if len(set(groups)) > 1}
    if not shared:
        return []
    pid, most = max(shared.items(), key=lambda item: item[1])
    text = (
        f"{len(shared)} serve {sum(shared.values())} containers (setting share); "
        f"without `survive = true` the death of pid {pid} ends {most} of them"
    )
    return [Finding(_AREA, "shared", Level.NOTE, text)]


def judge_silent(found: Found, seen: stack.Stack) -> Finding:
    """Judge a shim that did not answer in time."""
    text = f"pid {found.shim_pid or 'unknown'} does not answer within {ANSWER:g} s; {seen.state}"
    remedy = seen.remedy or "report the stack; `shimctl rm -f` ends the container"
    return Finding(_AREA, _name(found), Level.BROKEN, text, remedy, seen.text)


def judge_dead(shims: Iterable[Found]) -> list[Finding]:
    """Judge sockets without a shim, and containers whose shim has ended."""
    dead, foreign, ended = 0, 0, 0
    findings = []
    for found in shims:
        made = partial(Finding, _AREA, _name(found))
        if found.health is Health.FOREIGN:
            foreign += 1
        elif not found.bundle:
            dead += 1
        elif found.exited is not None:
            ended += 1
        elif found.address:
            text = "its shim has ended, and the exit of the container is not known"
            findings.append(made(Level.BROKEN, text, f"shimctl rm -f {found.id}"))
    findings = findings[:_SHOWN]
    if ended:
        text = f"{ended} finished, and their shims have ended"
        findings.append(Finding(_AREA, "containers", Level.NOTE, text, "shimctl prune"))
    if dead:
        text = f"no shim listens on {dead} of the sockets"
        findings.append(Finding(_AREA, "dead sockets", Level.ADVICE, text, "shimctl prune"))
    if foreign:
        text = f"{foreign} sockets belong to other programs"
        findings.append(Finding(_AREA, "other sockets", Level.NOTE, text))
    return findings


def _name(found: Found) -> str:
    return f"{found.namespace}/{found.id}" if found.id else found.address.removeprefix("unix://")


def _pod_of(bundle: str) -> str:
    """Return the id of the pod of a container, "" without one or without a config.json."""
    try:
        config = json.loads(read_whole(f"{bundle}/config.json", _CONFIG))
        annotations = config.get("annotations") or {}
        return next((str(annotations[name]) for name in names.GROUPS if name in annotations), "")
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return ""
