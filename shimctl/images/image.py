"""Prepare an image: :func:`prepare` unpacks it and returns an :class:`Image`.

skopeo copies the image into a private layout and checks every digest, the names in
each layer are checked, and umoci unpacks the layers and checks every diff id.  All
containers of all images with the same layers in the same order share the resulting
read-only directory.
"""

from __future__ import annotations

import os
import platform as host
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from shim.errors import InvalidError
from shim.scope import background
from shimctl.images import confined, platforms, tools
from shimctl.images import reference as references
from shimctl.images.accounts import find_user
from shimctl.images.config import ImageConfig, Overrides, read_image_config, runtime_config
from shimctl.images.decompress import decompressed
from shimctl.images.layout import Layout
from shimctl.images.source import Described, describe
from shimctl.images.step import Step
from shimctl.images.store import Record, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shimctl.images.manifest import Descriptor
    from shimctl.images.platforms import Platform
    from shimctl.images.reference import Reference
    from shimctl.images.store import Partial

_POLL = 0.1  # s between two progress reports while copying


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image.

    ``digest`` is that of its manifest, or for a docker-archive that of its
    configuration, which Docker uses as the image id; ``layers`` are directories,
    uppermost first.
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
        overrides: Overrides | None = None,
    ) -> dict[str, Any]:
        """Return the config.json of a bundle with the rootfs of :func:`shimctl.images.mounts_for`.

        ``args`` replace the image's command but not its entrypoint; ``env`` are
        ``NAME=VALUE``; ``overrides``, if given, replaces these arguments and holds
        all other settings.

        :raises InvalidError: there is no command, or an argument is malformed.
        :raises NotFoundError: the image has no such user.
        """
        if overrides is None:
            overrides = Overrides(args=args, env=env, terminal=terminal)
        return runtime_config(
            self.config,
            find_user(self.layers[0], user or self.config.user),
            overrides,
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
    """Unpack the image ``reference`` unless the store has it already.

    ``store`` defaults to SHIMCTL_IMAGES or /var/lib/trio-shim/images, ``platform``,
    such as ``linux/arm64``, to this machine's; ``progress`` is called with each step.

    :raises NotFoundError: a file, a tag, the platform, a blob, or a tool is missing.
    :raises InvalidError: it is not an image, it is damaged, or a layer leads outside.
    :raises ShimError: another failure, such as a full disk.
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
        layout, rootfs = Layout(ours.path / "layout"), ours.path / "rootfs"
        await _copy(source, image, wanted, ours, report)
        layers = _copied_layers(layout, image, source)
        await _check(layout, layers, report)
        await _unpack_layers(layout.path, rootfs, layers, source, ours, report)
        report(Step("writing to disk"))
        # Sync before the rename, so that after a power cut the name has its files.
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
            # skopeo unpacks archives into the scratch directory first.
            report(Step("reading", sum(_file_sizes(ours.path / "layout")), image.size))
            await trio.sleep(_POLL)

    async with background(watch):
        file = source
        if source.kind == references.DOCKER_ARCHIVE:
            file = replace(source, path=await decompressed(source.path, ours.path))
        await tools.copy(file, wanted, ours.path / "layout", ours.path, ours.lock)


def _copied_layers(layout: Layout, image: Described, source: Reference) -> tuple[Descriptor, ...]:
    """Check that the private layout is the described image, and return its layers."""
    if layout.diff_ids() != image.diff_ids:
        raise InvalidError(f"{source} changed while it was read; try again")
    layers = layout.manifest().layers
    if len(layers) != len(image.diff_ids):
        raise InvalidError(
            f"{source}: the manifest and the config disagree on the number of layers"
        )
    layout.correct_types()
    return layers


async def _check(
    layout: Layout, layers: tuple[Descriptor, ...], report: Callable[[Step], None]
) -> None:
    total = sum(layer.size for layer in layers)
    report(Step("checking", 0, total))
    await confined.check_layers(
        [(layout.blob(layer.digest), layer.digest) for layer in layers],
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
        # umoci prints the digest of each layer when it begins.
        if (digest := text.rpartition("unpack layer: ")[2].strip()) in sizes:
            report(Step("unpacking", begun, total))
            begun += sizes[digest]

    report(Step("unpacking", 0, total))
    await tools.unpack(layout, rootfs, source, ours.lock, line)


def _file_sizes(directory: Path) -> Iterator[int]:
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                yield (Path(folder) / name).lstat().st_size
            except FileNotFoundError:
                continue


def _size(rootfs: Path) -> int:
    """Return the bytes on disk; hard links count once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, folders, names in os.walk(rootfs):
        for name in (*folders, *names):
            status = (Path(folder) / name).lstat()
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _ignore(step: Step) -> None:
    del step
