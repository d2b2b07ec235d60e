"""The growth of figures with the number of shims: the verdict, the plot and two small runs."""

from __future__ import annotations

import doctest
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import curves, growth, scale
from tests.bench.__main__ import INTERRUPTED
from tests.bench.growth import Curve, Growth
from tests.bench.leftovers import leftovers
from tests.e2e.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.bench.scale"]
NUMBERS = (10, 30, 100, 300, 1000)


@pytest.mark.parametrize("module", [growth, curves])
def test_the_examples_in_docstrings_are_right(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]  # typeshed wants a module


@given(st.floats(0, 1e5), st.floats(0.01, 1e3))
def test_a_fixed_cost_and_the_same_cost_for_each_shim_are_linear_growth(
    fixed: float, each: float
) -> None:
    points = [(count, fixed + each * count) for count in NUMBERS]
    assert growth.growth(points) is not Growth.WORSE


@given(st.floats(0, 100), st.floats(0.01, 10))
def test_a_cost_for_each_pair_of_shims_is_worse_than_linear(fixed: float, each: float) -> None:
    points = [(count, fixed + each * count**2) for count in NUMBERS]
    assert growth.growth(points) is Growth.WORSE


def test_one_number_has_no_growth() -> None:
    assert growth.growth([(10, 5.0)]) is None


def test_the_plot_has_a_point_for_each_value() -> None:
    flat = Curve("wake-ups", "1/s", [(count, 0.0) for count in NUMBERS])
    steep = Curve("PSS", "MiB", [(count, 8.0 * count) for count in NUMBERS])
    picture = ET.fromstring(curves.svg("head", [{"trio": flat}, {"trio": steep, "go": steep}]))
    circles = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 3 * len(NUMBERS)


def test_more_shims_than_the_memory_holds_are_not_started() -> None:
    figures = {"pss": 80.0}
    assert scale.missing_memory(10, figures, 11, available=4000) == 0
    assert scale.missing_memory(10, figures, 1010, available=4000) == 8 * 1000 * 1.5 + 1024 - 4000


@pytest.mark.e2e
@pytest.mark.slow
def test_a_small_run_measures_each_number_and_leaves_nothing(
    measured: Callable[..., list[str]], tmp_path: Path
) -> None:
    before = leftovers()
    picture = tmp_path / "scale.svg"
    printed = measured("scale", "--shims=2,4", "--rounds=1", f"--svg={picture}")
    lines = [line for line in printed if line.startswith("| ")]
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert head == ["trio", "unit", "2", "4", "growth"]
    values = {row[0]: [float(cell) for cell in row[2:4]] for row in rows}
    assert values.keys() == {title for title, _ in scale.FIGURES.values()}
    assert values.pop("wake-ups, idle") == [0, 0]
    assert all(value > 0 for both in values.values() for value in both)
    ET.fromstring(picture.read_text())
    wait_until("nothing is left", lambda: leftovers() <= before)


@pytest.mark.e2e
@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing() -> None:
    before = leftovers()
    with subprocess.Popen([*COMMAND, "--shims=50"], cwd=ROOT, stderr=subprocess.PIPE) as process:
        wait_until("it starts shims", lambda: len(leftovers() - before) > 10)
        process.send_signal(signal.SIGTERM)
        assert b"interrupted" in process.communicate(timeout=120 * PATIENCE)[1]
    assert process.returncode == INTERRUPTED
    wait_until("nothing is left", lambda: leftovers() <= before)


@pytest.mark.parametrize("numbers", ["", "ten", "0,5", "3,-1"])
def test_numbers_that_are_no_numbers_of_shims_are_refused(
    numbers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scale.parse([f"--shims={numbers}"])
    assert re.search("--shims", capsys.readouterr().err)
