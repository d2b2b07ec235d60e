"""The benchmark's arithmetic and rendering, and one tiny run of all of it."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.version import VERSION
from tests.bench import __main__ as cli
from tests.bench import command, plot, procs, report
from tests.bench.figures import BY_KEY, FIGURES
from tests.bench.leftovers import leftovers
from tests.bench.report import Report, markdown, number, plain
from tests.bench.samples import Samples, percentile, ratio_of, verdict
from tests.bench.scenarios import SCENARIOS
from tests.e2e.waiting import wait_until

ROOT = Path(__file__).parents[2]
GO = f"/usr/bin/{cli.GO_SHIM}"

numbers = st.floats(0.001, 1e6)


def report_of(**values: tuple[float, float]) -> Report:
    """Return a report of ours and another's value for each figure."""
    samples = Samples()
    for key, (ours, other) in values.items():
        samples.add("trio", {key: ours})
        samples.add("go", {key: other})
    sizes = {"containers": 20, "at_once": 10, "clients": 100}
    return Report(["trio", "go"], "runc alone", samples, sizes, "2026-11-23", ["a machine"])


def test_a_figure_is_the_median_of_its_turns() -> None:
    samples = Samples()
    for value in (5.0, 1.0, 100.0):
        samples.add("trio", {"start": value})
    assert samples.median("trio", "start") == 5.0
    assert samples.median("trio", "create") is None
    assert samples.median("go", "start") is None


def test_a_turn_that_failed_adds_nothing() -> None:
    samples = Samples()
    samples.add("trio", {})
    assert samples.medians() == {}


def test_there_is_no_ratio_to_nothing() -> None:
    assert ratio_of(3.0, 2.0) == 1.5
    assert ratio_of(3.0, None) is None
    assert ratio_of(None, 3.0) is None
    assert ratio_of(3.0, 0.0) is None
    assert ratio_of(0.0, 3.0) == 0.0


def test_figures_nobody_asked_for_are_forgotten() -> None:
    found = report_of(start=(1, 2), create=(1, 2))
    found.samples.keep({"start"})
    assert [figure.key for figure in found.measured()] == ["start"]


@given(st.lists(numbers, min_size=1), st.floats(0, 100))
def test_a_percentile_is_one_of_the_values_and_that_many_are_not_above_it(
    values: list[float], percent: float
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9


def test_the_verdict_knows_which_way_is_better() -> None:
    assert verdict(BY_KEY["create"], 10.0, 0.95) is True
    assert verdict(BY_KEY["create"], 10.0, 0.96) is False
    assert verdict(BY_KEY["stdout"], 900.0, 2.1) is True
    assert verdict(BY_KEY["stdout"], 900.0, 1.9) is False
    assert verdict(BY_KEY["cold"], 350.0, 40.0) is True
    assert verdict(BY_KEY["cold"], 351.0, None) is False
    assert verdict(BY_KEY["create"], None, None) is None


def test_the_goal_of_an_exit_is_another_on_a_disk() -> None:
    assert verdict(BY_KEY["exit"], 1.0, 1.1) is False
    assert verdict(BY_KEY["exit"], 1.0, 1.2, on_disk=True) is True
    assert verdict(BY_KEY["exit"], 1.0, 1.21, on_disk=True) is False
    assert verdict(BY_KEY["exec"], 1.0, 0.91, on_disk=True) is False
    assert report.goal(BY_KEY["exit"], on_disk=True) == "≤ 1.20"


def test_every_figure_has_a_goal() -> None:
    assert [one.key for one in FIGURES if not report.goal(one)] == []


def test_every_figure_comes_of_exactly_one_scenario() -> None:
    keys = [key for scenario in SCENARIOS for key in scenario.keys]
    assert sorted(keys) == sorted(figure.key for figure in FIGURES)


@pytest.mark.parametrize("module", [report, plot])
def test_the_examples_in_docstrings_are_right(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]  # typeshed wants a module


@given(numbers)
def test_a_number_keeps_its_size_and_has_no_exponent(value: float) -> None:
    text = number(value)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=0.06, abs=0.0006)


