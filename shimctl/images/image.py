"""From a reference to an image that is unpacked: :func:`prepare` and :class:`Image`.

skopeo copies what was asked for into a private layout and checks every digest,
the names in each layer are looked at, umoci unpacks them and checks every
layer's diff id.  What is shared is the result: one read-only directory for all
containers of all images with the same layers in the same order.
"""

from __future__ import annotations

import os
import platform as host
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from shim.errors import InvalidError
from shim.scope import background
from shimctl.images import confined, platforms, tools
from shimctl.images import reference as references
from shimctl.images.accounts import find_user
from shimctl.images.config import ImageConfig, Wishes, read_image_config, runtime_config
from shimctl.images.manifest import read_diff_ids, read_index, read_manifest, read_object
from shimctl.images.source import Described, describe
from shimctl.images.step import Step
from shimctl.images.store import Record, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shimctl.images.manifest import Descriptor
    from shimctl.images.platforms import Platform
    from shimctl.images.reference import Reference
    from shimctl.images.store import Partial

_POLL = 0.1  # s between two looks at how much was copied


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is ready to run.

    ``digest`` is its manifest's, or for a docker-archive its configuration's,
    which Docker calls its id; ``layers`` are directories, uppermost first.
    """

    reference: str
    digest: str
    chain: str
    layers: tuple[Path, ...]
    config: ImageConfig
    store: Path

    def oci_config(
        self,
        args: Sequence[str] = (),
        env: Sequence[str] = (),
        *,
        terminal: bool = False,
        user: str = "",
        wishes: Wishes | None = None,
    ) -> dict[str, Any]:
        """Make the config.json for a bundle that :func:`mounts_for` gets.

        ``args`` replace the image's command but not its entrypoint; ``env`` are
        ``NAME=VALUE``; ``wishes`` say everything else, and the same again.

        :raises InvalidError: there is nothing to run, or an argument makes no sense.
        :raises NotFoundError: the image does not know the user.
        """
        if wishes is None:
            wishes = Wishes(args=args, env=env, terminal=terminal)
        return runtime_config(
            self.config,
            find_user(self.layers[0], user or self.config.user),
            wishes,
            what=self.reference,
            cgroup_v2=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        )


async def prepare(
    reference: str,
    *,
    store: Path | None = None,
    platform: str = "",
    progress: Callable[[Step], None] | None = None,
) -> Image:
    """Unpack the image ``reference`` if it is not there yet.

    ``store`` is SHIMCTL_IMAGES or /var/lib/trio-shim/images if not given;
    ``platform`` is this machine's, or ``linux/arm64`` and the like; ``progress``
    is told now and then what is being done.

    :raises NotFoundError: a file, a tag, the platform, a blob, or a tool is missing.
    :raises InvalidError: it is no image, or is damaged, or its layers lead outside.
    :raises ShimError: the disk is full, say.
    """
    source = references.parse(reference).absolute()
    wanted = platforms.parse(platform) if platform else platforms.of_machine(host.machine())
    images = Store(store)
    if source.kind == references.OCI:
        image = await trio.to_thread.run_sync(describe, source, wanted)
    else:
        image = await confined.describe_archive(source, wanted)
    config = read_image_config(image.config, f"config of {reference}")
    rootfs = images.rootfs(image.chain)
    if not _is_known(images, image, source):
        tools.check_tools()
        images.make()
        async with images.locked(image.chain):
            if not rootfs.is_dir():
                images.sweep()
                await _unpack(images, source, image, wanted, progress or _ignore)
            size = await trio.to_thread.run_sync(_size, rootfs)
            record = Record(image.digest, image.chain, str(image.platform), size, time.time())
            await images.remember(record, str(source))
    return Image(reference, image.digest, image.chain, (rootfs,), config, images.path)


def _is_known(images: Store, image: Described, source: Reference) -> bool:
    return images.rootfs(image.chain).is_dir() and any(
        record.digest == image.digest and str(source) in record.references
        for record in images.records()
    )


async def _unpack(
    images: Store,
    source: Reference,
    image: Described,
    wanted: Platform,
    report: Callable[[Step], None],
) -> None:
    with images.partial() as ours:
        layout, rootfs = ours.path / "layout", ours.path / "rootfs"
        await _copy(source, image, wanted, ours, report)
        layers = _copied_layers(layout, image, source)
        await _check(layout, layers, report)
        await _unpack_layers(layout, rootfs, layers, source, ours, report)
        report(Step("writing to disk"))
        # The name must not outlive a power cut that its files do not.
        await tools.run(["sync", "-f", str(rootfs)], "cannot write to disk", lock=ours.lock)
        rootfs.rename(images.rootfs(image.chain))


async def _copy(
    source: Reference,
    image: Described,
    wanted: Platform,
    ours: Partial,
    report: Callable[[Step], None],
) -> None:
    async def watch() -> None:
        while True:
            # Archives are unpacked into the scratch directory first.
            report(Step("reading", sum(_file_sizes(ours.path / "layout")), image.size))
            await trio.sleep(_POLL)

    async with background(watch):
        await tools.copy(source, wanted, ours.path / "layout", ours.path, ours.lock)


def _copied_layers(layout: Path, image: Described, source: Reference) -> tuple[Descriptor, ...]:
    """Return the layers of the private layout, once it is known to be the image described."""

    def read(descriptor: Descriptor) -> bytes:
        return _blob(layout, descriptor).read_bytes()

    (entry,) = read_index((layout / "index.json").read_bytes(), "our copy")
    manifest = read_manifest(read(entry), "our copy")
    config = read_object(read(manifest.config), "our copy")
    if read_diff_ids(config, "our copy") != image.diff_ids:
        raise InvalidError(f"{source} changed while it was read; try again")
    if len(manifest.layers) != len(image.diff_ids):
        raise InvalidError(f"{source} has not as many layers as its config says")
    return manifest.layers


async def _check(
    layout: Path, layers: tuple[Descriptor, ...], report: Callable[[Step], None]
) -> None:
    total = sum(layer.size for layer in layers)
    report(Step("checking", 0, total))
    await confined.check_layers(
        [(_blob(layout, layer), layer.digest) for layer in layers],
        lambda done: report(Step("checking", done, total)),
    )


async def _unpack_layers(
    layout: Path,
    rootfs: Path,
    layers: tuple[Descriptor, ...],
    source: Reference,
    ours: Partial,
    report: Callable[[Step], None],
) -> None:
    sizes = {layer.digest: layer.size for layer in layers}
    total, begun = sum(layer.size for layer in layers), 0

    def line(text: str) -> None:
        nonlocal begun
        # umoci names each layer when it begins with it.
        if (digest := text.rpartition("unpack layer: ")[2].strip()) in sizes:
            report(Step("unpacking", begun, total))
            begun += sizes[digest]

    report(Step("unpacking", 0, total))
    await tools.unpack(layout, rootfs, source, ours.lock, line)


def _blob(layout: Path, descriptor: Descriptor) -> Path:
    return layout / "blobs" / descriptor.digest.replace(":", "/")


def _file_sizes(directory: Path) -> Iterator[int]:
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                yield (Path(folder) / name).lstat().st_size
            except FileNotFoundError:
                continue


def _size(rootfs: Path) -> int:
    """Count the disk's bytes, hard links once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, folders, names in os.walk(rootfs):
        for name in (*folders, *names):
            status = (Path(folder) / name).lstat()
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _ignore(step: Step) -> None:
    del step
