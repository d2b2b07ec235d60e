"""Tar archives whose headers are bounded, since they are read before anything is known of them.

The standard library reads the headers that come before an entry, a PAX header or
a long name of GNU tar, as long as they say they are, and looks for records in a
PAX header with expressions that take the square of its length.  Here such a header
has 1 MiB at most, as in Go's archive/tar, which containerd uses; the records of a
PAX header are checked first, in one pass; and what stands for all entries that
follow is passed over, as Go does.

Source: POSIX.1-2008 pax, "pax Header Block"; Go's archive/tar (maxSpecialFileSize,
parsePAXRecord).
"""

from __future__ import annotations

import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_HEADER = 1 << 20  # bytes of one header
_MAX_DIGITS = 19  # of a length that fits into 64 bits

# What reading a damaged archive raises beside TarError, zlib's and lzma's: numbers that
# are none, and headers that are nested too deep.
DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _Entry(tarfile.TarInfo):
    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Read what belongs to this header.  Called by the standard library."""
        kind = self.type
        special = kind in _PAX or kind in _LONG or kind == tarfile.XGLTYPE
        if special and not 0 <= self.size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes, and {MAX_HEADER} is the most")
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
    """A file whose next read gives what was read already."""

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


def check_records(data: bytes) -> None:
    """Check the records of a PAX header: ``LENGTH KEYWORD=VALUE`` and a line's end each.

    :raises tarfile.ReadError: it is none.
    """
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + _MAX_DIGITS + 1)
        digits = data[position:space] if space > position else b""
        if not digits.isdigit():
            # What is left of the block is zeros.
            if not data[position:].strip(b"\0"):
                return
            raise tarfile.ReadError("a PAX record has no length")
        end = position + int(digits)
        if end > len(data) or data.find(b"=", space, end) < 0 or data[end - 1] != ord("\n"):
            raise tarfile.ReadError("a PAX record is not as long as it says")
        position = end


@contextmanager
def open_stream(file: BinaryIO) -> Iterator[tarfile.TarFile]:
    """Read a tar from its beginning to its end; the caller sees to its compression."""
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_Entry) as archive:
        yield archive


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar, compressed or not, to read from anywhere."""
    with tarfile.open(path, tarinfo=_Entry) as archive:
        yield archive
