from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

import pytest

from shim.api.bootstrap_pb2 import BootstrapResult
from shim.errors import InvalidError, NotFoundError, ShimError, UnsupportedError
from shimctl import launching
from shimctl.launching import find_runtime, launch, parse_answer, run_delete
from tests.shimctl.peers import FakeTask, serving
from tests.shimctl.test_strangers import open_files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"unix:///run/s/1", ("unix:///run/s/1", 2)),
        (b"unix:///run/s/1\n", ("unix:///run/s/1", 2)),
        (
            b'{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}',
            ("unix:///run/s/1", 3),
        ),
        (
            BootstrapResult(version=3, address="unix:///s", protocol="ttrpc").SerializeToString(),
            ("unix:///s", 3),
        ),
    ],
)
def test_all_three_forms_of_the_answer_are_read(answer: bytes, expected: tuple[str, int]) -> None:
    assert parse_answer(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"hello world\n", b"{", b'{"version":2}', b"[]"),
        b'{"version":Infinity,"address":"unix:///s"}',
        b'{"a":' * 10_000,
    ],
)
def test_any_other_answer_is_an_error(answer: bytes) -> None:
    with pytest.raises(ShimError, match="start printed"):
        parse_answer(answer)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"version":4,"address":"unix:///s","protocol":"ttrpc"}',
        b'{"version":3,"address":"unix:///s","protocol":"grpc"}',
    ],
)
def test_a_newer_version_and_another_protocol_are_unsupported(answer: bytes) -> None:
    with pytest.raises(UnsupportedError):
        parse_answer(answer)


def _executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_runtime_name_is_looked_up_by_containerds_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = _executable(tmp_path / "containerd-shim-mine-v9", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_runtime("io.containerd.mine.v9") == str(binary)
    assert find_runtime(str(binary)) == str(binary)


def test_a_runtime_is_also_found_beside_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = _executable(tmp_path / "containerd-shim-mine-v9", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_runtime("io.containerd.mine.v9") == str(binary)


def test_an_unknown_runtime_is_not_found_and_a_word_is_no_runtime() -> None:
    with pytest.raises(NotFoundError, match="containerd-shim-none-v0"):
        find_runtime("io.containerd.none.v0")
    with pytest.raises(NotFoundError):
        find_runtime("/no/such/shim")
    with pytest.raises(InvalidError):
        find_runtime("runc")


async def test_a_shim_that_fails_to_start_is_quoted(tmp_path: Path) -> None:
    shim = _executable(tmp_path / "shim", "#!/bin/sh\necho 'no luck' >&2; exit 3\n")
    with pytest.raises(ShimError, match=r"failed \(3\): no luck"):
        await launch(tmp_path, "c", runtime=str(shim))


@pytest.mark.parametrize("text", ["\0no program", "#!/no/such/interpreter\n"])
async def test_what_cannot_be_run_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    shim = str(_executable(tmp_path / "shim", text))
    for begin in (launch, run_delete):
        with pytest.raises(ShimError, match=f"cannot run {shim}: "):
            await begin(tmp_path, "c", runtime=shim)
    with pytest.raises(NotFoundError, match="no executable"):
        await launch(tmp_path, "c", runtime=f"{tmp_path}/")
    with pytest.raises(InvalidError, match="NUL byte"):
        await launch(tmp_path, "c\0", runtime=shim)


async def test_a_process_out_of_files_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        begun.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    begun: list[int] = []
    before = open_files()
    monkeypatch.setattr(os, "pidfd_open", refuse)
    shim = _executable(tmp_path / "shim", "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(ShimError, match="Too many open files"):
        await launch(tmp_path, "c", runtime=str(shim))
    with pytest.raises(ProcessLookupError):
        os.kill(begun[0], 0)
    assert open_files() == before


async def test_a_bundle_that_cannot_be_used_is_an_error_of_ours(tmp_path: Path) -> None:
    shim = _executable(tmp_path / "shim", "#!/bin/sh\nexit 1\n")
    (tmp_path / "log").mkdir()
    with pytest.raises(ShimError, match=f"cannot open {tmp_path}/log: Is a directory"):
        await launch(tmp_path, "c", runtime=str(shim))


async def test_an_address_that_cannot_be_noted_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.json").mkdir()
    task = FakeTask(3)
    async with serving(tmp_path / "s", task) as address:
        shim = _executable(tmp_path / "shim", f"#!/bin/sh\nprintf {address}\n")
        with pytest.raises(ShimError, match=r"cannot write .*bootstrap.json"):
            await launch(tmp_path, "c", runtime=str(shim))


async def test_a_shim_that_is_not_where_it_says_is_an_error_with_its_log(tmp_path: Path) -> None:
    script = f"#!/bin/sh\necho 'level=error msg=sunk' > log\nprintf unix://{tmp_path}/none\n"
    with pytest.raises(ShimError, match=r"no process listens.*msg=sunk"):
        await launch(tmp_path, "c", runtime=str(_executable(tmp_path / "shim", script)))


async def test_a_shim_that_never_answers_costs_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "START_TIMEOUT", 0.2)
    shim = _executable(tmp_path / "shim", "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(ShimError, match="did not end within"):
        await launch(tmp_path, "c", runtime=str(shim))


async def test_a_shim_is_started_as_containerd_would(tmp_path: Path) -> None:
    script = '#!/bin/sh\necho "$@" > args\nenv > env\npwd > cwd\nexit 1\n'
    shim = _executable(tmp_path / "shim", script)
    with pytest.raises(ShimError):
        await launch(tmp_path, "c1", namespace="ns", runtime=str(shim), debug=True, events="/e")
    args = (tmp_path / "args").read_text().split()
    assert args[:4] == ["-namespace", "ns", "-id", "c1"]
    assert args[-2:] == ["-debug", "start"]
    assert tmp_path.samefile((tmp_path / "cwd").read_text().strip())
    assert "TTRPC_ADDRESS=/e\n" in (tmp_path / "env").read_text()
