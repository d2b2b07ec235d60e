"""The shim's own log: each line is written whole or not at all, and no write waits for the
reader.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from shim import log
from shim.log import ERROR, INFO, Log

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def fifo() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):
            os.close(fd)


def test_a_line_says_when_how_bad_and_what(fifo: tuple[int, int]) -> None:
    reader, writer = fifo
    Log(writer).write(ERROR, 'it is "odd"', {"id": "c1", "why": "two words"})
    line = os.read(reader, 4096).decode()
    said = r'time=20\d\d-\S+Z level=error msg="it is \\"odd\\"" id=c1 why="two words"\n'
    assert re.fullmatch(said, line), line


def test_no_text_of_others_is_a_command_to_a_terminal(fifo: tuple[int, int]) -> None:
    reader, writer = fifo
    name = "a\x1b[2J\x9b\u202e\u2028\x7f\r\n\udce9\\ü"
    Log(writer).write(ERROR, "odd", {"name": name, "empty": ""})
    line = os.read(reader, 4096).decode().removesuffix("\n")
    assert line.isprintable()
    said = r'name="a\x1b[2J\u009b\u202e\u2028\x7f\r\n\xe9\\ü" empty=""'
    assert line.endswith(said), line


def test_lines_nobody_reads_are_dropped_and_counted(fifo: tuple[int, int]) -> None:
    reader, writer = fifo
    log = Log(writer)
    for number in range(3000):
        log.write(INFO, "many", {"number": number})
    kept = os.read(reader, 1 << 20).splitlines()
    assert [int(line.rpartition(b"=")[2]) for line in kept] == list(range(len(kept)))
    log.write(INFO, "again", {})
    log.write(INFO, "and on", {})
    again, on = os.read(reader, 4096).splitlines()
    assert again.endswith(b"msg=again dropped_lines=%d" % (3000 - len(kept)))
    assert b"dropped" not in on


def test_a_reader_that_is_gone_costs_the_lines_and_nothing_else(fifo: tuple[int, int]) -> None:
    reader, writer = fifo
    os.close(reader)
    log = Log(writer)
    log.write(INFO, "nobody hears", {})
    assert log.dropped == 1


def test_a_line_is_taken_whole_or_not_at_all(fifo: tuple[int, int]) -> None:
    reader, writer = fifo
    log = Log(writer)
    for _ in range(100):
        log.write(INFO, "long", {"text": "x" * 10_000})
    data = os.read(reader, 1 << 20)
    assert len(data) > 1 << 15
    assert data.endswith(b"\n")
    assert all(line.startswith(b"time=") for line in data.splitlines())


def test_what_is_below_the_level_is_not_written(fifo: tuple[int, int]) -> None:
    reader, writer = fifo
    Log(writer, ERROR).write(INFO, "chatter", {})
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)


def test_each_containers_lines_go_to_its_own_fifo_and_the_others_to_the_newest() -> None:
    pipes = {name: os.pipe2(os.O_NONBLOCK) for name in ("own", "c1", "c2")}
    try:
        log.configure(pipes["own"][1], INFO)
        log.info("first", id="c1")
        for id_ in ("c1", "c2"):
            log.attach(id_, pipes[id_][1])
        log.info("second", id="c1")
        log.info("third", id="c3")
        log.info("fourth")
        log.detach("c2")
        log.info("fifth", id="c2")
        thread = threading.Thread(target=partial(log.info, "sixth", id="c1"))
        thread.start()
        thread.join()
        read = {name: os.read(pipe[0], 4096).decode() for name, pipe in pipes.items()}
    finally:
        log.configure(2, INFO)
        for fd in (fd for pipe in pipes.values() for fd in pipe):
            os.close(fd)
    said = {name: re.findall(r"msg=(\w+)", text) for name, text in read.items()}
    # A thread may have other files at the numbers of the fifos.
    assert said == {
        "own": ["first", "sixth"],
        "c1": ["second", "fifth"],
        "c2": ["third", "fourth"],
    }
