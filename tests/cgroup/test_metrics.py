from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shim.cgroup.metrics import (
    U32,
    U64,
    V1_FILES,
    V2_FILES,
    parse_number,
    parse_partitions,
    v1_metrics,
    v2_metrics,
)

V1 = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 98765\nnr_bursts 0\nburst_time 0\n",
    "cpuacct.usage": "123456789\n",
    "cpuacct.usage_percpu": "100000000 23456789 \n",
    "cpuacct.stat": "user 7\nsystem 5\n",
    "memory.stat": (
        "cache 4096\nrss 8192\nrss_huge 1\nshmem 2\nmapped_file 3\ndirty 4\nwriteback 5\n"
        "pgpgin 6\npgpgout 7\npgfault 8\npgmajfault 9\ninactive_anon 10\nactive_anon 11\n"
        "inactive_file 12\nactive_file 13\nunevictable 14\n"
        "hierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 15\n"
        "total_cache 16\ntotal_rss 17\ntotal_pgpgin 18\ntotal_pgpgout 19\ntotal_pgfault 20\n"
        "total_pgmajfault 21\ntotal_unevictable 22\n"
    ),
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
    "memory.usage_in_bytes": "12288\n",
    "memory.limit_in_bytes": "9223372036854771712\n",
    "memory.max_usage_in_bytes": "20480\n",
    "memory.failcnt": "6\n",
    "memory.kmem.usage_in_bytes": "77\n",
    "memory.kmem.tcp.limit_in_bytes": "88\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
    "rdma.max": "mlx4_0 hca_handle=3 hca_object=max\n",
    "hugetlb.2MB.usage_in_bytes": "2097152\n",
    "hugetlb.2MB.max_usage_in_bytes": "4194304\n",
    "hugetlb.2MB.failcnt": "1\n",
    "hugetlb.1GB.usage_in_bytes": "0\n",
}
PARTITIONS = """major minor  #blocks  name

 254        0   33554432 vda
 254        0   33554432 again
   8       16    1048576 sdb
"""


def test_v1_fills_cpu_in_nanoseconds() -> None:
    cpu = v1_metrics(V1).cpu
    assert (cpu.usage.total, list(cpu.usage.per_cpu)) == (123456789, [100000000, 23456789])
    assert (cpu.usage.user, cpu.usage.kernel) == (70_000_000, 50_000_000)
    throttling = cpu.throttling
    assert (throttling.periods, throttling.throttled_periods) == (10, 4)
    assert throttling.throttled_time == 98765


def test_v1_fills_memory() -> None:
    memory = v1_metrics(V1).memory
    assert (memory.cache, memory.rss, memory.unevictable) == (4096, 8192, 14)
    assert (memory.pg_pg_in, memory.pg_pg_out, memory.pg_fault, memory.pg_maj_fault) == (
        6,
        7,
        8,
        9,
    )
    assert (memory.total_pg_pg_in, memory.total_pg_maj_fault) == (18, 21)
    assert memory.hierarchical_memory_limit == 9223372036854771712
    assert memory.hierarchical_swap_limit == 15
    usage = memory.usage
    assert (usage.usage, usage.max, usage.failcnt) == (12288, 20480, 6)
    assert usage.limit == 9223372036854771712
    assert (memory.kernel.usage, memory.kernel_tcp.limit) == (77, 88)


def test_v1_memory_without_swap_accounting_still_has_a_swap_part() -> None:
    assert v1_metrics(V1).memory.HasField("swap")


def test_v1_fills_the_rest() -> None:
    metrics = v1_metrics(V1)
    assert (metrics.memory_oom_control.under_oom, metrics.memory_oom_control.oom_kill) == (1, 2)
    assert [(h.pagesize, h.usage, h.max, h.failcnt) for h in metrics.hugetlb] == [
        ("1GB", 0, 0, 0),
        ("2MB", 2097152, 4194304, 1),
    ]
    assert [(r.device, r.hca_handles, r.hca_objects) for r in metrics.rdma.limit] == [
        ("mlx4_0", 3, U32)
    ]
    assert metrics.rdma.current[0].hca_objects == 2000


def test_an_unlimited_number_of_pids_is_zero_in_v1_and_the_maximum_in_v2() -> None:
    assert v1_metrics(V1).pids.limit == 0
    assert v2_metrics(V1).pids.limit == U64


def test_v1_blkio_names_device_and_operation() -> None:
    files = {
        "blkio.io_service_bytes_recursive": (
            "254:0 Read 4096\n254:0 Write 512\n254:0 Total 4608\nTotal 4608\n"
        ),
        "blkio.time_recursive": "8:16 99\n",
        "blkio.throttle.io_serviced": "254:0 Read 7\n",
    }
    blkio = v1_metrics(files, PARTITIONS).blkio
    entries = [
        (e.device, e.major, e.minor, e.op, e.value) for e in blkio.io_service_bytes_recursive
    ]
    assert entries == [
        ("/dev/vda", 254, 0, "Read", 4096),
        ("/dev/vda", 254, 0, "Write", 512),
        ("/dev/vda", 254, 0, "Total", 4608),
    ]
    [time] = blkio.io_time_recursive
    assert (time.device, time.op, time.value) == ("/dev/sdb", "", 99)
    assert not blkio.io_serviced_recursive


