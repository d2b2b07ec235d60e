"""The command line, the environment and stdin of ``start``."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st

from shim import log
from shim.api.bootstrap_pb2 import (
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_TRACE,
    LOG_LEVEL_WARN,
    BootstrapParams,
    Extension,
)
from shim.errors import InvalidError
from shim.start.flags import SOCKET_DIR, Flags, Invocation, invocation_of, parse_flags

OPTIONS = AnyMessage(type_url="containerd.runc.v1.Options", value=b"\x50\x01")


@pytest.mark.parametrize("spelling", [("-id", "x"), ("--id", "x"), ("-id=x",), ("--id=x",)])
def test_a_flag_may_be_spelled_as_go_lets_it(spelling: tuple[str, ...]) -> None:
    assert parse_flags([*spelling, "start"]) == Flags(id="x", action="start")


def test_an_empty_value_is_a_value() -> None:
    flags = parse_flags(["-namespace", "default", "-address", "", "-id", "x", "start"])
    assert flags == Flags(namespace="default", address="", id="x", action="start")


def test_flags_end_at_the_action() -> None:
    assert parse_flags(["-id", "x", "start", "-debug"]) == Flags(id="x", action="start")


@pytest.mark.parametrize(
    ("word", "value"), [("-debug", True), ("-debug=true", True), ("-debug=0", False)]
)
def test_a_switch_needs_no_value(word: str, value: bool) -> None:
    assert parse_flags([word, "start"]).debug is value


@pytest.mark.parametrize("argv", [["-bogus"], ["-id"], ["-debug=maybe"], ["---id", "x"]])
def test_a_flag_that_is_none_is_refused(argv: list[str]) -> None:
    with pytest.raises(InvalidError):
        parse_flags(argv)


@given(st.lists(st.text()))
def test_no_command_line_crashes_the_parser(argv: list[str]) -> None:
    with contextlib.suppress(InvalidError):
        parse_flags(argv)


FLAGS = Flags(namespace="ns", id="c1", address="/run/c.sock", action="start")


def test_legacy_start_takes_its_events_address_from_the_environment() -> None:
    invocation = invocation_of(FLAGS, {"TTRPC_ADDRESS": "/run/c.sock.ttrpc"}, b"")
    assert invocation == Invocation(
        namespace="ns",
        id="c1",
        grpc_address="/run/c.sock",
        ttrpc_address="/run/c.sock.ttrpc",
        socket_dir=SOCKET_DIR,
        level=log.INFO,
    )


def test_legacy_options_are_an_any_on_stdin() -> None:
    invocation = invocation_of(FLAGS, {}, OPTIONS.SerializeToString())
    assert (invocation.options, invocation.modern) == (OPTIONS, False)


def test_an_any_is_not_taken_for_bootstrap_params_though_it_decodes_as_them() -> None:
    liar = AnyMessage(type_url="someone", value=b"else")
    assert BootstrapParams.FromString(liar.SerializeToString()).instance_id == "someone"
    assert not invocation_of(FLAGS, {}, liar.SerializeToString()).modern


@given(st.binary(max_size=200))
def test_garbage_on_stdin_is_a_legacy_start(data: bytes) -> None:
    assert not invocation_of(FLAGS, {}, data).modern


def params(**fields: object) -> bytes:
    message = BootstrapParams(instance_id="c1", namespace="ns", **fields)  # type: ignore[arg-type] # fields are its own
    return message.SerializeToString()


def test_bootstrap_params_win_over_flags_and_environment() -> None:
    stdin = params(
        containerd_grpc_address="/run/new.sock",
        containerd_ttrpc_address="/run/new.ttrpc",
        socket_dir="/run/s",
        extensions=[Extension(value=AnyMessage(type_url="x/y")), Extension(value=OPTIONS)],
    )
    invocation = invocation_of(FLAGS, {"TTRPC_ADDRESS": "/run/old"}, stdin)
    assert invocation == Invocation(
        namespace="ns",
        id="c1",
        grpc_address="/run/new.sock",
        ttrpc_address="/run/new.ttrpc",
        socket_dir="/run/s",
        modern=True,
        options=OPTIONS,
    )


@pytest.mark.parametrize(
    ("level", "chatty"),
    [(LOG_LEVEL_TRACE, True), (LOG_LEVEL_DEBUG, True), (0, False), (LOG_LEVEL_WARN, False)],
)
def test_debug_is_a_level_of_minus_4_or_less(level: int, chatty: bool) -> None:
    invocation = invocation_of(FLAGS, {}, params(log_level=level))
    assert (invocation.level == log.DEBUG) is chatty


def test_a_negative_level_is_a_ten_byte_varint_on_the_wire() -> None:
    wire = b"\x0a\x02c1\x12\x02ns\x18" + b"\xf8" + b"\xff" * 8 + b"\x01"
    assert invocation_of(FLAGS, {}, wire).level == log.DEBUG


def test_params_for_another_container_are_not_trusted() -> None:
    other = BootstrapParams(instance_id="c2", namespace="ns").SerializeToString()
    assert not invocation_of(FLAGS, {}, other).modern


@pytest.mark.parametrize("flags", [Flags(id="x"), Flags(namespace="ns")])
def test_start_needs_a_namespace_and_an_id(flags: Flags) -> None:
    with pytest.raises(InvalidError):
        invocation_of(flags, {}, b"")


@pytest.mark.parametrize(("text", "seconds"), [("", None), ("30", 30.0), ("0.5", 0.5)])
def test_the_environment_bounds_a_runtime_command(text: str, seconds: float | None) -> None:
    environ = {"TRIO_SHIM_RUNTIME_TIMEOUT": text}
    found = invocation_of(Flags(namespace="default", id="c1"), environ, b"")
    assert found.runtime_timeout == seconds


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_timeout_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="TRIO_SHIM_RUNTIME_TIMEOUT must be a number"):
        invocation_of(
            Flags(namespace="default", id="c1"), {"TRIO_SHIM_RUNTIME_TIMEOUT": text}, b""
        )
