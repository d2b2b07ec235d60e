"""Run a container of ``shimctl run`` or ``create`` again, after it has exited.

The working directory has all that a run needs: config.json, ``run.json`` and the files that
the container wrote.  A new shim gets the directory as a new bundle, without the files of the
earlier shim; the log is continued.  Events that no manager has acknowledged stay for the new
shim.

If the run fails, the directory still has the exit record of the earlier run.  So the container
counts as exited and can be started again.

Source: Docker's references of ``docker container start`` and ``restart`` for the behaviour.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import records
from shim.errors import NotFoundError, WrongStateError
from shim.linux.modes import make_directory
from shim.linux.removal import check_unmounted, remove_tree
from shimctl.attach.hub import LOCK as ATTACH_LOCK
from shimctl.attach.hub import SOCKET as ATTACH_SOCKET
from shimctl.images.store import LINK
from shimctl.standalone import runlock, settings
from shimctl.standalone.detached import LOG
from shimctl.standalone.journals import JOURNAL
from shimctl.standalone.removal import end, is_alone, keep_exit
from shimctl.standalone.run import CLEANUP, start_detached
from shimctl.standalone.runlock import Part
from shimctl.standalone.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shimctl.discover import Found

# The files of a run that the next run keeps, beside the log and its numbered old parts.
_KEPT = frozenset(
    {
        *("config.json", settings.FILE, runlock.FILE, "shim-binary-path", "init.exit"),
        *(LINK, JOURNAL, ATTACH_LOCK, ATTACH_SOCKET),
    }
)


_OF_RUN = frozenset({"stdin", "stdout", "stderr", "log.json"})  # of the container, not of its shim


async def run_again(found: Found, stop: Callable[[], Awaitable[object]] | None = None) -> int:
    """Run an exited container of ``shimctl`` again; return the pid of its init process.

    ``stop`` is called first, if it is given, to end the container.  No other command can
    start or remove it meanwhile.

    :raises NotFoundError: it has no settings, as a container of the library.
    :raises WrongStateError: another command changes it, or it runs in the foreground of a
        `shimctl run`.
    :raises RemainsError: processes or mounts of the run before remain.
    """
    work = Path(found.bundle)
    try:
        kept = read_settings(work)
    except NotFoundError:
        raise WrongStateError(
            f"cannot run {found.id} again: the program that made it kept no settings; "
            f"`shimctl rm {found.id}` deletes it"
        ) from None
    if runlock.is_held(work, Part.FOREGROUND):
        raise WrongStateError(
            f"cannot run {found.id} again: it runs in the foreground of a `shimctl run`, "
            "which deletes it at its end"
        )
    with runlock.held(work, Part.CHANGE):
        if stop is not None:
            await stop()
        shared = bool(found.address) and not is_alone(work, found.address)
        last = keep_exit(work, await end(work, found.id, found.namespace, found.address))
        await trio.to_thread.run_sync(_clear, work, shared)
        following = kept.next()
        following.write(work)
        try:
            pid = await start_detached(work, found.id, found.namespace, following)
        except BaseException:
            with trio.move_on_after(CLEANUP, shield=True):
                with suppress(Exception):  # `shimctl rm` reports the remains
                    await end(work, found.id, found.namespace)
                records.write_exit(str(work), last)
            raise
        # The trio shim removes it at Create, and may have written that of the new run.
        if records.read_exit(str(work)) == last:
            records.remove_exit(str(work))
        return pid


def _clear(work: Path, shared: bool) -> None:
    """Remove the files of the ended run.

    A shim that still serves other containers, ``shared``, keeps its own files there.

    :raises WrongStateError: a file system is still mounted in the directory.
    """
    check_unmounted(work)
    for path in work.iterdir():
        if path.name in _KEPT or path.name == LOG or path.name.startswith(f"{LOG}."):
            continue
        if shared and path.name not in _OF_RUN:
            continue
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    make_directory(work / "work", exist_ok=True)
