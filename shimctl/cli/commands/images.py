"""images: list, prepare and remove unpacked images."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.errors import InvalidError, NotFoundError, WrongStateError
from shim.text import printable
from shimctl.cli import render
from shimctl.cli.commands.output import show, show_table
from shimctl.cli.progress import open_progress
from shimctl.images import Store, is_reference, prepare
from shimctl.images.reference import parse

if TYPE_CHECKING:
    from argparse import Namespace

    from shimctl.images.store import Record, Use

_SHOWN = 12  # digits of a digest in a table
_LEAST = 4  # the fewest digits of a digest's prefix


async def _images(args: Namespace) -> int:
    match args.verb:
        case "prepare":
            return await _prepare(args)
        case "rm":
            return await _remove(args)
        case _:
            return _list(args)


def _list(args: Namespace) -> int:
    store = Store()
    uses = store.uses()
    images = [_value(record, uses) for record in store.records()]
    headers = ("DIGEST", "REFERENCE", "PLATFORM", "SIZE", "USED BY", "UNPACKED", "LAYERS")
    rows = [
        (
            *(_short(image["digest"]), " ".join(image["references"]) or None),
            *(image["platform"], render.size(image["size"]), " ".join(image["used_by"]) or None),
            *(image["unpacked"].isoformat(" ", "seconds"), _short(image["layers"])),
        )
        for image in images
    ]
    show_table(args, images, headers, rows, wide=2)
    return 0


def _value(record: Record, uses: list[Use]) -> dict[str, Any]:
    return {
        "digest": record.digest,
        "references": record.references,
        "platform": record.platform,
        "size": record.size,
        "used_by": [Path(use.work).name for use in uses if use.digest == record.digest],
        "unpacked": datetime.fromtimestamp(record.created, UTC),
        "layers": record.chain,
    }


async def _prepare(args: Namespace) -> int:
    with open_progress() as progress:
        image = await prepare(args.image, platform=args.platform, progress=progress)
    shown = {"digest": image.digest, "reference": image.reference}
    show(args, shown, lambda: image.digest)
    return 0


async def _remove(args: Namespace) -> int:
    if bool(args.images) == args.unused:
        raise InvalidError("`shimctl images rm` needs images or --unused, not both")
    store = Store()
    removed: list[str] = []
    if store.path.is_dir():
        store.make()
        store.sweep()
        removed = await (
            _remove_unused(store) if args.unused else _remove_these(store, args.images)
        )
    elif not args.unused:
        raise NotFoundError(f"there are no images in {store.path}")
    show(args, removed, (lambda: "\n".join(map(printable, removed))) if removed else None)
    return 0


async def _remove_unused(store: Store) -> list[str]:
    removed = []
    used = {use.digest for use in store.uses()}
    for record in store.records():
        if record.digest not in used:
            with suppress(WrongStateError):  # a new container uses it
                await store.remove(record)
                removed.append(record.digest)
    await store.remove_strays()
    return removed


async def _remove_these(store: Store, texts: list[str]) -> list[str]:
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


COMMANDS = {"images": _images}
