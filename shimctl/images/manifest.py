"""Reads the JSON of an image: indexes, manifests and configurations.

Bytes in, values out; no I/O happens here.  Unknown fields are ignored.  A missing
field is an error that names the document.  ``what`` is the document's name in errors.

Source: the OCI image specification: image-layout.md, image-index.md,
manifest.md, config.md ("Layer ChainID"); Docker's manifest of schema 2, which
differs in its media types only; Docker's image tar format v1.2 (manifest.json).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shim import jsontext
from shim.errors import InvalidError
from shimctl.images.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Sequence

REF_NAME = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})", re.ASCII)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_NO_PLATFORM = Platform("", "")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to one blob of an image, or to one image of an index.  ``size`` is in bytes."""

    digest: str
    size: int
    media_type: str = ""
    name: str = ""
    platform: Platform = _NO_PLATFORM

    @property
    def is_index(self) -> bool:
        return self.media_type in _INDEXES


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Archived:
    """One image of a docker-archive.

    ``config`` and ``layers`` are names of entries in the archive, the lowest layer first.
    ``names`` are the image's Docker names.
    """

    config: str
    names: tuple[str, ...]
    layers: tuple[str, ...]


def digest_of(data: bytes, like: str = "sha256:") -> str:
    """Return the digest of ``data`` by the algorithm of ``like``."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def read_object(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object.

    :raises InvalidError: ``data`` is not a JSON object.
    """
    try:
        found = jsontext.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidError(f"{what} is not a JSON object")
    return found


def read_index(data: bytes, what: str) -> tuple[Descriptor, ...]:
    """Read the list of manifests in an index.

    :raises InvalidError: ``data`` is not an index.
    """
    listed = read_object(data, what).get("manifests")
    if not isinstance(listed, list):
        raise InvalidError(f"{what} lists no manifests")
    return tuple(_descriptor(entry, what) for entry in listed)


def is_index(data: bytes, what: str) -> bool:
    """Return whether ``data`` is an index and not a manifest, by its content.

    This is for a blob without a media type in its descriptor.
    """
    return isinstance(read_object(data, what).get("manifests"), list)


def read_manifest(data: bytes, what: str) -> Manifest:
    """Read the manifest of an image.

    :raises InvalidError: ``data`` is not a manifest, or not that of an image: for
        example, it has no configuration.
    """
    found = read_object(data, what)
    layers = found.get("layers")
    if found.get("config") is None or not isinstance(layers, list):
        raise InvalidError(f"{what} is not an image manifest: it has no config, or no layers")
    config = _descriptor(found["config"], what)
    if config.media_type not in _CONFIGS:
        media_type = config.media_type or "untyped"
        raise InvalidError(f"{what} is not an image: its config is {media_type}")
    return Manifest(config, tuple(_descriptor(layer, what) for layer in layers))


def read_diff_ids(config: dict[str, Any], what: str) -> tuple[str, ...]:
    """Return the digests of the layers' uncompressed tars, lowest first.

    :raises InvalidError: the configuration has no list of digests.
    """
    rootfs = config.get("rootfs")
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(listed, list):
        raise InvalidError(f"{what} is not an image config: it lists no layers (rootfs.diff_ids)")
    return tuple(_digest(entry, what) for entry in listed)


def platform_of(config: dict[str, Any]) -> Platform:
    """Return the platform in an image's configuration or in an entry of an index."""
    fields = (config.get(key) for key in ("os", "architecture", "variant"))
    return Platform(*(field if isinstance(field, str) else "" for field in fields))


def chain_id(diff_ids: Sequence[str]) -> str:
    """Return the chain id: the digest of a sequence of layers, lowest first.

    Images with equal layers have equal chain ids.  Their configurations and the
    compression of their layers do not matter.
    """
    chain = ""
    for diff_id in diff_ids:
        chain = digest_of(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain or digest_of(b"")


def read_archived(data: bytes, what: str) -> tuple[Archived, ...]:
    """Read the manifest.json of a docker-archive.

    :raises InvalidError: ``data`` has another form than `docker save` writes.
    """
    try:
        listed = jsontext.loads(data)
        return tuple(
            Archived(
                str(entry["Config"]),
                tuple(map(str, entry.get("RepoTags") or ())),
                tuple(map(str, entry["Layers"] or ())),
            )
            for entry in listed
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        raise InvalidError(f"{what} does not have the form that `docker save` writes") from None


def _descriptor(entry: object, what: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise InvalidError(f"{what} has a descriptor that is not an object")
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidError(f"{what} has a descriptor without a size")
    annotations, platform = entry.get("annotations"), entry.get("platform")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else ""
    return Descriptor(
        digest=_digest(entry.get("digest"), what),
        size=size,
        media_type=str(entry.get("mediaType") or ""),
        name=name if isinstance(name, str) else "",
        platform=platform_of(platform if isinstance(platform, dict) else {}),
    )


def _digest(text: object, what: str) -> str:
    # The digest becomes part of a path, so it must be an algorithm and hexadecimal digits.
    if isinstance(text, str) and _DIGEST.fullmatch(text):
        return text
    raise InvalidError(f"{what} has the invalid digest {text!r}")
