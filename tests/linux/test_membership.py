from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from shim.linux.membership import by_controller, parse, read

PATHS = st.binary().filter(lambda path: b"\n" not in path and b"\0" not in path)
HIERARCHIES = st.sampled_from([b"", b"memory", b"cpu,cpuacct", b"name=systemd"])


@given(st.dictionaries(HIERARCHIES, PATHS))
def test_a_path_may_have_every_byte_but_a_newline(paths: dict[bytes, bytes]) -> None:
    lines = [b"%d:%s:/%s\n" % (i, names, path) for i, (names, path) in enumerate(paths.items())]
    found = parse(b"".join(lines))
    expected = {names: b"/" + path for names, path in paths.items()}
    assert {os.fsencode(names): os.fsencode(path) for names, path in found.items()} == expected


@given(st.binary())
def test_malformed_lines_are_left_out(data: bytes) -> None:
    parse(data)
    assert parse(data.replace(b"\n", b"") + b"\n0::/a\n")[""] == "/a"


def test_controllers_that_share_a_hierarchy_share_its_path() -> None:
    assert by_controller({"cpu,cpuacct": "/a", "": "/b"}) == {
        "cpu": "/a",
        "cpuacct": "/a",
        "": "/b",
    }


def test_our_own_groups_are_read() -> None:
    assert read() == read(os.getpid())
    assert all(path.startswith("/") for path in read().values())
