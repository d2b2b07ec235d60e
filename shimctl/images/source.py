"""Read the index, manifest and configuration of one image in a layout or an archive.

Only the small JSON blobs are read here, each after its digest was checked; skopeo
reads the layers.  An error about a missing name lists the names that exist.

Source: the OCI image specification, image-layout.md; Docker's image tar format.
"""

from __future__ import annotations

import lzma
import os
import stat
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shim.errors import InvalidError, NotFoundError, ShimError
from shimctl.images.archives import DAMAGED, open_archive
from shimctl.images.manifest import (
    Archived,
    Descriptor,
    chain_id,
    digest_of,
    is_index,
    platform_of,
    read_archived,
    read_diff_ids,
    read_index,
    read_manifest,
    read_object,
)
from shimctl.images.reference import DOCKER_ARCHIVE, OCI, full_name

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterable, Iterator

    from shimctl.images.platforms import Platform
    from shimctl.images.reference import Reference

_LARGEST = 8 << 20  # bytes of JSON; container registries allow 4 MiB
_DEEPEST = 4  # indexes of indexes
_SHOWN = 12  # names in an error


@dataclass(frozen=True, slots=True)
class Described:
    """An image as its source describes it.

    ``digest`` is that of the manifest, or for a docker-archive that of the
    configuration, which Docker uses as the image id.  ``size`` is the bytes of the
    layers in the source, 0 if unknown.
    """

    digest: str
    config: dict[str, Any]
    diff_ids: tuple[str, ...]
    platform: Platform
    size: int = 0

    @property
    def chain(self) -> str:
        return chain_id(self.diff_ids)


class _Files(Protocol):
    def read(self, name: str) -> bytes: ...

    def size(self, name: str) -> int: ...


class _Directory:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes:
        # O_NONBLOCK: the open of a fifo would block.
        fd = os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(name)
        with open(fd, "rb") as file:
            return file.read(_LARGEST + 1)

    def size(self, name: str) -> int:
        return (self._path / name).stat().st_size


class _Archive:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members = {member.name.removeprefix("./"): member for member in archive}

    def read(self, name: str) -> bytes:
        file = self._archive.extractfile(self._member(name))
        if file is None:
            raise FileNotFoundError(name)
        return file.read(_LARGEST + 1)

    def size(self, name: str) -> int:
        return self._member(name).size

    def _member(self, name: str) -> tarfile.TarInfo:
        try:
            return self._members[name]
        except KeyError:
            raise FileNotFoundError(name) from None


def describe(reference: Reference, platform: Platform) -> Described:
    """Read the description of the image ``reference`` for ``platform``.

    :raises NotFoundError: there is no such file, image, platform or blob.
    :raises InvalidError: it is not an image, or a digest is wrong.
    """
    with _open_files(reference) as files:
        if reference.kind == DOCKER_ARCHIVE:
            return _describe_archived(files, reference, platform)
        return _describe_layout(files, reference, platform)


@contextmanager
def _open_files(reference: Reference) -> Iterator[_Files]:
    path = reference.path
    try:
        if reference.kind == OCI:
            if not path.is_dir():
                raise NotFoundError(f"there is no directory {path}")
            yield _Directory(path)
            return
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidError(f"{path} is not a file, so not a {reference.kind}")
        with open_archive(path) as archive:
            yield _Archive(archive)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except (*DAMAGED, OSError, zlib.error, lzma.LZMAError) as exc:
        if isinstance(exc, OSError) and exc.strerror:
            raise ShimError(f"cannot read {path}: {exc.strerror}") from None
        raise InvalidError(f"{path} is truncated, or not an archive") from None


def _describe_layout(files: _Files, reference: Reference, platform: Platform) -> Described:
    try:
        index = files.read("index.json")
    except FileNotFoundError:
        raise InvalidError(
            f"{reference.path} is not an OCI layout: it has no index.json"
        ) from None
    entries = read_index(index, f"index.json of {reference.path}")
    chosen = _by_name(entries, reference)
    data = _read_blob(files, chosen, reference)
    offered: list[Platform] = []
    for _ in range(_DEEPEST):
        what = f"{chosen.digest} of {reference.path}"
        if not (chosen.is_index or is_index(data, what)):
            break
        entries = read_index(data, what)
        offered = [entry.platform for entry in entries]
        fitting = [entry for entry in entries if platform.runs(entry.platform)]
        if not fitting:
            raise _no_platform(reference, platform, offered)
        chosen = fitting[0]
        data = _read_blob(files, chosen, reference)
    manifest = read_manifest(data, f"manifest {chosen.digest} of {reference.path}")
    raw = _read_blob(files, manifest.config, reference)
    what = f"config {manifest.config.digest} of {reference.path}"
    config = read_object(raw, what)
    own = platform_of(config)
    if not platform.runs(own):
        raise _no_platform(reference, platform, [own])
    for layer in manifest.layers:
        _check_size(files, layer, reference)
    size = sum(layer.size for layer in manifest.layers)
    return Described(chosen.digest, config, read_diff_ids(config, what), own, size)


