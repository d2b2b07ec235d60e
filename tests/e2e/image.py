"""A busybox image made of /bin/busybox alone, with no registry and no image tools.

Source of the layout: Docker's image tar format v1.2 (manifest.json, one config,
one layer), which ``ctr images import`` reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

NAME = "docker.io/library/busybox:latest"
BUSYBOX = Path("/bin/busybox")
_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "sys", "tmp")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def applets() -> list[str]:
    listing = subprocess.run(
        [BUSYBOX, "--list"], capture_output=True, text=True, timeout=10, check=True
    )
    return [name for name in listing.stdout.split() if name != "busybox"]


def make_rootfs(directory: Path) -> None:
    """Make the root filesystem of the image as plain files below ``directory``."""
    for name in _DIRECTORIES:
        (directory / name).mkdir(parents=True)
    (directory / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (directory / "bin/busybox").chmod(0o755)
    for name in applets():
        (directory / "bin" / name).symlink_to("busybox")


def write_image(path: Path, scratch: Path, name: str = NAME, **config: str) -> None:
    """Write an image that ``ctr images import`` takes to ``path``; ``config`` adds to its own."""
    rootfs = scratch / "rootfs"
    make_rootfs(rootfs)
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for directory in _DIRECTORIES:
            tar.add(rootfs / directory, directory)
    described = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"], **config},
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()],
        },
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, mode="w") as tar:
        _add(tar, "layer.tar", layer.getvalue())
        _add(tar, "config.json", json.dumps(described).encode())
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
