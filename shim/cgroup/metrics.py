"""Convert the text of the kernel's cgroup files into containerd's metrics messages.

v1.py and v2.py read the files and pass their text by name.  The part of the message for a
missing file is left out; a malformed line counts as absent.  This module reads no file.

Source: containerd/cgroups, cgroup1/*.go and cgroup2/manager.go, for which file
fills which field; Linux Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst
for the formats.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from shim.api import cgroups_v1_pb2 as v1
from shim.api import cgroups_v2_pb2 as v2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google.protobuf.descriptor import Descriptor

U32, U64 = 2**32 - 1, 2**64 - 1
# cpuacct.stat counts in USER_HZ, which is 100 on every architecture Go runs on.
_NANOSECONDS_A_TICK = 10**9 // 100

# Prefix of the four counters, and the field of v1.MemoryStat they go to.
_V1_MEMORY_ENTRIES = {
    "memory": "usage",
    "memory.memsw": "swap",
    "memory.kmem": "kernel",
    "memory.kmem.tcp": "kernel_tcp",
}
_V1_MEMORY_COUNTERS = {
    "limit_in_bytes": "limit",
    "usage_in_bytes": "usage",
    "max_usage_in_bytes": "max",
    "failcnt": "failcnt",
}
# Lines of memory.stat that have another field name in v1.MemoryStat.
_V1_MEMORY_NAMES = {
    "pg_pg_in": "pgpgin",
    "pg_pg_out": "pgpgout",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
    "total_pg_pg_in": "total_pgpgin",
    "total_pg_pg_out": "total_pgpgout",
    "total_pg_fault": "total_pgfault",
    "total_pg_maj_fault": "total_pgmajfault",
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
}
# The files of the CFQ scheduler, and those of the throttle layer, used if CFQ counted nothing.
_V1_CFQ = {
    "blkio.sectors_recursive": "sectors_recursive",
    "blkio.io_service_bytes_recursive": "io_service_bytes_recursive",
    "blkio.io_serviced_recursive": "io_serviced_recursive",
    "blkio.io_queued_recursive": "io_queued_recursive",
    "blkio.io_service_time_recursive": "io_service_time_recursive",
    "blkio.io_wait_time_recursive": "io_wait_time_recursive",
    "blkio.io_merged_recursive": "io_merged_recursive",
    "blkio.time_recursive": "io_time_recursive",
}
_V1_THROTTLE = {
    "blkio.throttle.io_serviced": "io_serviced_recursive",
    "blkio.throttle.io_service_bytes": "io_service_bytes_recursive",
}
_V2_MEMORY_FILES = {
    "memory.current": "usage",
    "memory.max": "usage_limit",
    "memory.peak": "max_usage",
    "memory.swap.current": "swap_usage",
    "memory.swap.max": "swap_limit",
    "memory.swap.peak": "swap_max_usage",
}

# The files that :func:`v1_metrics` parses, by controller.  The names of hugetlb's files
# contain the page size: see HUGETLB.
V1_FILES: dict[str, tuple[str, ...]] = {
    "pids": ("pids.current", "pids.max"),
    "cpu": ("cpu.stat",),
    "cpuacct": ("cpuacct.usage", "cpuacct.usage_percpu", "cpuacct.stat"),
    "memory": (
        "memory.stat",
        "memory.oom_control",
        *(f"{p}.{c}" for p in _V1_MEMORY_ENTRIES for c in _V1_MEMORY_COUNTERS),
    ),
    "blkio": (*_V1_CFQ, *_V1_THROTTLE),
    "rdma": ("rdma.current", "rdma.max"),
}
# The files that :func:`v2_metrics` parses, besides those that match HUGETLB.
V2_FILES: tuple[str, ...] = (
    *("pids.current", "pids.max", "cpu.stat", "cpu.pressure", "memory.stat", *_V2_MEMORY_FILES),
    *("memory.pressure", "memory.events", "io.stat", "io.pressure", "rdma.current", "rdma.max"),
)
HUGETLB = re.compile(
    r"hugetlb\.([0-9]+[KMGT]?B)\.(?:usage_in_bytes|max_usage_in_bytes|failcnt|current|max|events)"
)


def parse_number(text: str | None, maximum: int = 0) -> int:
    """Parse one number.  ``max`` becomes ``maximum``; negative, malformed and None become 0."""
    if text is None:
        return 0
    try:
        number = int(text)  # the spaces around it do not count
    except ValueError:
        return maximum if text.strip() == "max" else 0
    return number if 0 <= number <= U64 else min(max(number, 0), U64)


def parse_pairs(text: str | None) -> dict[str, int]:
    """Parse lines of a name and a number: memory.stat, cpu.stat, memory.events and such."""
    found = {}
    for line in (text or "").split("\n"):
        pair = line.split()
        if len(pair) == 2:
            found[pair[0]] = parse_number(pair[1], U64)
    return found


def v1_metrics(files: Mapping[str, str], partitions: str = "") -> v1.Metrics:
    """Convert the files of a v1 group; ``partitions`` is /proc/partitions, for device names.

    An unlimited pids.max is 0 here and 2**64-1 in v2, as in containerd; its clients expect
    these values.
    """
    metrics = v1.Metrics(
        cpu=_v1_cpu(files),
        hugetlb=[
            v1.HugetlbStat(
                pagesize=size,
                usage=parse_number(files.get(f"hugetlb.{size}.usage_in_bytes")),
                max=parse_number(files.get(f"hugetlb.{size}.max_usage_in_bytes")),
                failcnt=parse_number(files.get(f"hugetlb.{size}.failcnt")),
            )
            for size in _page_sizes(files)
        ],
    )
    if "pids.current" in files:
        metrics.pids.current = parse_number(files["pids.current"])
        metrics.pids.limit = parse_number(files.get("pids.max"))
        metrics.pids.SetInParent()
    if "memory.stat" in files:
        _fill_v1_memory(metrics.memory, files)
    if "memory.oom_control" in files:
        control = parse_pairs(files["memory.oom_control"])
        metrics.memory_oom_control.oom_kill_disable = control.get("oom_kill_disable", 0)
        metrics.memory_oom_control.under_oom = control.get("under_oom", 0)
        metrics.memory_oom_control.oom_kill = control.get("oom_kill", 0)
        metrics.memory_oom_control.SetInParent()
    if any(name.startswith("blkio.") for name in files):
        metrics.blkio.CopyFrom(_v1_blkio(files, partitions))
        metrics.blkio.SetInParent()
    if "rdma.current" in files and "rdma.max" in files:
        metrics.rdma.SetInParent()
        for device, handles, objects in _rdma(files["rdma.current"]):
            metrics.rdma.current.add(device=device, hca_handles=handles, hca_objects=objects)
        for device, handles, objects in _rdma(files["rdma.max"]):
            metrics.rdma.limit.add(device=device, hca_handles=handles, hca_objects=objects)
    return metrics


def _v1_cpu(files: Mapping[str, str]) -> v1.CPUStat:
    # Both parts are set even if empty: Docker reads them without checking for presence.
    ticks = parse_pairs(files.get("cpuacct.stat"))
    stat = parse_pairs(files.get("cpu.stat"))
    return v1.CPUStat(
        usage=v1.CPUUsage(
            total=parse_number(files.get("cpuacct.usage")),
            kernel=min(ticks.get("system", 0) * _NANOSECONDS_A_TICK, U64),
            user=min(ticks.get("user", 0) * _NANOSECONDS_A_TICK, U64),
            per_cpu=[parse_number(one) for one in files.get("cpuacct.usage_percpu", "").split()],
        ),
        throttling=v1.Throttle(
            periods=stat.get("nr_periods", 0),
            throttled_periods=stat.get("nr_throttled", 0),
            throttled_time=stat.get("throttled_time", 0),
        ),
    )


def _fill_v1_memory(memory: v1.MemoryStat, files: Mapping[str, str]) -> None:
    memory.SetInParent()
    stat = parse_pairs(files["memory.stat"])
    for field in _counters(memory.DESCRIPTOR):
        if value := stat.get(_V1_MEMORY_NAMES.get(field, field)):
            setattr(memory, field, value)
    for prefix, field in _V1_MEMORY_ENTRIES.items():
        entry: v1.MemoryEntry = getattr(memory, field)
        entry.SetInParent()
        for counter, member in _V1_MEMORY_COUNTERS.items():
            if value := parse_number(files.get(f"{prefix}.{counter}")):
                setattr(entry, member, value)


def parse_partitions(text: str) -> dict[tuple[int, int], str]:
    """Parse /proc/partitions: major and minor to /dev/name.  The first name wins."""
    names: dict[tuple[int, int], str] = {}
    for line in text.split("\n"):
        match line.split(None, 3):
            case [major, minor, _, name] if major.isdecimal() and minor.isdecimal():
                key = parse_number(major), parse_number(minor)
                names.setdefault(key, f"/dev/{_utf8(name)}")
    return names


def _v1_blkio(files: Mapping[str, str], partitions: str) -> v1.BlkIOStat:
    blkio = v1.BlkIOStat()
    devices: Mapping[tuple[int, int], str] | None = None
    for table in (_V1_CFQ, _V1_THROTTLE):
        for name, field in table.items():
            text = files.get(name, "")
            if ":" not in text:
                continue  # no device has a counter
            if devices is None:
                devices = parse_partitions(partitions)
            getattr(blkio, field).extend(_v1_blkio_entries(text, devices))
        if blkio.ByteSize():
            break
    return blkio


def _v1_blkio_entries(
    text: str, devices: Mapping[tuple[int, int], str]
) -> Iterator[v1.BlkIOEntry]:
    # "8:0 Read 4096", or "8:0 8" without an operation; the last line is "Total 4096".
    for line in text.split("\n"):
        match line.replace(":", " ").split():
            case [major, minor, *op, value] if len(op) <= 1 and major.isdecimal():
                key = parse_number(major), parse_number(minor)
                yield v1.BlkIOEntry(
                    device=devices.get(key, ""),
                    major=key[0],
                    minor=key[1],
                    op=op[0] if op else "",
                    value=parse_number(value),
                )


def _rdma(text: str) -> Iterator[tuple[str, int, int]]:
    # "mlx4_0 hca_handle=2 hca_object=max"; the administrator can choose any device name.
    for line in text.split("\n"):
        match line.rsplit(" ", 2):
            case [device, first, second]:
                counts = dict(pair.split("=", 1) for pair in (first, second) if "=" in pair)
                handles, objects = (
                    min(parse_number(counts.get(name), U32), U32)
                    for name in ("hca_handle", "hca_object")
                )
                yield _utf8(device), handles, objects


def _utf8(name: str) -> str:
    """Return ``name`` as a valid protobuf string: invalid UTF-8 becomes U+FFFD."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _page_sizes(files: Mapping[str, str]) -> list[str]:
    return sorted({found[1] for name in files if (found := HUGETLB.fullmatch(name))})


