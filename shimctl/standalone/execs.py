"""Execs for ``shimctl exec``: as a user by name, detached, or the end of one of a killed client.

Source: docker exec for the meaning of the options.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.errors import NotFoundError, ShimError
from shimctl.client import Task
from shimctl.ending import end
from shimctl.execfifos import remove_left
from shimctl.host.inroot import read_regular, root_of
from shimctl.images.accounts import parse_user, read_inside
from shimctl.values import Stdio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shimctl.values import Exited, TaskState

_MOST = 4 << 20  # bytes that are read of /etc/passwd and /etc/group


def new_exec_id() -> str:
    """Generate the id of an exec."""
    return f"exec-{secrets.token_hex(6)}"


def user_object(state: TaskState, config: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the ``user`` object of an OCI process for ``USER|UID[:GROUP|GID]``.

    Names are those of the running container's /etc/passwd and /etc/group.  If the init
    process's root cannot be read, as with a virtual machine, those of the bundle's rootfs.

    :raises NotFoundError: the container has no such user or group.
    :raises InvalidError: ``text`` has another form.
    """
    passwd, group = _accounts(state.pid) or _accounts_of_bundle(state.bundle, config)
    user = parse_user(text, passwd, group, owner="container")
    found: dict[str, Any] = {"uid": user.uid, "gid": user.gid}
    return found | ({"additionalGids": list(user.groups)} if user.groups else {})


def _accounts(pid: int) -> tuple[str, str] | None:
    try:
        with root_of(pid) as root:
            passwd = read_regular(root, "etc/passwd", _MOST).decode(errors="replace")
            group = ""
            with suppress(OSError):
                group = read_regular(root, "etc/group", _MOST).decode(errors="replace")
    except OSError:
        return None
    return passwd, group


def _accounts_of_bundle(bundle: str, config: Mapping[str, Any]) -> tuple[str, str]:
    root = config.get("root")
    path = root.get("path") if isinstance(root, dict) else None
    rootfs = Path(bundle, path if isinstance(path, str) else "rootfs")
    return read_inside(rootfs, "etc/passwd"), read_inside(rootfs, "etc/group")


async def exec_detached(task: Task, process: Mapping[str, object]) -> tuple[str, int]:
    """Start ``process`` as an exec with no stdio; return its exec id and pid.

    The shim keeps its exit status until the container is deleted.
    """
    name = new_exec_id()
    added = await task.exec(name, process, stdio=Stdio())
    try:
        return name, await added.start()
    except ShimError:
        with suppress(ShimError):
            await end(added)
        raise


async def kill_exec(task: Task, exec_id: str) -> Exited | None:
    """End an exec with SIGKILL, and delete it with the fifos that its client left.

    :raises NotFoundError: the container has no such exec; the message lists its execs.
    """
    added = Task(task.shim, task.id, exec_id)
    try:
        state = await added.state()
    except NotFoundError:
        there = ", ".join(await list_execs(task)) or "none"
        raise NotFoundError(
            f"{task.id} has no exec {exec_id!r}; its running execs: {there}"
        ) from None
    exited = await end(added)
    remove_left(state.stdio.stdout)
    return exited


async def list_execs(task: Task) -> list[str]:
    """Return the ids of the running execs of a container, sorted."""
    try:
        return sorted({one.exec_id for one in await task.pids() if one.exec_id})
    except ShimError:
        return []  # the runtime cannot list processes
