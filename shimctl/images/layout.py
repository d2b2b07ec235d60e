"""The private OCI layout that skopeo writes: its only image, and the types of its layers.

skopeo 1.9 copies an uncompressed layer of a docker-archive unchanged, and names its type
gzip.  Some builders name a wrong type, too.  containerd ignores the type and looks at the
first bytes of the layer, but umoci believes the type.  So :func:`correct_types` writes a
manifest with the types that the bytes have.

Source: the OCI image specification, image-layout.md and layer.md; RFC 1952 for the first
bytes of gzip; containerd pkg/archive/compression (DetectCompression).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim import jsontext
from shim.linux.modes import write_file
from shimctl.images.manifest import (
    Descriptor,
    Manifest,
    digest_of,
    read_diff_ids,
    read_index,
    read_manifest,
    read_object,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GZIP = b"\x1f\x8b"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_COPY = "the copied image"  # its name in errors


class Layout:
    """An OCI layout below ``path`` with one image."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self) -> Manifest:
        """Return the manifest of the image.

        :raises InvalidError: the layout is damaged.
        """
        return read_manifest(self._blob_of_manifest(), _COPY)

    def diff_ids(self) -> tuple[str, ...]:
        """Return the digests of the layers' uncompressed tars, lowest first."""
        config = self.blob(self.manifest().config.digest).read_bytes()
        return read_diff_ids(read_object(config, _COPY), _COPY)

    def blob(self, digest: str) -> Path:
        """Return the path of the blob ``digest``."""
        return self.path / "blobs" / digest.replace(":", "/")

    def correct_types(self) -> None:
        """Give each layer the type that its first bytes have; do nothing if all have it."""
        found = read_object(self._blob_of_manifest(), _COPY)
        types = list(self._types(self.manifest().layers))
        if types == [layer.get("mediaType") for layer in found["layers"]]:
            return
        for layer, media_type in zip(found["layers"], types, strict=True):
            layer["mediaType"] = media_type
        data = jsontext.dumps(found)
        digest = digest_of(data)
        write_file(self.blob(digest), data)
        index = read_object(self._index(), _COPY)
        index["manifests"][0] |= {"digest": digest, "size": len(data)}
        new = self.path / "index.json.new"
        write_file(new, jsontext.dumps(index))
        new.replace(self.path / "index.json")

    def _types(self, layers: tuple[Descriptor, ...]) -> Iterator[str]:
        for layer in layers:
            with self.blob(layer.digest).open("rb") as file:
                yield f"{_LAYER}+gzip" if file.read(len(GZIP)) == GZIP else _LAYER

    def _blob_of_manifest(self) -> bytes:
        (entry,) = read_index(self._index(), _COPY)
        return self.blob(entry.digest).read_bytes()

    def _index(self) -> bytes:
        return (self.path / "index.json").read_bytes()