def _by_name(entries: tuple[Descriptor, ...], reference: Reference) -> Descriptor:
    named = [entry for entry in entries if entry.name == reference.name]
    if reference.name and named:
        return named[0]
    if not reference.name and len(entries) == 1:
        return entries[0]
    if not entries:
        raise NotFoundError(f"{reference.path} has no images")
    names = sorted({entry.name for entry in entries if entry.name})
    raise _no_name(reference, "tag", names)


def _describe_archived(files: _Files, reference: Reference, platform: Platform) -> Described:
    what = f"manifest.json of {reference.path}"
    try:
        images = read_archived(files.read("manifest.json"), what)
    except FileNotFoundError:
        raise InvalidError(
            f"{reference.path} is not a docker-archive: it has no manifest.json"
        ) from None
    image = _by_full_name(images, reference)
    what = f"config {image.config} of {reference.path}"
    try:
        raw = files.read(image.config)
        size = sum(files.size(layer) for layer in image.layers)
    except FileNotFoundError as exc:
        raise NotFoundError(f"{reference.path} lacks {exc}") from None
    digest = digest_of(raw)
    named = Path(image.config).stem
    if len(named) == 64 and digest != f"sha256:{named}":
        raise _wrong_digest(f"sha256:{named}", digest, reference)
    config = read_object(raw, what)
    own = platform_of(config)
    if not platform.runs(own):
        raise _no_platform(reference, platform, [own])
    diff_ids = read_diff_ids(config, what)
    if len(diff_ids) != len(image.layers):
        raise InvalidError(
            f"{what} lists {len(diff_ids)} layers, but there are {len(image.layers)}"
        )
    return Described(digest, config, diff_ids, own, size)


def _by_full_name(images: tuple[Archived, ...], reference: Reference) -> Archived:
    wanted = full_name(reference.name)
    for image in images:
        if reference.name and wanted in map(full_name, image.names):
            return image
    if not reference.name and len(images) == 1:
        return images[0]
    if not images:
        raise NotFoundError(f"{reference.path} has no images")
    raise _no_name(reference, "image", sorted(name for image in images for name in image.names))


def _read_blob(files: _Files, blob: Descriptor, reference: Reference) -> bytes:
    try:
        data = files.read(_blob_name(blob))
    except FileNotFoundError:
        raise NotFoundError(f"{reference.path} lacks blob {blob.digest}") from None
    if len(data) > _LARGEST:
        raise InvalidError(f"blob {blob.digest} of {reference.path} is too long for a manifest")
    found = digest_of(data, blob.digest)
    if found != blob.digest:
        raise _wrong_digest(blob.digest, found, reference)
    return data


def _check_size(files: _Files, layer: Descriptor, reference: Reference) -> None:
    try:
        size = files.size(_blob_name(layer))
    except FileNotFoundError:
        raise NotFoundError(f"{reference.path} lacks layer {layer.digest}") from None
    if size != layer.size:
        raise InvalidError(
            f"layer {layer.digest} of {reference.path} has {size} bytes, not {layer.size}"
        )


def _blob_name(blob: Descriptor) -> str:
    return "blobs/" + blob.digest.replace(":", "/")


def _wrong_digest(wanted: str, found: str, reference: Reference) -> InvalidError:
    return InvalidError(f"{reference.path} is damaged: blob {wanted} has the digest {found}")


def _no_name(reference: Reference, what: str, names: list[str]) -> NotFoundError:
    there = _listed(names) or f"none that has a {what if what == 'tag' else 'name'}"
    if reference.name:
        return NotFoundError(f"{reference.path} has no {what} {reference.name}; there is {there}")
    return NotFoundError(f"{reference.path} has several; name the {what}; there is {there}")


def _no_platform(
    reference: Reference, wanted: Platform, offered: Iterable[Platform]
) -> NotFoundError:
    # Builders list attestations, which are not images, under unknown/unknown.
    there = _listed(list(dict.fromkeys(str(p) for p in offered if p.os != "unknown")))
    return NotFoundError(f"{reference} is not for {wanted}; there is {there or 'nothing else'}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
