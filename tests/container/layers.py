"""Directories of files with owners, and overlay mounts of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim.linux.mounts import Mount

if TYPE_CHECKING:
    from pathlib import Path

# The first owner and group outside of a mapped mount.
FIRST, FIRST_GROUP = 100000, 300000


def layer(path: Path, **owners: int) -> Path:
    """Make a directory of files, each named for its contents, with these owners."""
    path.mkdir()
    for name, owner in owners.items():
        (path / name).write_text(name)
        os.chown(path / name, owner, owner)
    return path


def owners(path: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_uid, p.stat().st_gid) for p in path.iterdir()}


def overlay(work: Path, *lower: Path, options: list[str]) -> Mount:
    for name in ("upper", "work"):
        (work / name).mkdir()
    os.chown(work / "upper", FIRST, FIRST_GROUP)
    names = ":".join(str(path).replace(":", r"\:") for path in lower)
    upper = [f"upperdir={work}/upper", f"workdir={work}/work"]
    return Mount("overlay", "overlay", "", [*options, *upper, f"lowerdir={names}"])
