from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp

from shim.api import cgroups_v1_pb2, cgroups_v2_pb2, options_pb2, process_pb2, task_pb2
from shim.errors import ShimError, UnsupportedError
from shimctl import values
from shimctl.values import Pid, Stats, Status


def test_stats_of_cgroup_v1_are_in_seconds_and_bytes() -> None:
    metrics = cgroups_v1_pb2.Metrics()
    metrics.cpu.usage.total = 1_500_000_000
    metrics.cpu.usage.user = 1_000_000_000
    metrics.cpu.usage.kernel = 500_000_000
    metrics.memory.usage.usage = 4096
    metrics.memory.usage.limit = 0x7FFFFFFFFFFFF000
    metrics.pids.current = 3
    packed = AnyMessage(
        type_url="io.containerd.cgroups.v1.Metrics", value=metrics.SerializeToString()
    )
    assert values.stats_of(packed) == Stats(1, 1.5, 1.0, 0.5, 4096, None, 3, None)


def test_stats_of_cgroup_v2_are_in_seconds_and_bytes() -> None:
    metrics = cgroups_v2_pb2.Metrics()
    metrics.cpu.usage_usec = 1_500_000
    metrics.memory.usage = 4096
    metrics.memory.usage_limit = 8192
    metrics.pids.current = 3
    metrics.pids.limit = 2**64 - 1
    packed = AnyMessage(
        type_url="types.example/io.containerd.cgroups.v2.Metrics",
        value=metrics.SerializeToString(),
    )
    assert values.stats_of(packed) == Stats(2, 1.5, 0.0, 0.0, 4096, 8192, 3, None)


@pytest.mark.parametrize("type_url", ["", "windows.Stats"])
def test_strange_metrics_are_refused_by_name(type_url: str) -> None:
    with pytest.raises(UnsupportedError, match=type_url or "no metrics"):
        values.stats_of(AnyMessage(type_url=type_url))


def test_a_running_process_has_no_exit_status() -> None:
    state = values.state_of(task_pb2.StateResponse(id="c", status=process_pb2.RUNNING, pid=4))
    assert (state.status, state.exit_status, state.exited_at) == (Status.RUNNING, None, None)


def test_an_exit_status_of_zero_is_one() -> None:
    state = values.state_of(task_pb2.StateResponse(id="c", status=process_pb2.STOPPED))
    assert state.exit_status == 0


def test_a_status_from_the_future_is_unknown() -> None:
    reply = task_pb2.StateResponse.FromString(b"\x20\x63")  # field 4, 99
    assert values.state_of(reply).status is Status.UNKNOWN


@pytest.mark.parametrize("seconds", [0, -62135596800])
def test_the_zero_times_of_protobuf_and_of_go_are_none(seconds: int) -> None:
    assert values.time_of(Timestamp(seconds=seconds)) is None


@pytest.mark.parametrize(
    "stamp",
    [
        Timestamp(seconds=1 << 50),
        Timestamp(seconds=1, nanos=-1),
        Timestamp(seconds=1, nanos=10**9),
    ],
)
def test_what_is_no_time_is_none(stamp: Timestamp) -> None:
    assert values.time_of(stamp) is None
    assert values.state_of(
        task_pb2.StateResponse(id="c", status=process_pb2.STOPPED, exited_at=stamp)
    ) == values.state_of(task_pb2.StateResponse(id="c", status=process_pb2.STOPPED))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_metrics_that_are_none_are_an_error_of_ours(version: str) -> None:
    with pytest.raises(ShimError, match=r"cannot decode .* as io\.containerd\.cgroups") as caught:
        values.stats_of(
            AnyMessage(type_url=f"io.containerd.cgroups.{version}.Metrics", value=b"\xff")
        )
    assert not isinstance(caught.value, UnsupportedError)


def test_pids_know_which_exec_they_are_of() -> None:
    info = AnyMessage(
        type_url="containerd.runc.v1.ProcessDetails",
        value=options_pb2.ProcessDetails(exec_id="e1").SerializeToString(),
    )
    processes = [
        process_pb2.ProcessInfo(pid=1),
        process_pb2.ProcessInfo(pid=2, info=info),
        process_pb2.ProcessInfo(pid=3, info=AnyMessage(type_url="other", value=b"\xff")),
        process_pb2.ProcessInfo(pid=4, info=AnyMessage(type_url=info.type_url, value=b"\xff")),
    ]
    assert values.pids_of(processes) == (Pid(1), Pid(2, "e1"), Pid(3), Pid(4))
