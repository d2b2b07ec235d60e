"""What the runtime is told, and what is understood of its answer."""

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
    last_error,
    last_line,
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
    assert last_error(LOG) == "container_linux.go: no such file or directory"


@pytest.mark.parametrize("text", ["", "plain text\n", '{"level":"warning","msg":"x"}', "{", "{}"])
def test_a_log_without_an_error_has_no_reason(text: str) -> None:
    assert last_error(text) == ""


@given(st.text())
def test_no_log_crashes_the_reader(text: str) -> None:
    last_error(text)
    last_line(text)


@given(st.text(min_size=1).map(str.strip).filter(bool), st.lists(st.text()))
def test_an_error_is_found_among_any_noise(message: str, noise: list[str]) -> None:
    entry = json.dumps({"level": "error", "msg": message})
    calm = [line.replace("{", "") for line in noise]
    assert last_error("\n".join([*calm, entry, *calm])) == message


def test_plain_output_is_better_than_nothing() -> None:
    assert last_line('usage\nfatal: no\n\n{"level":"debug"}\n') == "fatal: no"
