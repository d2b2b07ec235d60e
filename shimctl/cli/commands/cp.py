"""cp: copy files between a container and the host."""

from __future__ import annotations

import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import CONTAINER, Where, search_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from click.shell_completion import CompletionItem

    from shimctl.discover import Found
    from shimctl.host.containerroot import ContainerRoot


def _complete(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    from click.shell_completion import CompletionItem

    if ":" in incomplete or "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    found = CONTAINER.shell_complete(ctx, param, incomplete)
    named = [CompletionItem(f"{item.value}:", help=item.help) for item in found]
    return [*named, CompletionItem(incomplete, type="file")]


@declare("cp", example="shimctl cp redis:/data/dump.rdb ./backup/")
@click.argument(
    *("source",),
    metavar="SOURCE",
    shell_complete=_complete,
    help="ID:PATH of the container, PATH of this host, or - for a tar on stdin.",
)
@click.argument(
    *("destination",),
    metavar="DESTINATION",
    shell_complete=_complete,
    help="ID:PATH of the container, PATH of this host, or - for a tar on stdout.",
)
@click.option("-a", "--archive", is_flag=True, help="Keep the container's uids and gids.")
@click.option(
    *("-L", "--follow-link"), is_flag=True, help="If SOURCE is a link, copy what it leads to."
)
@search_options
async def command(
    source: str, destination: str, archive: bool, follow_link: bool, where: Where
) -> int:
    """Copy files between a container and the host.

    A directory is copied into an existing directory, or becomes the new DESTINATION;
    `DIRECTORY/.` copies only its content.  Links inside the container are resolved inside
    it.  Copies belong to the calling user, and in the container to its root, unless -a is
    given.  A copy into a container prints its id.

    This also works for a paused container, for a running one with a dead shim, and for an
    exited one while its rootfs is mounted.
    """
    from shim.errors import InvalidError
    from shim.text import printable
    from shimctl.host.copying import copy, from_tar, sides, to_tar

    (id_, path), (target_id, target_path) = _place(source), _place(destination)
    if bool(id_) == bool(target_id):
        which = "one of the two must be" if not id_ else "only one of the two may be"
        raise InvalidError(f"{which} a file of a container, ID:PATH")
    if "" in (path, target_path):
        raise InvalidError("the path is empty; use ID:/ for the root of a container")
    if "-" in (path if not id_ else "", target_path if not target_id else ""):
        _check_no_terminal(reading=bool(target_id))
    if target_id:
        found = await where.find_to_change(target_id)
    else:
        found = await where.find(id_)
    skipped: Sequence[str] = ()
    async with _opened(found) as root:
        host, container = sides(root, archive=archive)
        if target_id and path == "-":
            _, kept = sides(root, archive=True)  # a tar has the container's numbers
            from_tar(sys.stdin.buffer, kept, target_path)
        elif target_id:
            skipped = copy(host, path, container, target_path, follow=follow_link)
        elif target_path == "-":
            to_tar(container, path, sys.stdout.buffer, follow=follow_link)
            sys.stdout.buffer.flush()
        else:
            skipped = copy(container, path, host, target_path, follow=follow_link)
    if skipped:
        names = ", ".join(map(printable, skipped[:3])) + (", ..." if skipped[3:] else "")
        print(f"shimctl: cp left out {len(skipped)} device files: {names}", file=sys.stderr)
    if target_id:
        print(printable(found.id))
    return 0


def _place(text: str) -> tuple[str, str]:
    """Split ``ID:PATH``; the id of a path of this host is empty.

    Source: Docker's reference of ``docker container cp``: ``./a:b`` is a path of the host.
    """
    before, colon, path = text.partition(":")
    return (before, path) if before and colon and "/" not in before else ("", text)


def _check_no_terminal(*, reading: bool) -> None:
    from shim.errors import InvalidError

    stream, name = (sys.stdin, "stdin") if reading else (sys.stdout, "stdout")
    if stream.isatty():
        raise InvalidError(f"- is a tar on {name}, which is a terminal; redirect it")


@asynccontextmanager
async def _opened(found: Found) -> AsyncIterator[ContainerRoot]:
    from shim.errors import NotFoundError, UnavailableError
    from shimctl.cli.connected import state_of
    from shimctl.host.containerroot import open_root
    from shimctl.values import Status

    try:
        state = await state_of(found)
    except UnavailableError as exc:
        if not found.bundle:
            raise
        with _opened_without_shim(found, exc) as root:
            yield root
        return
    running = state.status is not Status.STOPPED
    with open_root(found.id, state.pid if running else 0, found.bundle or state.bundle) as root:
        # If the process still runs, its pid was not reused before it was opened.
        if running and (await state_of(found)).status is Status.STOPPED:
            raise NotFoundError(f"{found.id} exited meanwhile; try again")
        yield root


@contextmanager
def _opened_without_shim(found: Found, failure: Exception) -> Iterator[ContainerRoot]:
    """Open the root of the init process, whose shim is dead."""
    from shim.errors import UnavailableError, WrongStateError
    from shimctl.host.containerroot import open_root
    from shimctl.host.initprocess import open_init

    with ExitStack() as stack:
        try:
            init = stack.enter_context(open_init(found.id, found.namespace, found.bundle))
            root = stack.enter_context(open_root(found.id, init.pid, found.bundle))
            init.check()  # so the root is that of this process
        except WrongStateError as exc:
            raise UnavailableError(f"{exc}, and {failure}") from None
        yield root