def test_v1_blkio_falls_back_to_the_throttle_layer() -> None:
    files = {
        "blkio.io_serviced_recursive": "Total 0\n",
        "blkio.throttle.io_serviced": "7:1 Read 5\nTotal 5\n",
        "blkio.throttle.io_service_bytes": "7:1 Read 20480\nTotal 20480\n",
    }
    blkio = v1_metrics(files, PARTITIONS).blkio
    assert [(e.device, e.value) for e in blkio.io_serviced_recursive] == [("", 5)]
    assert [e.value for e in blkio.io_service_bytes_recursive] == [20480]


def test_the_first_name_of_a_device_wins() -> None:
    assert parse_partitions(PARTITIONS) == {(254, 0): "/dev/vda", (8, 16): "/dev/sdb"}


def test_what_is_missing_is_left_out() -> None:
    old, new = v1_metrics({}), v2_metrics({})
    assert [field.name for field, _ in old.ListFields()] == ["cpu"]
    assert old.cpu.HasField("usage")
    assert old.cpu.HasField("throttling")
    assert not new.ListFields()


V2 = {
    "pids.current": "1\n",
    "pids.max": "100\n",
    "cpu.stat": (
        "usage_usec 1000\nuser_usec 600\nsystem_usec 400\nnr_periods 1\nnr_throttled 2\n"
        "throttled_usec 3\nnr_bursts 4\nburst_usec 5\ncore_sched.force_idle_usec 6\n"
    ),
    "cpu.pressure": (
        "some avg10=1.50 avg60=2.25 avg300=0.00 total=12345\n"
        "full avg10=0.00 avg60=0.00 avg300=0.10 total=99\n"
    ),
    "memory.stat": "anon 1\nfile 2\nkernel 3\nkernel_stack 4\npgfault 5\nthp_collapse_alloc 6\n"
    "workingset_refault_anon 7\n",
    "memory.current": "8192\n",
    "memory.max": "max\n",
    "memory.peak": "9000\n",
    "memory.swap.current": "10\n",
    "memory.swap.max": "20\n",
    "memory.swap.peak": "15\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "memory.events": (
        "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 0\n"
    ),
    "io.stat": (
        "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n"
        "8:0 rbytes=90430464 wbytes=0 rios=8950 wios=0\n253:0 \n"
    ),
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\n",
    "rdma.max": "",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 3\n",
    "hugetlb.2MB.rsvd.current": "7\n",
}


def test_v2_fills_cpu_and_memory() -> None:
    metrics = v2_metrics(V2)
    cpu = metrics.cpu
    assert (cpu.usage_usec, cpu.user_usec, cpu.system_usec) == (1000, 600, 400)
    assert (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec) == (1, 2, 3)
    assert (cpu.nr_bursts, cpu.burst_usec) == (4, 5)
    some = cpu.psi.some
    assert (some.avg10, some.avg60, some.avg300, some.total) == (1.5, 2.25, 0, 12345)
    assert cpu.psi.full.total == 99
    memory = metrics.memory
    assert (memory.anon, memory.file, memory.kernel_stack) == (1, 2, 4)
    assert (memory.pgfault, memory.thp_collapse_alloc, memory.workingset_refault_anon) == (5, 6, 7)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (8192, U64, 9000)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (10, 20, 15)
    assert memory.psi.HasField("some")
    assert not memory.psi.HasField("full")


def test_v2_fills_the_rest() -> None:
    metrics = v2_metrics(V2)
    assert (metrics.pids.current, metrics.pids.limit) == (1, 100)
    events = metrics.memory_events
    assert [value for _, value in events.ListFields()] == [1, 2, 3, 4, 5, 6]
    assert [(e.major, e.minor, e.rbytes, e.wbytes, e.rios, e.wios) for e in metrics.io.usage] == [
        (8, 16, 1459200, 314773504, 192, 353),
        (8, 0, 90430464, 0, 8950, 0),
    ]
    assert metrics.io.psi.some.total == 4
    [huge] = metrics.hugetlb
    assert (huge.pagesize, huge.current, huge.max, huge.failcnt) == ("2MB", 2097152, U64, 3)
    assert [(r.device, r.hca_objects) for r in metrics.rdma.current] == [
        ("mlx4_0", 2000),
        ("ocrdma1", U32),
    ]


def test_numbers_out_of_range_are_brought_into_it() -> None:
    assert [parse_number(t) for t in ("-1", "18446744073709551616", "", "x", "9" * 5000)] == [
        0,
        U64,
        0,
        0,
        0,
    ]


_names = st.sampled_from(
    [*V2_FILES, *(name for names in V1_FILES.values() for name in names), *V1, *V2]
)
_words = st.sampled_from(
    ["max", "some", "full", "8:0", "total=", "avg10=x", "=", ":", "-1", "Total", "²", "9" * 30]
)
_lines = st.lists(st.one_of(_words, st.text(max_size=8), st.integers().map(str)), max_size=5)
_texts = st.lists(_lines.map(" ".join), max_size=4).map("\n".join)


@given(st.dictionaries(_names, _texts, max_size=12), _texts)
def test_no_content_can_break_the_parsers(files: dict[str, str], partitions: str) -> None:
    v1_metrics(files, partitions).SerializeToString()
    v2_metrics(files).SerializeToString()


def test_a_device_may_have_any_name() -> None:
    odd = "a b\x0c\u2028\udcff"
    metrics = v2_metrics({"rdma.current": f"{odd} hca_handle=2 hca_object=3\n"})
    assert [(r.device, r.hca_handles) for r in metrics.rdma.current] == [
        ("a b\x0c\u2028\ufffd", 2)
    ]
