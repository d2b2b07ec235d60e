"""Headers of tar archives that are longer, deeper or stranger than any honest one."""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shimctl.images.archives import DAMAGED, MAX_HEADER, check_records, open_archive, open_stream

if TYPE_CHECKING:
    from pathlib import Path


def header(kind: bytes, data: bytes = b"", *, size: int | None = None, name: str = "x") -> bytes:
    """Return one header with its data, as it lies in an archive."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.size = len(data) if size is None else size
    return entry.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def record(keyword: str, value: str) -> bytes:
    tail = f" {keyword}={value}\n".encode()
    length = len(tail)
    while len(str(length)) + len(tail) != length:
        length = len(str(length)) + len(tail)
    return str(length).encode() + tail


END = bytes(1024)


def names(data: bytes) -> list[tuple[str, str]]:
    with open_stream(io.BytesIO(data)) as archive:
        return [(entry.name, entry.linkname) for entry in archive]


def test_long_names_and_pax_headers_are_read() -> None:
    long = "d/" * 200 + "file"
    link = tarfile.TarInfo("l")
    link.type = tarfile.SYMTYPE
    data = (
        header(tarfile.XHDTYPE, record("path", "é" * 90) + record("mtime", "1.5"))
        + header(tarfile.REGTYPE, b"content")
        + header(tarfile.GNUTYPE_LONGNAME, long.encode() + b"\0")
        + header(tarfile.GNUTYPE_LONGLINK, long.encode() + b"\0")
        + link.tobuf(tarfile.GNU_FORMAT)
        + header(tarfile.REGTYPE, name="last")
        + END
    )
    assert names(data) == [("é" * 90, ""), (long, long), ("last", "")]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_the_standard_library_writes_is_read_as_it_reads_it(form: int) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as archive:
        for name in ("a", "b" * 300, "ü/" * 60, "c" * 5000):
            archive.addfile(tarfile.TarInfo(name))
    with tarfile.open(fileobj=io.BytesIO(data.getvalue())) as archive:
        expected = [(entry.name, entry.linkname) for entry in archive]
    assert names(data.getvalue()) == expected


KINDS = [
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [MAX_HEADER + 1, 1 << 33])
def test_a_header_of_more_than_a_mebibyte_is_refused_before_it_is_read(
    kind: bytes, size: int
) -> None:
    class Counted(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    source = Counted(header(kind, b"", size=size) + bytes(4 << 20))
    with (
        pytest.raises(tarfile.ReadError, match="the limit of 1048576"),
        open_stream(source),
    ):
        pass
    assert source.taken < 100_000


def test_a_header_of_a_mebibyte_is_read() -> None:
    data = header(tarfile.XHDTYPE, record("path", "p" * (MAX_HEADER - 15)))
    (found,) = names(data + header(tarfile.REGTYPE) + END)
    assert found == ("p" * (MAX_HEADER - 15), "")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
@pytest.mark.parametrize(
    "data",
    [
        b"9" * MAX_HEADER,
        b"1" * (MAX_HEADER // 2) + b" hdrcharset=BINARY\n",
        b"5 a=" * 1000,
        b"0 a=b\n",
        b"7 a=b\n",
        b"6 a b\n",
        b"6 a=bc",
        b" 6 a=b\n",
        b"-6 a=b\n",
        b"99 a=b\n",
        b"99999999999999999999999999 a=b\n",
        "٦ a=b\n".encode(),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_record_is_refused_at_once(kind: bytes, data: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(tarfile.ReadError, match="a PAX record"):
        names(header(kind, data) + header(tarfile.REGTYPE) + END)
    assert time.process_time() - begun < 1


def test_a_header_for_all_that_follow_changes_no_name() -> None:
    data = (
        header(tarfile.XGLTYPE, record("path", "elsewhere") + record("comment", "abc"))
        + header(tarfile.REGTYPE, name="a")
        + header(tarfile.XHDTYPE, record("mtime", "1"))
        + header(tarfile.REGTYPE, name="b")
        + END
    )
    assert names(data) == [("a", ""), ("b", "")]


@pytest.mark.parametrize("kind", KINDS)
def test_headers_without_an_entry_are_refused_however_many_they_are(kind: bytes) -> None:
    one = record("a", "b") if kind not in KINDS[3:] else b"name\0"
    with pytest.raises(DAMAGED):
        names(header(kind, one) * 5000 + END)


def test_an_archive_of_any_compression_is_bounded_alike(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(header(tarfile.GNUTYPE_LONGNAME, b"", size=1 << 30) + END)
    with pytest.raises(tarfile.ReadError, match="more than the limit"), open_archive(path):
        pass


@given(st.lists(st.tuples(st.from_regex(r"[a-z.]+", fullmatch=True), st.text(max_size=50))))
def test_records_that_are_right_are_taken(pairs: list[tuple[str, str]]) -> None:
    check_records(b"".join(record(*pair) for pair in pairs) + bytes(7))


@given(st.binary(max_size=2000))
def test_no_bytes_make_the_check_fail_otherwise(data: bytes) -> None:
    with contextlib.suppress(tarfile.ReadError):
        check_records(data)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
@pytest.mark.parametrize("missing", ["the end", "the padding", "everything"])
def test_an_archive_may_end_without_zeros(size: int, missing: str) -> None:
    before, last = (
        header(tarfile.REGTYPE, b"first", name="a"),
        header(tarfile.REGTYPE, b"x" * size),
    )
    data = {
        "the end": before + last,
        "the padding": (before + last)[: len(before) + 512 + size],
        "everything": b"",
    }[missing]
    assert names(data) == ([] if missing == "everything" else [("a", ""), ("x", "")])


def test_an_archive_that_lacks_a_block_of_a_file_is_damaged() -> None:
    data = header(tarfile.REGTYPE, b"x" * 1024)[: 512 + 400]
    with pytest.raises(DAMAGED):
        names(data)