def test_the_table_has_a_column_for_each_shim_and_the_floor() -> None:
    found = report_of(create=(33.06, 30.0), pss=(5.5, 5.0))
    found.samples.add("runc alone", {"create": 29.0})
    lines = markdown(found).splitlines()
    head = "|  | unit | trio | go | runc alone | trio / go | goal | reached |"
    assert lines[lines.index("") + 1] == head
    assert "| Create | ms | 33.1 | 30 | 29 | 1.10 | ≤ 0.95 | **no** |" in lines
    assert "| PSS a container, of 20 | MiB | 5.50 | 5 | - | 1.10 | ≤ 1.00 | **no** |" in lines
    assert "Medians of 2026-11-23." in lines


def test_the_terminal_sees_the_same_without_markup() -> None:
    text = plain(report_of(create=(33.06, 30.0)))
    assert "**" not in text
    assert "33.1" in text


def test_a_shim_that_measured_nothing_leaves_gaps() -> None:
    found = report_of(start=(10.0, 5.0))
    del found.samples.values["go"]
    assert "| `start` command | ms | 10 | - | - | - | ≤ 1.00 |  |" in markdown(found)


def test_the_plot_is_xml_with_a_bar_for_each_ratio() -> None:
    found = report_of(start=(10, 5), stdout=(2000, 500), threads=(1, 10), wakeups=(0, 0))
    tree = ET.fromstring(plot.svg(found))
    bars = tree.findall("{http://www.w3.org/2000/svg}rect")
    # Without a ratio there is no bar: no process woke up.
    assert [bar.get("fill") for bar in bars] == [plot.BEHIND, plot.AHEAD, plot.AHEAD]


@given(st.floats(0, 1e9))
def test_a_bar_never_leaves_the_chart(value: float) -> None:
    assert abs(plot.position(value)) <= plot.SIDE


def test_names_with_markup_cannot_break_the_plot() -> None:
    found = report_of(start=(1, 2))
    found = Report(["<trio>", "a&b"], "", found.samples, found.sizes, found.date, [])
    ET.fromstring(plot.svg(found))


def test_ours_comes_first_and_others_in_the_order_given() -> None:
    shims = cli.shims_of(["b=/bin/true", "a=/bin/false", "trio=/bin/sh"])
    assert [shim.name for shim in shims] == ["trio", "b", "a"]
    assert shims[0].path == "/bin/sh"


@pytest.mark.parametrize("given", ["x", "=/bin/true", "x=", "x=/no/such/file"])
def test_a_shim_that_is_not_there_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="is n"):
        cli.shims_of([given, "trio=/bin/sh"])


def test_another_build_of_ours_comes_last_and_is_run_from_its_checkout(tmp_path: Path) -> None:
    shims = cli.shims_of(["go=/bin/true", "trio=/bin/sh"], str(ROOT))
    assert [shim.name for shim in shims] == ["trio", "go", "before"]
    assert [shim.forks for shim in shims] == [True, False, True]
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "shim", copy / "shim")
    with (copy / "shim/version.py").open("a") as file:
        file.write('VERSION = "0.0.1"\n')
    with cli.comparable(cli.shims_of(["go=/bin/true"], str(copy))) as shims:
        found = {shim.name: command.run([shim.path, "-v"], env=os.environ) for shim in shims}
    assert b"Version:  0.0.1" in found["before"].output
    assert VERSION.encode() in found["trio"].output
    with pytest.raises(ValueError, match="no checkout"):
        cli.shims_of([], str(tmp_path))


def test_busy_processes_end_with_the_block() -> None:
    before = {*procs.children(os.getpid())}
    with cli.load(2):
        busy = {*procs.children(os.getpid())} - before
        assert len(busy) == 2
    assert not busy & {*procs.children(os.getpid())}


def test_a_figure_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["--only", "start,speed"])
    assert "no such figure: speed" in capsys.readouterr().err


