"""Checks that every name in a layer stays inside the image.

umoci unpacks the layers and resolves every name inside the image's root, as a
chroot does.  A layer with a name that leads out of the image is malicious all the
same, so it is refused before any of it is unpacked.  A leading ``/`` is allowed:
builders write it, and it means the root of the image.

Source: the OCI image specification, layer.md ("Whiteouts"); CVE-2018-15664,
CVE-2019-14271 and similar ones for the names that lead out.
"""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, BinaryIO, cast

from shim.errors import InvalidError, UnsupportedError
from shimctl.images.archives import DAMAGED, open_stream
from shimctl.images.layout import GZIP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ZSTD = b"\x28\xb5\x2f\xfd"
_WHITEOUT = ".wh."
# Characters of the longest path that the kernel accepts, see path_resolution(7).
_PATH_MAX = 4096


class Names:
    """The names of one layer.  Call :meth:`check` for each entry, in the layer's order."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        # The symbolic links of this layer that are absolute or climb above the root.  A
        # tool that makes layers from a file system writes no entry through a link.
        self._outside_links: dict[tuple[str, ...], str] = {}

    def check(self, name: str, *, symlink: str = "", hardlink: str = "") -> None:
        """Check the next entry; ``symlink`` or ``hardlink`` is its target if it is a link.

        :raises InvalidError: the name or the target leads out of the image.
        """
        path = self._inside(name, name)
        if path and path[-1].startswith(_WHITEOUT):
            hidden = path[-1].removeprefix(_WHITEOUT)
            if hidden in ("", ".", ".."):
                raise self._refusal(name, "it removes a directory that contains it")
        if hardlink:
            self._inside(hardlink, name)
        self._outside_links.pop(path, None)
        if symlink and _points_outside(path, symlink):
            self._outside_links[path] = symlink

    def _inside(self, path: str, name: str) -> tuple[str, ...]:
        if len(path) > _PATH_MAX:
            raise self._refusal(name[:100], f"it has more than {_PATH_MAX} characters")
        parts = tuple(part for part in path.split("/") if part not in ("", "."))
        if ".." in parts:
            raise self._refusal(name, "it leads out of the image")
        if self._outside_links:
            for length in range(1, len(parts)):
                if target := self._outside_links.get(parts[:length]):
                    link = "/".join(parts[:length])
                    raise self._refusal(name, f"its path contains the link {link} to {target}")
        return parts

    def _refusal(self, name: str, reason: str) -> InvalidError:
        return InvalidError(f"layer {self._layer} is refused for its entry {name!r}: {reason}")


def _points_outside(path: tuple[str, ...], target: str) -> bool:
    if target.startswith("/"):
        return True
    depth = len(path) - 1
    for part in target.split("/"):
        depth += {"..": -1, "": 0, ".": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def check_layer(path: Path, digest: str, report: Callable[[int], None]) -> None:
    """Check the names in the layer ``path``.

    ``report`` is called with the number of bytes read so far.

    :raises InvalidError: a name leads out of the image, or the layer is not a tar.
    :raises UnsupportedError: umoci does not support the compression.
    """
    names = Names(digest)
    with path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic == _ZSTD:
            raise UnsupportedError(
                f"layer {digest} is compressed with zstd, which umoci does not support; "
                "copy the image with `skopeo copy --dest-compress-format gzip`"
            )
        plain = gzip.GzipFile(fileobj=raw) if magic[:2] == GZIP else raw
        try:
            with open_stream(cast("BinaryIO", plain)) as layer:
                for entry in layer:
                    names.check(
                        entry.name,
                        symlink=entry.linkname if entry.issym() else "",
                        hardlink=entry.linkname if entry.islnk() else "",
                    )
                    layer.members = []  # type: ignore[attr-defined]  # else it keeps all entries
                    report(raw.tell())
        except (*DAMAGED, zlib.error, gzip.BadGzipFile) as exc:
            raise InvalidError(f"layer {digest} is not a tar: {exc}") from None
