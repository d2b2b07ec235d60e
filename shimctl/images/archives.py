"""Reads tar archives with a limit for the size of a header.

A PAX header or a GNU long name may precede an entry.  The standard library reads
such a header in the full size that the archive gives.  It searches the records of a
PAX header with regular expressions that take quadratic time.  This module limits
a header to 1 MiB, as Go's archive/tar does, which containerd uses.  It checks the
records of a PAX header beforehand, in one pass.  It skips a global PAX header, which
holds for all entries that follow, as Go does.

An archive may end without the two blocks of zeros, and without the zeros that fill the
block of the last file.  ``umoci insert`` writes such layers, and Go accepts them.

Source: POSIX.1-2008 pax, "pax Header Block"; Go's archive/tar (maxSpecialFileSize,
parsePAXRecord, tryReadFull).
"""

from __future__ import annotations

import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_HEADER = 1 << 20  # bytes of one header
_MAX_DIGITS = 19  # of a record's length, which fits into 64 bits

# The errors of reading a damaged archive, except those of zlib and lzma: ValueError and
# OverflowError for bad numbers, RecursionError for headers that are nested too deep.
DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _Entry(tarfile.TarInfo):
    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Read the data of this header.  The standard library calls this method."""
        kind = self.type
        special = kind in _PAX or kind in _LONG or kind == tarfile.XGLTYPE
        if special and not 0 <= self.size <= MAX_HEADER:
            raise tarfile.ReadError(
                f"a header has {self.size} bytes, more than the limit of {MAX_HEADER}"
            )
        if special and kind not in _LONG:
            source = archive.fileobj
            assert source is not None
            data = source.read(-self.size % tarfile.BLOCKSIZE + self.size)
            check_records(data[: self.size])
            if kind == tarfile.XGLTYPE:
                return _skip_global_header(self, archive)
            archive.fileobj = cast("BinaryIO", _BufferedFile(data, cast("BinaryIO", source)))
            try:
                return _process_header(self, archive)
            finally:
                archive.fileobj = source
        return _process_header(self, archive)


def _process_header(entry: tarfile.TarInfo, archive: tarfile.TarFile) -> tarfile.TarInfo:
    found: tarfile.TarInfo = tarfile.TarInfo._proc_member(entry, archive)  # type: ignore[attr-defined]
    return found


def _skip_global_header(entry: tarfile.TarInfo, archive: tarfile.TarFile) -> tarfile.TarInfo:
    try:
        following = entry.fromtarfile(archive)
    except tarfile.HeaderError as exc:
        raise tarfile.ReadError(str(exc)) from None
    following.offset = entry.offset
    return following


class _BufferedFile:
    """A file that returns ``data``, which was read before, at its first read."""

    def __init__(self, data: bytes, file: BinaryIO) -> None:
        self._data = data
        self._file = file

    def read(self, size: int) -> bytes:
        if self._data:
            data, self._data = self._data, b""
            return data
        return self._file.read(size)

    def tell(self) -> int:
        return self._file.tell()


class _Padded:
    """A file that continues with zeros to the end of its last block.

    An empty file becomes the two blocks of zeros of an archive without entries.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0  # bytes that were read of the file
        self._zeros: int | None = None  # that are left to read, once the file has ended

    def read(self, size: int) -> bytes:
        if self._zeros is None:
            if data := self._file.read(size):
                self._size += len(data)
                return data
            block = tarfile.BLOCKSIZE
            self._zeros = -self._size % block if self._size else 2 * block
        count = min(size, self._zeros)
        self._zeros -= count
        return bytes(count)


def check_records(data: bytes) -> None:
    r"""Check the records of a PAX header; each is ``LENGTH KEYWORD=VALUE\n``.

    :raises tarfile.ReadError: a record has another form.
    """
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + _MAX_DIGITS + 1)
        digits = data[position:space] if space > position else b""
        if not digits.isdigit():
            # The end of the last block is filled with zeros.
            if not data[position:].strip(b"\0"):
                return
            raise tarfile.ReadError("a PAX record has no length")
        end = position + int(digits)
        if end > len(data) or data.find(b"=", space, end) < 0 or data[end - 1] != ord("\n"):
            raise tarfile.ReadError("a PAX record has a wrong length")
        position = end


@contextmanager
def open_stream(file: BinaryIO) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar, to be read once from its beginning to its end."""
    padded = cast("BinaryIO", _Padded(file))
    with tarfile.open(fileobj=padded, mode="r|", tarinfo=_Entry) as archive:
        yield archive


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar, compressed or not, to read its entries in any order."""
    with tarfile.open(path, tarinfo=_Entry) as archive:
        yield archive
