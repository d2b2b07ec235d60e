"""images: list, prepare and remove unpacked images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shimctl.cli.app import Group, declare
from shimctl.cli.parameters import FILE, output_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shimctl.cli.output import Out
    from shimctl.images import Store
    from shimctl.images.store import Record, Use

_SHOWN = 12  # digits of a digest in a table
_LEAST = 4  # the fewest digits of a digest's prefix


@declare("images", example="shimctl images rm --unused", cls=Group, invoke_without_command=True)
@output_options
@click.pass_context
def command(ctx: click.Context, out: Out) -> None:
    """List, unpack or remove the images of containers.

    Their directory is SHIMCTL_IMAGES, or /var/lib/trio-shim/images.  An image that a
    container uses is not removed.
    """
    if ctx.invoked_subcommand is None:
        _list(out)


@command.command("ls")
@output_options
def list_images(out: Out) -> None:
    """List the unpacked images, as `shimctl images` does."""
    _list(out)


@command.command("prepare")
@click.argument("image", metavar="IMAGE", type=FILE, help="As for `shimctl run`.")
@click.option(
    "--platform", default="", metavar="OS/ARCH", help="The platform (default: this machine's)."
)
@output_options
async def prepare_image(image: str, platform: str, out: Out) -> None:
    """Unpack an image for later containers."""
    from shimctl.cli.progress import open_progress
    from shimctl.images import prepare

    with open_progress() as progress:
        done = await prepare(image, platform=platform, progress=progress)
    out.show({"digest": done.digest, "reference": done.reference}, lambda: done.digest)


@command.command("rm")
@click.argument(
    *("images",),
    metavar="[IMAGE...]",
    type=FILE,
    nargs=-1,
    help="A reference, a digest, or a unique prefix of a digest.",
)
@click.option("--unused", is_flag=True, help="All images that no container uses.")
@output_options
async def remove_images(images: tuple[str, ...], unused: bool, out: Out) -> None:
    """Remove images, and print their digests."""
    from shim.errors import InvalidError, NotFoundError
    from shim.text import printable
    from shimctl.images import Store

    if bool(images) == unused:
        raise InvalidError("`shimctl images rm` needs images or --unused, not both")
    store = Store()
    removed: list[str] = []
    if store.path.is_dir():
        store.make()
        store.sweep()
        removed = await (_remove_unused(store) if unused else _remove_these(store, images))
    elif not unused:
        raise NotFoundError(f"there are no images in {store.path}")
    out.show(removed, (lambda: "\n".join(map(printable, removed))) if removed else None)


def _list(out: Out) -> None:
    from shimctl.cli import render
    from shimctl.images import Store

    store = Store()
    uses = store.uses()
    images = [_value(record, uses) for record in store.records()]
    headers = ("DIGEST", "REFERENCE", "PLATFORM", "SIZE", "USED BY", "UNPACKED", "LAYERS")
    rows = [
        (
            *(_short(image["digest"]), " ".join(image["references"]) or None),
            *(image["platform"], render.size(image["size"]), " ".join(image["used_by"]) or None),
            *(image["unpacked"], _short(image["layers"])),
        )
        for image in images
    ]
    out.show_table(images, headers, rows, wide=2)


def _value(record: Record, uses: list[Use]) -> dict[str, Any]:
    from datetime import UTC, datetime
    from pathlib import Path

    return {
        "digest": record.digest,
        "references": record.references,
        "platform": record.platform,
        "size": record.size,
        "used_by": [Path(use.work).name for use in uses if use.digest == record.digest],
        "unpacked": datetime.fromtimestamp(record.created, UTC),
        "layers": record.chain,
    }


async def _remove_unused(store: Store) -> list[str]:
    from contextlib import suppress

    from shim.errors import WrongStateError

    removed = []
    used = {use.digest for use in store.uses()}
    for record in store.records():
        if record.digest not in used:
            with suppress(WrongStateError):  # a new container uses it
                await store.remove(record)
                removed.append(record.digest)
    await store.remove_strays()
    return removed


async def _remove_these(store: Store, texts: Iterable[str]) -> list[str]:
    # Find all before removing the first, so that a mistyped name removes nothing.
    records = store.records()
    found = list(dict.fromkeys(_find(records, text) for text in texts))
    for record in found:
        await store.remove(record)
    return [record.digest for record in found]


def _find(records: list[Record], text: str) -> Record:
    """Return the image with this reference, or with this prefix of its digest.

    :raises NotFoundError: there is no such image.
    :raises InvalidError: the prefix matches several images, or is too short.
    """
    from shim.errors import InvalidError, NotFoundError
    from shimctl.images import is_reference
    from shimctl.images.reference import parse

    if is_reference(text):
        name = str(parse(text).absolute())
        found = [record for record in records if name in record.references]
    else:
        digits = text.rpartition(":")[2]
        if len(digits) < _LEAST:
            raise InvalidError(f"{text!r} is too short for a digest; use {_LEAST} digits or more")
        found = [r for r in records if r.digest.rpartition(":")[2].startswith(digits)]
    if not found:
        raise NotFoundError(f"there is no image {text}; `shimctl images` lists them")
    if len(found) > 1:
        raise InvalidError(f"{text} matches {len(found)} digests; use more digits")
    return found[0]


def _short(digest: str) -> str:
    return digest.rpartition(":")[2][:_SHOWN]
