"""Decompress an archive before skopeo reads it.

``docker load`` takes a compressed archive, but skopeo 1.9 reads no compressed
docker-archive: it decompresses the file and then reads the compressed one.

Source: the first bytes of each format: RFC 1952; xz(1), "The .xz File Format"; bzip2(1).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from typing import TYPE_CHECKING, BinaryIO, cast

import trio

from shim.errors import InvalidError, ShimError

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 20  # bytes


async def decompressed(path: Path, scratch: Path) -> Path:
    """Return ``path`` if it is not compressed, else a decompressed copy in ``scratch``.

    :raises InvalidError: the file is damaged.
    :raises ShimError: the copy cannot be written.
    """
    return await trio.to_thread.run_sync(_decompress, path, scratch / "archive.tar")


def _decompress(path: Path, copy: Path) -> Path:
    try:
        with path.open("rb") as raw:
            source = _opened(raw)
            if source is None:
                return path
            fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with source, open(fd, "wb") as target:
                while data := source.read(_CHUNK):
                    target.write(data)
                    trio.from_thread.check_cancelled()
    except (EOFError, zlib.error, lzma.LZMAError, ValueError) as exc:
        raise InvalidError(f"cannot decompress {path}: {exc}") from None
    except OSError as exc:
        if exc.strerror is None:  # gzip and bz2 raise it for damaged data
            raise InvalidError(f"cannot decompress {path}: {exc}") from None
        raise ShimError(f"cannot decompress {path} to {copy}: {exc.strerror}") from None
    return copy


def _opened(raw: BinaryIO) -> BinaryIO | None:
    """Return a reader of the decompressed bytes of ``raw``, None if it is not compressed."""
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw))
    if magic.startswith(b"BZh"):
        return cast("BinaryIO", bz2.BZ2File(raw))
    if magic == b"\xfd7zXZ\0":
        return cast("BinaryIO", lzma.LZMAFile(raw))
    return None
