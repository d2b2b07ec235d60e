"""OCI layouts made byte by byte, so that they can be wrong in any way.

Source: the OCI image specification, image-layout.md.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimctl.images import platforms

if TYPE_CHECKING:
    from shimctl.images import Store

BUSYBOX = Path("/bin/busybox")
HOST = platforms.of_machine(platform.machine())
OTHER = "s390x" if HOST.architecture != "s390x" else "amd64"
_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass
class Layer:
    """A tar, entry by entry."""

    data: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        self._tar = tarfile.open(fileobj=self.data, mode="w")  # noqa: SIM115 - closed by bytes()

    def file(
        self,
        name: str,
        text: str | bytes = "",
        *,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
    ) -> Layer:
        data = text.encode() if isinstance(text, str) else text
        return self._add(name, tarfile.REGTYPE, data=data, mode=mode, owner=owner)

    def directory(self, name: str, *, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> Layer:
        return self._add(name, tarfile.DIRTYPE, mode=mode, owner=owner)

    def symlink(self, name: str, target: str) -> Layer:
        return self._add(name, tarfile.SYMTYPE, target=target)

    def hardlink(self, name: str, target: str) -> Layer:
        return self._add(name, tarfile.LNKTYPE, target=target)

    def _add(
        self,
        name: str,
        kind: bytes,
        *,
        data: bytes = b"",
        target: str = "",
        mode: int = 0o755,
        owner: tuple[int, int] = (0, 0),
    ) -> Layer:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.linkname, entry.mode = kind, len(data), target, mode
        entry.uid, entry.gid = owner
        self._tar.addfile(entry, io.BytesIO(data))
        return self

    def bytes(self) -> bytes:
        self._tar.close()
        return self.data.getvalue()


def busybox() -> Layer:
    """Return a layer that can run a shell."""
    layer = Layer()
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp"):
        layer.directory(name)
    layer.file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    for name in (
        "sh",
        "cat",
        "echo",
        "id",
        "sleep",
        "pwd",
        "stat",
        "test",
        "touch",
        "true",
        "false",
        "ls",
        "mkdir",
    ):
        layer.symlink(f"bin/{name}", "busybox")
    layer.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/srv:/bin/sh\n")
    layer.file("etc/group", "root:x:0:\nwww:x:34:\nlogs:x:44:www,root\nmail:x:8:\n")
    return layer


class Layout:
    """An OCI layout below ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[dict[str, Any]] = []
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._write_index()

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Add a blob; return its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    def image(
        self,
        *layers: Layer | bytes,
        architecture: str = HOST.architecture,
        zipped: bool = False,
        **config: Any,
    ) -> dict[str, Any]:
        """Add an image; return the descriptor of its manifest."""
        plain = [layer if isinstance(layer, bytes) else layer.bytes() for layer in layers]
        kind = f"{_LAYER}+gzip" if zipped else _LAYER
        stored = [self.blob(gzip.compress(data) if zipped else data, kind) for data in plain]
        diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in plain]
        described = {
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        if HOST.variant and architecture == HOST.architecture:
            described["variant"] = HOST.variant
        return self.manifest(self.blob(_json(described), _CONFIG), stored)

    def manifest(self, config: dict[str, Any] | None, layers: list[Any]) -> dict[str, Any]:
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "layers": layers}
        if config is not None:
            manifest["config"] = config
        return self.blob(_json(manifest), _MANIFEST)

    def index(self, **images: dict[str, Any]) -> dict[str, Any]:
        """Add an index of images by architecture; return its descriptor."""
        manifests = [
            entry | {"platform": {"os": "linux", "architecture": architecture}}
            for architecture, entry in images.items()
        ]
        return self.blob(_json({"schemaVersion": 2, "manifests": manifests}), _INDEX)

    def tag(self, name: str, descriptor: dict[str, Any]) -> str:
        """Name an image; return the reference to it."""
        annotations = {"org.opencontainers.image.ref.name": name}
        self._entries = [e for e in self._entries if e["annotations"] != annotations]
        self._entries.append(descriptor | {"annotations": annotations})
        self._write_index()
        return f"oci:{self.path}:{name}"

    def add(self, name: str, *layers: Layer | bytes, **config: Any) -> str:
        """Make and name an image; return the reference to it."""
        return self.tag(name, self.image(*layers, **config))

    def path_of(self, descriptor: dict[str, Any]) -> Path:
        return self.path / "blobs" / str(descriptor["digest"]).replace(":", "/")

    def largest(self) -> Path:
        """Return the largest blob, which is a layer."""
        return max((self.path / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)

    def _write_index(self) -> None:
        index = {"schemaVersion": 2, "manifests": self._entries}
        (self.path / "index.json").write_bytes(_json(index))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def contents(directory: Path) -> list[str]:
    """Return every name below ``directory`` but the store's own directories."""
    own = {"images", "rootfs", "containers", "partial", "locks"}
    names = (str(path.relative_to(directory)) for path in directory.rglob("*"))
    return sorted(name for name in names if name not in own)


def left(store: Store) -> list[str]:
    """Return all names in the store, also of an incomplete one."""
    return contents(store.path) if store.path.exists() else []


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