def test_a_command_is_timed_to_the_end_of_its_output() -> None:
    done = command.run(["sh", "-c", "echo early; (sleep 0.2; echo late) &"], env=os.environ)
    assert done.output == b"early\nlate\n"
    assert done.seconds >= 0.2


def test_a_command_that_fails_says_how() -> None:
    with pytest.raises(command.CommandError, match=r"failed \(3\): oh no"):
        command.run(["sh", "-c", "echo oh no >&2; exit 3"], env=os.environ, errors=True)


def test_a_command_that_hangs_is_killed_with_what_it_started() -> None:
    running = command.spawn(["sh", "-c", "sleep 1234 & echo $!; wait"], env=os.environ)
    with pytest.raises(command.CommandError, match=r"did not end in 0.5 s: \d+") as caught:
        running.finish(0.5)
    pid = int(str(caught.value).rpartition(" ")[2])
    deadline = time.monotonic() + 10
    while procs.state(pid) != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)  # killed is not dead yet
    assert procs.state(pid) == "Z"


def test_a_command_runs_where_it_is_told_and_we_stay(tmp_path: Path) -> None:
    here = Path.cwd()
    done = command.run(["pwd"], env=os.environ, cwd=str(tmp_path))
    assert done.output.decode().strip() == str(tmp_path)
    assert Path.cwd() == here


def test_a_process_of_ours_is_found_by_a_word_in_its_environment() -> None:
    word = f"bench-{os.urandom(8).hex()}"
    running = command.spawn(["sleep", "1234"], env=os.environ | {"WORD": word}, capture=False)
    try:
        assert list(procs.mentioning(word)) == []
        # The kernel shows an environment a moment after it has begun to execute the program.
        wait_until("it is found", lambda: any(procs.mentioning(word, environ=True)))
        assert list(procs.mentioning(word, environ=True)) == [running.pid]
    finally:
        os.kill(running.pid, signal.SIGKILL)
        os.waitpid(running.pid, 0)


needs_all = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("runc") or not Path(GO).exists(),
    reason="needs root, runc and containerd's shim",
)


@pytest.mark.e2e
@needs_all
def test_a_tiny_run_measures_both_shims_and_leaves_nothing(tmp_path: Path) -> None:
    before = leftovers()
    table, picture, values = (tmp_path / name for name in ("t.md", "p.svg", "v.json"))
    small = ["--rounds=1", "--calls=4", "--clients=3", "--containers=2", "--at-once=2"]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.bench",
            *small,
            "--stdout=2",
            "--terminal=1",
        ]
        + [f"--markdown={table}", f"--svg={picture}", f"--json={values}"],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    medians = json.loads(values.read_text())["medians"]
    assert medians["trio"].keys() == medians["go"].keys() == BY_KEY.keys()
    assert medians["runc alone"].keys() == {"create", "run", "exec", "delete", "sum"}
    assert "| Create | ms |" in table.read_text()
    ET.fromstring(picture.read_text())
    wait_until("nothing is left", lambda: leftovers() <= before)


@pytest.mark.e2e
@needs_all
def test_two_builds_are_measured_in_one_run_beside_another_shim(tmp_path: Path) -> None:
    table = tmp_path / "t.md"
    options = ["--only=state,stats", "--rounds=1", "--calls=4", "--busy=1", "--disk"]
    subprocess.run(
        [sys.executable, "-m", "tests.bench", *options]
        + [f"--against={ROOT}", f"--markdown={table}"],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    text = table.read_text()
    assert "| trio | go | before | runc alone | trio / go | trio / before |" in text
    assert "Bundles on the disk of /run, 1 busy processes" in text


@pytest.mark.e2e
@needs_all
def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    before = leftovers()
    argv = [sys.executable, "-m", "tests.bench", "--only=pss", "--rounds=1"]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE) as process:
        wait_until("it measures", lambda: leftovers() - before)
        # The shims of the second half of a second, in any state.
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        process.send_signal(signal.SIGTERM)
        assert b"interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == cli.INTERRUPTED
    wait_until("nothing is left", lambda: leftovers() <= before)