def v2_metrics(files: Mapping[str, str]) -> v2.Metrics:
    """Convert the files of a v2 group.  A limit of ``max`` is 2**64-1, as in containerd."""
    metrics = v2.Metrics(
        hugetlb=[
            v2.HugeTlbStat(
                pagesize=size,
                current=parse_number(files.get(f"hugetlb.{size}.current")),
                max=parse_number(files.get(f"hugetlb.{size}.max"), U64),
                failcnt=parse_pairs(files.get(f"hugetlb.{size}.events")).get("max", 0),
            )
            for size in _page_sizes(files)
        ],
    )
    if "pids.current" in files:
        metrics.pids.current = parse_number(files["pids.current"])
        metrics.pids.limit = parse_number(files.get("pids.max"), U64)
        metrics.pids.SetInParent()
    if "cpu.stat" in files:
        _fill(metrics.cpu, parse_pairs(files["cpu.stat"]))
        _fill_pressure(metrics.cpu, files.get("cpu.pressure"))
    if "memory.stat" in files:
        _fill(metrics.memory, parse_pairs(files["memory.stat"]))
        for name, field in _V2_MEMORY_FILES.items():
            setattr(metrics.memory, field, parse_number(files.get(name), U64))
        _fill_pressure(metrics.memory, files.get("memory.pressure"))
    if "memory.events" in files:
        _fill(metrics.memory_events, parse_pairs(files["memory.events"]))
    if "io.stat" in files or "io.pressure" in files:
        metrics.io.SetInParent()
        metrics.io.usage.extend(_v2_io(files.get("io.stat", "")))
        _fill_pressure(metrics.io, files.get("io.pressure"))
    if "rdma.current" in files or "rdma.max" in files:
        metrics.rdma.SetInParent()
        for device, handles, objects in _rdma(files.get("rdma.current", "")):
            metrics.rdma.current.add(device=device, hca_handles=handles, hca_objects=objects)
        for device, handles, objects in _rdma(files.get("rdma.max", "")):
            metrics.rdma.limit.add(device=device, hca_handles=handles, hca_objects=objects)
    return metrics


