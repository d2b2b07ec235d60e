"""The translator to the calls of containerd 2.3 writes and reads what protobuf does."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any

from shim.api.bootstrap_pb2 import (
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_INFO,
    BootstrapParams,
    BootstrapResult,
    Extension,
)
from tests.e2e.modern import answer_of, params_of

ARGV = ["shim", "-namespace", "n", "-address", "/a", "-publish-binary", "/p", "-id", "c"]
OPTIONS = Any(type_url="runc.v1.Options", value=bytes(range(200)))


@pytest.mark.parametrize(
    ("flags", "level"), [((), LOG_LEVEL_INFO), (("-debug",), LOG_LEVEL_DEBUG)]
)
def test_the_params_are_those_of_the_call(flags: tuple[str, ...], level: int) -> None:
    told = params_of([*ARGV, *flags, "start"], {"TTRPC_ADDRESS": "/t"}, b"")
    assert BootstrapParams.FromString(told) == BootstrapParams(
        instance_id="c",
        namespace="n",
        log_level=level,  # type: ignore[arg-type] # an int is one of its values
        containerd_version="2.3.0",
        containerd_ttrpc_address="/t",
        containerd_grpc_address="/a",
        containerd_binary="/p",
    )


def test_the_options_become_an_extension() -> None:
    told = params_of([*ARGV, "start"], {"TTRPC_ADDRESS": "/t"}, OPTIONS.SerializeToString())
    assert list(BootstrapParams.FromString(told).extensions) == [Extension(value=OPTIONS)]


def test_an_answer_becomes_json() -> None:
    answer = BootstrapResult(version=3, address="unix:///s", protocol="ttrpc", metadata={"k": "v"})
    expected = {"version": 3, "address": "unix:///s", "protocol": "ttrpc"}
    assert json.loads(answer_of(answer.SerializeToString())) == expected


def test_an_answer_of_another_version_is_refused() -> None:
    answer = BootstrapResult(version=2, address="unix:///s", protocol="ttrpc")
    with pytest.raises(AssertionError, match="another version"):
        answer_of(answer.SerializeToString())
