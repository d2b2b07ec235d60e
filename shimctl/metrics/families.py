"""Names the metrics: cAdvisor's names and labels for containers, ``shim_`` for shims.

A container has cAdvisor's labels ``id``, ``name``, ``image``, and the kubelet's
``container``, ``pod`` and ``namespace``, which are empty outside of Kubernetes.
``id`` and ``name`` are the container's id, as cAdvisor's ``name`` is under containerd.
The ``name`` of a shim is the id of the container for which it was started, so it stays the
same while the containers of the shim change.

Source: cAdvisor docs/storage/prometheus.md; Prometheus, "Metric and label naming".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    SummaryMetricFamily,
)

from shimctl.values import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from shimctl.metrics.collect import Container, Counters, ShimFigures, Snapshot
    from shimctl.values import Stats

_LABELS = ("id", "name", "image", "container", "pod", "namespace", "containerd_namespace")
_SHIM = ("containerd_namespace", "name")
_SECONDS = 1e-9  # of a nanosecond

Figure = tuple[str, str, "Callable[[Stats], float | None]"]

_COUNTERS: tuple[Figure, ...] = (
    ("container_cpu_usage_seconds", "CPU time used", lambda s: s.cpu),
    ("container_cpu_user_seconds", "CPU time used in user mode", lambda s: s.cpu_user),
    ("container_cpu_system_seconds", "CPU time used in the kernel", lambda s: s.cpu_system),
    ("container_fs_reads_bytes", "Bytes read from block devices", lambda s: s.io_read),
    ("container_fs_writes_bytes", "Bytes written to block devices", lambda s: s.io_written),
    ("container_oom_events", "Processes killed at the memory limit", lambda s: s.oom_kills),
)
_GAUGES: tuple[Figure, ...] = (
    ("container_memory_usage_bytes", "Memory used, with caches", lambda s: s.memory),
    (
        "container_memory_working_set_bytes",
        "Memory used, without caches of files that no program used lately",
        lambda s: max(0, s.memory - s.memory_inactive),
    ),
    (
        "container_spec_memory_limit_bytes",
        "Memory limit, 0 for none",
        lambda s: s.memory_limit or 0,
    ),
    ("container_threads", "Threads", lambda s: s.pids),
    ("container_threads_max", "Limit of threads, 0 for none", lambda s: s.pids_limit or 0),
)
_SHIM_GAUGES: tuple[tuple[str, str, Callable[[ShimFigures], float | None]], ...] = (
    ("shim_up", "Whether the shim answers", lambda one: int(one.up)),
    ("shim_containers", "Containers of the shim", lambda one: one.containers),
    (
        "shim_memory_pss_bytes",
        "Memory of the shim, shared memory divided by its users",
        lambda one: one.memory,
    ),
    ("shim_open_fds", "Open fds of the shim", lambda one: one.fds),
    (
        "shim_events_waiting",
        "Events that the manager has not acknowledged",
        lambda one: one.counters.events_waiting if one.counters else None,
    ),
)
_SHIM_COUNTERS: tuple[tuple[str, str, Callable[[Counters], int]], ...] = (
    ("shim_output_spooled_bytes", "Output stored until a reader reads it", lambda c: c.spooled),
    ("shim_output_dropped_bytes", "Output discarded without a reader", lambda c: c.dropped),
)
_SHIM_TIMES: tuple[tuple[str, str, Callable[[Counters], tuple[int, int]]], ...] = (
    ("shim_exec_seconds", "Time to start an exec", lambda c: (c.execs, c.exec_time)),
    (
        "shim_exit_seconds",
        "Time from the exit of a process to its event",
        lambda c: (c.exits, c.exit_time),
    ),
)


def families_of(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield every metric; an unknown figure has no sample."""
    for name, text, figure in _COUNTERS:
        yield _of_containers(CounterMetricFamily(name, text, labels=_LABELS), snapshot, figure)
    for name, text, figure in _GAUGES:
        yield _of_containers(GaugeMetricFamily(name, text, labels=_LABELS), snapshot, figure)
    running = GaugeMetricFamily("container_running", "Whether it runs", labels=_LABELS)
    for one in snapshot.containers:
        is_running = one.found.status in (Status.RUNNING, Status.PAUSED, Status.PAUSING)
        running.add_metric(labels_of(one), int(is_running))
    yield running
    yield from _of_shims(snapshot)


def _of_containers(
    family: CounterMetricFamily | GaugeMetricFamily,
    snapshot: Snapshot,
    figure: Callable[[Stats], float | None],
) -> Metric:
    for one in snapshot.containers:
        if one.stats is not None and (value := figure(one.stats)) is not None:
            family.add_metric(labels_of(one), value)
    return family


def _of_shims(snapshot: Snapshot) -> Iterator[Metric]:
    for name, text, gauge in _SHIM_GAUGES:
        family = GaugeMetricFamily(name, text, labels=_SHIM)
        for one in snapshot.shims:
            if (value := gauge(one)) is not None:
                family.add_metric(_shim_labels(one), value)
        yield family
    counted = [(_shim_labels(one), one.counters) for one in snapshot.shims if one.counters]
    for name, text, counter in _SHIM_COUNTERS:
        total = CounterMetricFamily(name, text, labels=_SHIM)
        for labels, counters in counted:
            total.add_metric(labels, counter(counters))
        yield total
    for name, text, times in _SHIM_TIMES:
        summary = SummaryMetricFamily(name, text, labels=_SHIM)
        for labels, counters in counted:
            count, nanoseconds = times(counters)
            summary.add_metric(labels, count, nanoseconds * _SECONDS)
        yield summary
    info = GaugeMetricFamily("shim_info", "The version of the shim", labels=(*_SHIM, "version"))
    for one in snapshot.shims:
        if one.up:
            info.add_metric([*_shim_labels(one), one.version], 1)
    yield info


def labels_of(one: Container) -> list[str]:
    """Return the values of a container's labels."""
    origin = one.origin
    pod = origin.pod
    container = origin.name.removeprefix(f"{pod}/") if pod and origin.name != pod else ""
    return [
        *(_text(one.found.id), _text(one.found.id), _text(origin.image), _text(container)),
        *(_text(pod), _text(origin.pod_namespace), _text(one.found.namespace)),
    ]


def _shim_labels(one: ShimFigures) -> list[str]:
    name = one.name or one.found.id or one.found.address.rpartition("/")[2]
    return [_text(one.found.namespace), _text(name)]


def _text(value: str) -> str:
    """Return ``value`` as UTF-8 text, which every label must be."""
    return value.encode(errors="replace").decode()
