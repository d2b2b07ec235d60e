"""Collect all facts about a container from its shim, its bundle and the host.

Each part is collected independently: if the shim is dead or the bundle cannot be read,
only that part is missing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim import hostfile, names
from shim.errors import InvalidError, ShimError
from shimctl.client import Task, connect
from shimctl.host.executable import executable_of
from shimctl.host.processes import cgroups_of
from shimctl.standalone.workdir import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimctl.client import Shim
    from shimctl.discover import Found
    from shimctl.values import Exited, Pid, TaskState

_TIMEOUT = 5.0  # s for each call to the shim


@dataclass(frozen=True, slots=True)
class ShimFacts:
    """The shim.  If it did not answer, ``pid`` and ``api_version`` are 0, ``version`` is empty.

    ``unkept`` is as in :class:`~shimctl.values.Connected`.
    """

    address: str
    executable: str
    pid: int = 0
    version: str = ""
    api_version: int = 0
    unkept: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """The handling of output without a reader, as the trio shim reads its settings.

    ``limit`` is the bytes of one stream that may wait on disk, None unless the policy is
    spool.  ``source`` is ``annotation``, the path of the host's file, or ``default`` if
    there is no such file.  If a setting is invalid, ``policy`` is empty and ``problem`` is
    the error with which the shim fails every Create.
    """

    policy: str
    limit: int | None
    source: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """The main values of the bundle's config.json."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    terminal: bool
    hostname: str
    root: str
    readonly: bool
    mounts: tuple[str, ...]
    namespaces: tuple[str, ...]
    cgroups_path: str
    resources: Mapping[str, Any]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Inspection:
    """All facts about a container; a part that could not be collected is None."""

    namespace: str
    id: str
    managed: bool
    bundle: str
    shim: ShimFacts
    state: TaskState | None
    exited: Exited | None
    execs: tuple[TaskState, ...]
    pids: tuple[Pid, ...]
    cgroups: Mapping[str, str]
    output: Output | None
    config: Config | None
    problem: str


async def inspect(found: Found, exited: Exited | None = None) -> Inspection:
    """Collect the facts about ``found``; ``exited`` is its exit record, if it has one."""
    state: TaskState | None = None
    pids: tuple[Pid, ...] = ()
    execs: tuple[TaskState, ...] = ()
    problem = ""
    facts = ShimFacts(found.address, "")
    try:
        async with connect(found.address, namespace=found.namespace) as shim:
            who = await shim.connect(found.id, timeout=_TIMEOUT)
            facts = ShimFacts(
                found.address, "", who.shim_pid, who.version, shim.api_version, who.unkept
            )
            state = await shim.task(found.id).state(timeout=_TIMEOUT)
            pids = await _pids(shim, found.id)
            execs = await _execs(shim, found.id, pids)
    except ShimError as exc:
        problem = str(exc)
    bundle = found.bundle or (state.bundle if state else "")
    facts = replace(facts, executable=executable_of(bundle, facts.pid))
    config: dict[str, Any] = {}
    if bundle:
        with suppress(ShimError):
            config = read_config(Path(bundle))
    return Inspection(
        namespace=found.namespace,
        id=found.id,
        managed=found.managed,
        bundle=bundle,
        shim=facts,
        state=state,
        exited=exited,
        execs=execs,
        pids=pids,
        cgroups=cgroups_of(state.pid) if state and state.pid else {},
        output=output_of(config, facts.executable),
        config=config_of(config) if config else None,
        problem=problem,
    )


async def _pids(shim: Shim, container: str) -> tuple[Pid, ...]:
    try:
        return await shim.task(container).pids(timeout=_TIMEOUT)
    except ShimError:
        return ()  # the container exited, or its runtime cannot list processes


async def _execs(shim: Shim, container: str, pids: tuple[Pid, ...]) -> tuple[TaskState, ...]:
    states = []
    for name in sorted({one.exec_id for one in pids if one.exec_id}):
        with suppress(ShimError):  # the exec was deleted meanwhile
            states.append(await Task(shim, container, name).state(timeout=_TIMEOUT))
    return tuple(states)


def config_of(config: Mapping[str, Any]) -> Config:
    """Return the main values of an OCI config; a missing or malformed value is empty."""
    process, root, linux = (_dict(config.get(name)) for name in ("process", "root", "linux"))
    user = _dict(process.get("user"))
    return Config(
        args=_texts(process.get("args")),
        env=_texts(process.get("env")),
        cwd=str(process.get("cwd") or ""),
        user=f"{user.get('uid', 0)}:{user.get('gid', 0)}",
        terminal=process.get("terminal") is True,
        hostname=str(config.get("hostname") or ""),
        root=str(root.get("path") or ""),
        readonly=root.get("readonly") is True,
        mounts=tuple(
            f"{mount.get('source', '')} on {mount.get('destination', '')}"
            for mount in map(_dict, _list(config.get("mounts")))
        ),
        namespaces=tuple(
            str(namespace.get("type", ""))
            for namespace in map(_dict, _list(linux.get("namespaces")))
        ),
        cgroups_path=str(linux.get("cgroupsPath") or ""),
        resources=_dict(linux.get("resources")),
        annotations={str(k): str(v) for k, v in _dict(config.get("annotations")).items()},
    )


def output_of(config: Mapping[str, Any], executable: str) -> Output | None:
    """Return the output policy; None for another shim than the trio shim, which has none.

    The container's annotations override the host's file.  This reads the settings with the
    shim's own parser, so the result is what the next Create with them would use.
    """
    annotations = _dict(config.get("annotations"))
    annotated = names.OUTPUT_POLICY in annotations
    if not annotated and "-trio-" not in Path(executable).name:
        return None
    path = os.environ.get(names.HOST_FILE_VARIABLE) or names.HOST_FILE
    source = path if os.path.lexists(path) else "default"
    try:
        output = hostfile.read_output(os.environ).annotated(annotations)
    except InvalidError as exc:
        return Output("", None, source, str(exc))
    limit = output.limit if output.policy == hostfile.SPOOL else None
    return Output(output.policy, limit, "annotation" if annotated else source)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, _list(value)))
