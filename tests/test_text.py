"""Errors in the field's form: the action, its object, the reason."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from shim import log
from shim.errors import NotFoundError, status_of
from shim.linux.modes import make_directory, make_fifo, write_file
from shim.text import doing, explain

if TYPE_CHECKING:
    from pathlib import Path


def test_an_error_of_the_kernel_names_its_object_and_no_number() -> None:
    assert explain(OSError(errno.ENOSPC, "No space left on device")) == "no space left on device"
    with pytest.raises(OSError, match="missing") as caught:
        os.stat("/missing")  # noqa: PTH116
    assert explain(caught.value) == "/missing: no such file or directory"
    with pytest.raises(OSError, match="missing") as caught:
        os.rename(b"/missing", "/x")  # noqa: PTH104
    assert explain(caught.value) == "/missing -> /x: no such file or directory"
    with pytest.raises(OSError, match="descriptor") as caught:
        os.fstat(12345)
    assert explain(caught.value) == "bad file descriptor"


def test_the_innermost_action_is_named() -> None:
    with pytest.raises(OSError, match="device") as caught, doing("create", "a bundle"):  # noqa: SIM117
        with doing("write", "/run/x"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert explain(caught.value) == "write /run/x: no space left on device"


def test_other_errors_are_their_own_words() -> None:
    assert explain(NotFoundError("no such thing")) == "no such thing"
    assert explain(ValueError()) == "ValueError"
    assert explain(TimeoutError()) == "TimeoutError"
    with pytest.raises(ValueError, match="bad") as caught, doing("read", "/run/x"):
        raise ValueError("bad")
    assert explain(caught.value) == "bad"


def test_what_creates_files_says_what_it_did(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "x"
    for action, create in (("open", lambda path: write_file(path, "x")), ("mkfifo", make_fifo)):
        with pytest.raises(FileNotFoundError) as caught:
            create(missing)
        assert explain(caught.value) == f"{action} {missing}: no such file or directory"
    with pytest.raises(FileExistsError) as exists:
        make_directory(tmp_path)
    assert explain(exists.value) == f"mkdir {tmp_path}: file exists"
    with pytest.raises(OSError, match="space") as full:
        write_file("/dev/full", "x", 0o666)
    assert explain(full.value) == "write /dev/full: no space left on device"
    assert status_of(full.value)[1] == "write /dev/full: no space left on device"


def test_a_log_line_shows_an_error_the_same_way(tmp_path: Path) -> None:
    file = tmp_path / "log"
    fd = os.open(file, os.O_CREAT | os.O_WRONLY)
    try:
        log.Log(fd).write(
            log.ERROR, "it failed", {"error": OSError(errno.EIO, "Input/output error")}
        )
    finally:
        os.close(fd)
    assert 'error="input/output error"' in file.read_text()
