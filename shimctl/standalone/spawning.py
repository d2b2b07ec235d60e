"""Run a container for the length of a block or of a call, and remove it completely.

Such a container has a working directory like those of ``shimctl run``: ``shimctl ps``
shows it, and ``shimctl delete -f`` removes it if this program is killed.

Source: containerd core/runtime/v2 (shim.go, delete) for the order of the steps.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.errors import TimedOutError
from shim.linux.modes import write_file
from shimctl.backend import portable, portable_block
from shimctl.bundles import process_for
from shimctl.checks import check_id
from shimctl.launching import DEFAULT_RUNTIME, find_runtime, launch
from shimctl.process import check_finished, open_process
from shimctl.standalone import workdir
from shimctl.standalone.removal import dispose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api.mount_pb2 import Mount
    from shimctl.backend import Backend
    from shimctl.images import Image
    from shimctl.process import Process
    from shimctl.task import Task
    from shimctl.values import Finished, Stdio

_REMOVAL = 60  # s to remove a container, its shim and its directory


@portable
async def run(
    backend: Backend,
    source: str | Path | Image,
    command: Sequence[str] = (),
    *,
    input: bytes = b"",  # noqa: A002 - as subprocess names it
    timeout: float | None = None,
    check: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    id: str = "",  # noqa: A002 - the container's
    replace: bool = False,
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    options: AnyMessage | None = None,
    edit: Callable[[dict[str, Any]], object] | None = None,
) -> Finished:
    """Run a container to its end; return its exit status and its output.

    ``input`` is written to its stdin.  ``timeout``, in seconds, begins when the command
    starts.  The container, its shim and its files are removed before this returns or
    raises.  The other parameters are those of :func:`shimctl.spawn`.

    :raises RunTimedOutError: it still ran after ``timeout`` seconds and was killed; the
        error has its output.
    :raises ExitStatusError: with ``check``, the exit status is not 0.
    """
    async with spawn.on(backend)(
        source,
        command,
        stdin=bool(input),
        env=env,
        cwd=cwd,
        user=user,
        id=id,
        replace=replace,
        namespace=namespace,
        runtime=runtime,
        options=options,
        edit=edit,
    ) as process:
        finished = await process.communicate(input, timeout=timeout)
    return check_finished(finished, process.task.id) if check else finished


@portable_block
async def spawn(
    backend: Backend,
    source: str | Path | Image,
    command: Sequence[str] = (),
    *,
    stdin: bool = False,
    terminal: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    id: str = "",  # noqa: A002 - the container's
    replace: bool = False,
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    options: AnyMessage | None = None,
    events: str | Path = "",
    edit: Callable[[dict[str, Any]], object] | None = None,
) -> AsyncIterator[Process]:
    """Run a container for the block; yield its init process with its streams.

    ``source`` is the directory of a bundle, an image such as ``oci:LAYOUT:TAG``, or an
    :class:`~shimctl.images.Image`.  ``command`` replaces the command of either, ``env`` adds
    variables, ``cwd`` and ``user`` replace theirs.  ``edit`` is called with the object of
    config.json before it is written, for all else.

    With ``stdin`` the block has the container's stdin, else it reads /dev/null.  A
    container without an ``id`` gets a new one.  ``replace`` first ends and removes an
    earlier container with this ``id``, which a program that was killed left behind.
    ``options`` are those of :func:`shimctl.runc_options`; ``events`` is the socket that the
    shim sends events to.

    The end of the block kills the container, unless it has exited, and removes it, its
    shim and its files.  So does a failure or a cancellation on the way.

    :raises InvalidError: the id, the namespace or the source is not valid; nothing was
        started.
    :raises ExistsError: the namespace has a container with this ``id``, and ``replace`` is
        False.
    :raises NotFoundError: there is no such bundle, image or runtime.
    :raises ShimError: the runtime cannot start the container; the message is the runtime's.
    :raises RemainsError: a part of the container cannot be removed.
    """
    check_id(namespace, "namespace")
    name = check_id(id) if id else workdir.new_id(_name_of(source))
    binary = find_runtime(runtime)
    variables = [f"{key}={value}" for key, value in (env or {}).items()]
    rootfs: Callable[[Path], Sequence[Mount]] | None = None
    if (image := await _image_of(backend, source)) is None:
        config = workdir.config_of(Path(str(source)).absolute())
        config["process"] = process_for(
            config,
            command or config["process"].get("args", ()),
            terminal=terminal,
            env=variables,
            cwd=cwd,
            user=user,
        )
    else:
        from shimctl.images import Overrides, mounts_for  # late: they load trio

        overrides = Overrides(
            args=command,
            env=variables,
            working_dir=cwd,
            hostname=name[:64],  # Linux limits a host name to 64 bytes
            terminal=terminal,
            cgroup=f"/shimctl.{namespace}.{name}",
        )
        config = image.oci_config(user=user, overrides=overrides)
        rootfs = partial(mounts_for, image, hostname=overrides.hostname)
    if edit is not None:
        edit(config)
    if replace and (earlier := workdir.path_of(namespace, name)).exists():
        await dispose.on(backend)(earlier, name, namespace)
    work = workdir.make(config, namespace, name)
    directory = os.open(work, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def is_ours() -> bool:
        """Return whether no other program has replaced the container."""
        try:
            return os.path.samestat(os.fstat(directory), work.stat())
        except FileNotFoundError:
            return False

    async def create(stdio: Stdio) -> Task:
        await shim.create(name, work, stdio=stdio, rootfs=mounts, options=options)
        return shim.task(name)

    async def remove() -> None:
        await dispose.on(backend)(work, name, namespace)

    try:
        write_file(work / "shim-binary-path", binary)
        mounts = await backend.in_thread(partial(rootfs, work)) if rootfs else ()
        launched = await launch.on(backend)(
            work, name, namespace=namespace, runtime=binary, events=events
        )
        async with (
            backend.connect(launched.address, namespace=namespace) as shim,
            open_process(backend, create, work, stdin=stdin, terminal=terminal) as process,
        ):
            yield process
    finally:
        try:
            if is_ours():
                await backend.run_shielded(remove, _REMOVAL)
            if is_ours():
                raise TimedOutError(
                    f"cannot remove {name} within {_REMOVAL} s; run `shimctl delete -f {name}`"
                )
        finally:
            os.close(directory)


async def _image_of(backend: Backend, source: str | Path | Image) -> Image | None:
    if isinstance(source, Path):
        return None
    if not isinstance(source, str):
        return source
    from shimctl.images.reference import is_reference

    if not is_reference(source):
        return None
    from shimctl.images import prepare

    return await backend.run_on_trio(partial(prepare, source))


def _name_of(source: str | Path | Image) -> Path:
    text = source if isinstance(source, str | Path) else source.reference
    return Path(str(text)).absolute()