def _fill(message: v2.CPUStat | v2.MemoryStat | v2.MemoryEvents, stat: Mapping[str, int]) -> None:
    # In v2, the lines have the names of the message's fields.
    message.SetInParent()
    for field in _counters(message.DESCRIPTOR):
        if value := stat.get(field):
            setattr(message, field, value)


@cache
def _counters(message: Descriptor) -> tuple[str, ...]:
    """Return the names of the fields of ``message`` that are numbers."""
    return tuple(field.name for field in message.fields if field.message_type is None)


def _fill_pressure(message: v2.CPUStat | v2.MemoryStat | v2.IOStat, text: str | None) -> None:
    # "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", then "full" likewise.
    if text is None:
        return
    message.psi.SetInParent()
    for line in text.split("\n"):
        kind, *pairs = line.split() or [""]
        if kind not in ("some", "full"):
            continue
        data: v2.PSIData = getattr(message.psi, kind)
        data.SetInParent()
        counts = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        data.total = parse_number(counts.get("total"))
        for name in ("avg10", "avg60", "avg300"):
            setattr(data, name, _parse_average(counts.get(name, "")))


def _parse_average(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _v2_io(text: str) -> Iterator[v2.IOEntry]:
    # "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0"
    for line in text.split("\n"):
        device, *pairs = line.split() or [""]
        major, colon, minor = device.partition(":")
        if not (pairs and colon and major.isdecimal() and minor.isdecimal()):
            continue
        counts = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        entry = v2.IOEntry(major=parse_number(major), minor=parse_number(minor))
        for name in ("rbytes", "wbytes", "rios", "wios"):
            setattr(entry, name, parse_number(counts.get(name)))
        yield entry
