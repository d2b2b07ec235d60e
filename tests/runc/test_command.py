"""The arguments for the runtime, and the reading of its errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.runc.command import (
    Checkpoint,
    Creation,
    Runtime,
    checkpoint_args,
    create_args,
    exec_args,
    is_about,
    reason_of,
    restore_args,
)


def test_a_command_says_where_the_runtimes_state_and_log_are() -> None:
    runtime = Runtime("crun", "/run/r", systemd_cgroup=True)
    assert runtime.argv("start", "c1", log="/b/log.json") == [
        *("crun", "--root", "/run/r", "--log", "/b/log.json", "--log-format", "json"),
        *("--systemd-cgroup", "start", "c1"),
    ]


def test_a_plain_runtime_is_told_no_more_than_it_must() -> None:
    assert Runtime().argv("features") == ["runc", "--log-format", "json", "features"]


_CREATION = Creation("/b/pid", "/run/console.sock")
_COMMANDS: list[tuple[str, ...]] = [
    ("create", *create_args("c1", "/b", _CREATION, no_pivot=True, no_new_keyring=True)),
    ("restore", *restore_args("c1", "/b", _CREATION, Checkpoint("/i"), no_pivot=True)),
    ("exec", *exec_args("c1", "/b/e.json", _CREATION)),
    ("checkpoint", *checkpoint_args("c1", Checkpoint("/i"))),
    ("update", "--resources", "-", "c1"),
    *[("kill", "c1", "9"), ("kill", "--all", "c1", "9"), ("kill", "c1")],
    *[("delete", "c1"), ("delete", "--force", "c1"), ("start", "c1"), ("state", "c1")],
]


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
@pytest.mark.parametrize("log", ["", "/b/log.json"])
def test_a_command_is_about_its_container_and_not_about_one_named_as_its_words(
    command: tuple[str, ...], log: str
) -> None:
    argv = Runtime("runc", "/run/r", systemd_cgroup=True).argv(*command, log=log)
    words = [word.encode() for word in ("/bin/sh", "/wrapper", *argv[1:])]
    assert is_about(words, b"/run/r", b"c1")
    for root in (b"/run/other", b"/wrapper"):
        assert not is_about(words, root, b"c1")
    for word in {*words, b"json"} - {b"c1"}:
        assert not is_about(words, b"/run/r", word)
    renamed = [word.replace(b"c1", b"kill") for word in words]
    assert is_about(renamed, b"/run/r", b"kill")


def test_create_names_bundle_pid_file_and_console() -> None:
    creation = Creation("/b/init.pid", "/run/console.sock")
    args = create_args("c1", "/b", creation, no_pivot=True, no_new_keyring=True)
    assert args == [
        *("--bundle", "/b", "--pid-file", "/b/init.pid"),
        *("--console-socket", "/run/console.sock", "--no-pivot", "--no-new-keyring", "c1"),
    ]


def test_exec_detaches_and_reads_its_process_from_a_file() -> None:
    assert exec_args("c1", "/b/e1.json", Creation("/b/e1.pid")) == [
        *("--process", "/b/e1.json", "--detach", "--pid-file", "/b/e1.pid", "c1"),
    ]


def test_a_checkpoint_leaves_the_container_running_unless_told_to_end_it() -> None:
    dump = Checkpoint("/image", open_tcp=True, empty_namespaces=("network",))
    assert checkpoint_args("c1", dump) == [
        *("--image-path", "/image", "--tcp-established", "--empty-ns", "network"),
        *("--leave-running", "c1"),
    ]
    assert "--leave-running" not in checkpoint_args("c1", Checkpoint("/image", exit=True))


def test_restore_leaves_reaping_to_us() -> None:
    args = restore_args("c1", "/b", Creation("/p"), Checkpoint("/i", "/w"), no_pivot=False)
    assert "--no-subreaper" in args
    assert args[-1] == "c1"


LOG = """
{"level":"warning","msg":"careful","time":"t"}
not json at all
{"level":"error","msg":"first"}
{"level":"error","msg":"container_linux.go: no such file or directory"}
{"level":"info","msg":"bye"}
{"level":"err
"""


def test_the_last_error_of_a_log_is_the_reason() -> None:
    assert reason_of(LOG) == "container_linux.go: no such file or directory"


@pytest.mark.parametrize("text", ["", '{"level":"warning","msg":"x"}', "{", "{}", "\n \n"])
def test_a_log_without_an_error_has_no_reason(text: str) -> None:
    assert reason_of(text) == ""


@given(st.text())
def test_no_log_crashes_the_reader(text: str) -> None:
    reason_of(text)


@given(st.text(min_size=1).map(str.strip).filter(bool), st.lists(st.text()))
def test_an_error_is_found_among_any_noise(message: str, noise: list[str]) -> None:
    # Not escaped: a JSON string may hold what some take for the end of a line.
    entry = json.dumps({"level": "error", "msg": message}, ensure_ascii=False)
    calm = [line.replace("{", "").replace("panic", "") for line in noise]
    assert reason_of("\n".join([*calm, entry, *calm])) == message


OF_CRUN = """{
  "msg": "opening the namespace",
  "level": "%s",
  "time": "2026-11-29T00:06:16.345709Z"
}
"""


def test_a_record_over_several_lines_is_read() -> None:
    assert reason_of(OF_CRUN % "error") == "opening the namespace"
    assert reason_of(LOG + OF_CRUN % "error" + OF_CRUN % "debug") == "opening the namespace"
    assert reason_of(OF_CRUN % "error" + '{\n  "msg": "half') == "opening the namespace"
    assert reason_of(OF_CRUN % "debug") == ""


def test_plain_output_is_better_than_nothing() -> None:
    assert reason_of('usage\nfatal: no\n\n{"level":"debug"}\n') == "fatal: no"


GO_PANIC = """{"level":"error","msg":"something before"}
panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x55c0a4c2a1b2]

goroutine 1 [running]:
main.init.func12(0xc0001a2000)
\tgithub.com/opencontainers/runc/update.go:180 +0x5b2
main.main()
\tgithub.com/opencontainers/runc/main.go:150 +0xb9a
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GO_PANIC, "panic: runtime error: invalid memory address or nil pointer dereference"),
        (
            "fatal error: all goroutines are asleep - deadlock!\n\ngoroutine 1:\nmain.f()",
            "fatal error: all goroutines are asleep - deadlock!",
        ),
        (
            "thread 'main' panicked at src/main.rs:7:5:\nno such spec\nnote: run with `RUST_...`",
            "thread 'main' panicked at src/main.rs:7:5: no such spec",
        ),
    ],
    ids=["go", "go fatal", "rust"],
)
def test_a_panic_is_reported_by_its_first_line_and_not_by_its_last_frame(
    text: str, reason: str
) -> None:
    assert reason_of(text) == reason
