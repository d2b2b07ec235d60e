"""The names, labels and values of the metrics; Prometheus's own parser reads them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from shim import names
from shim.errors import InvalidError, UnavailableError
from shimctl.discover import Found, Health
from shimctl.listing.origin import Origin
from shimctl.metrics.collect import Container, Counters, ShimFigures, Snapshot, parsed
from shimctl.metrics.exposition import parse_address, serve, text_of, write
from shimctl.values import Stats, Status
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

FOUND = Found("k8s.io", "abc", "unix:///s", health=Health.UP, status=Status.RUNNING)
ORIGIN = Origin("web-1/nginx", "docker.io/library/nginx:1", "web-1", "shop", "sandbox")
STATS = Stats(2, 1.5, 1.0, 0.5, 4096, None, 3, 100, 10, 20, 1024, 1)
COUNTERS = Counters(7, 100, 50, 2, 3_000_000_000, 4, 500_000_000)

Samples = dict[str, list[tuple[dict[str, str], float]]]


def samples(snapshot: Snapshot) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text_of(snapshot)):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_a_container_has_the_names_and_labels_of_cadvisor() -> None:
    read = samples(Snapshot([Container(FOUND, ORIGIN, STATS)]))
    labels = {
        "id": "abc",
        "name": "abc",
        "image": "docker.io/library/nginx:1",
        "container": "nginx",
        "pod": "web-1",
        "namespace": "shop",
        "containerd_namespace": "k8s.io",
    }
    values = {
        "container_cpu_usage_seconds_total": 1.5,
        "container_cpu_user_seconds_total": 1.0,
        "container_cpu_system_seconds_total": 0.5,
        "container_memory_usage_bytes": 4096,
        "container_memory_working_set_bytes": 3072,
        "container_spec_memory_limit_bytes": 0,
        "container_threads": 3,
        "container_threads_max": 100,
        "container_fs_reads_bytes_total": 10,
        "container_fs_writes_bytes_total": 20,
        "container_oom_events_total": 1,
        "container_running": 1,
    }
    assert read == {name: [(labels, value)] for name, value in values.items()}


def test_the_sandbox_of_a_pod_is_no_container_of_it() -> None:
    sandbox = Origin("web-1", "", "web-1", "shop", "sandbox")
    ((labels, _),) = samples(Snapshot([Container(FOUND, sandbox, None)]))["container_running"]
    assert (labels["container"], labels["pod"]) == ("", "web-1")


def test_a_shim_keeps_its_name_while_its_containers_change() -> None:
    read = samples(Snapshot([], [ShimFigures(FOUND, 2, True, "0.1", name="sandbox")]))
    assert [labels["name"] for labels, _ in read["shim_containers"]] == ["sandbox"]


def test_a_shim_has_its_counters_in_seconds_and_bytes() -> None:
    one = ShimFigures(FOUND, 2, True, "0.1", 5 << 20, 12, COUNTERS)
    read = samples(Snapshot([], [one]))
    labels = {"containerd_namespace": "k8s.io", "name": "abc"}
    assert read.pop("shim_info") == [({**labels, "version": "0.1"}, 1)]
    values = {
        "shim_up": 1,
        "shim_containers": 2,
        "shim_memory_pss_bytes": 5 << 20,
        "shim_open_fds": 12,
        "shim_events_waiting": 7,
        "shim_output_spooled_bytes_total": 100,
        "shim_output_dropped_bytes_total": 50,
        "shim_exec_seconds_count": 2,
        "shim_exec_seconds_sum": 3.0,
        "shim_exit_seconds_count": 4,
        "shim_exit_seconds_sum": 0.5,
    }
    assert read == {name: [(labels, value)] for name, value in values.items()}


def test_an_unknown_figure_has_no_sample() -> None:
    read = samples(Snapshot([Container(FOUND, Origin())], [ShimFigures(FOUND, 1)]))
    assert set(read) == {"container_running", "shim_up", "shim_containers"}
    assert read["shim_up"][0][1] == 0


@given(st.text(alphabet=st.characters(), max_size=20))
def test_a_name_of_any_characters_is_one_label(text: str) -> None:
    # Names come from annotations, which any user who starts a container can set.
    origin = Origin(name=text, image=text + "\udcff")
    ((labels, _),) = samples(Snapshot([Container(FOUND, origin)]))["container_running"]
    assert labels["image"] == text.encode(errors="replace").decode() + "?"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9842", ("127.0.0.1", 9842)),
        (":9842", ("127.0.0.1", 9842)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:9842", ("::1", 9842)),
        ("localhost:9842", ("localhost", 9842)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "localhost", "host:", "host:x", "1:0", "1:65536", "1:²"])
def test_an_address_without_a_port_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="use HOST:PORT"):
        parse_address(text)


def test_a_file_is_replaced_whole_and_readable_for_node_exporter(tmp_path: Path) -> None:
    file = tmp_path / "trio.prom"
    umask = os.umask(0o077)
    try:
        write(file, "a 1\n")
        write(file, "b 2\n")
    finally:
        os.umask(umask)
    assert file.read_text() == "b 2\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("value", [b"", b"[]", b"{", b'{"execs": "many", "news": 1}', b"\xff"])
def test_odd_counters_of_another_version_are_left_out(value: bytes) -> None:
    found = parsed(AnyMessage(type_url=names.COUNTERS, value=value))
    assert found in (None, Counters())
    assert parsed(AnyMessage(type_url="other", value=value)) is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_metrics_are_served_at_the_url_that_is_printed(family: socket.AddressFamily) -> None:
    with socket.socket(family) as free:
        try:
            free.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        host, port = free.getsockname()[:2]
    address = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    command = [sys.executable, "-m", "shimctl", "metrics", "--listen", address, "-n", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stderr is not None
        try:
            line = serving.stderr.readline().strip()
            assert line == f"shimctl: serving metrics at http://{address}/metrics"
            with urlopen(line.rpartition(" ")[2], timeout=30 * PATIENCE) as answer:
                assert b"\n# TYPE shim_up gauge\n" in answer.read()
        finally:
            serving.kill()


def test_an_address_that_is_in_use_is_named() -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        address = "{}:{}".format(*used.getsockname())
        with pytest.raises(UnavailableError, match=f"cannot listen on {address}: .*; use another"):
            serve(address)


@pytest.mark.parametrize("host", ["a" * 100, "\udcff"])
def test_a_host_that_cannot_exist_is_named(host: str) -> None:
    with pytest.raises(InvalidError, match=f"cannot listen on {host}:9842: no host has this name"):
        serve(f"{host}:9842")
