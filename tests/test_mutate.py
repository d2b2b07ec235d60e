"""The mutation tool: the changes that it makes, and its report about the tests."""

from __future__ import annotations

import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from tests.tools import mutate
from tests.tools.mutants import keys, mutants_of
from tests.tools.mutate import KILLED, SURVIVED, TIMEOUT

ROOT = Path(__file__).parents[1]


def changes(source: str) -> set[tuple[str, str]]:
    """Return operator and changed line of every mutant of one piece of source."""
    source = dedent(source)
    before = source.splitlines()
    return {
        (mutant.operator, line.strip())
        for mutant in mutants_of(source, "m.py")
        for number, line in enumerate(mutant.apply(source).splitlines())
        if number >= len(before) or line != before[number]
    }


@pytest.mark.parametrize(
    ("source", "operator", "line"),
    [
        ("x = a < b\n", "comparison", "x = (a <= b)"),
        ("x = a is None\n", "comparison", "x = (a is not None)"),
        ("x = a in b\n", "comparison", "x = (a not in b)"),
        ("x = a and b\n", "boolean", "x = (a or b)"),
        ("x = a and b\n", "boolean", "x = (a)"),
        ("x = not a\n", "boolean", "x = (a)"),
        ("x = 1 if a else 2\n", "boolean", "x = 1 if (not (a)) else 2"),
        ("x = a + b\n", "arithmetic", "x = (a - b)"),
        ("x = f(True)\n", "constant", "x = f(False)"),
        ("x = 41\n", "constant", "x = 42"),
        ("x = 'é'; y = 1\n", "constant", "x = 'é'; y = 2"),
        ("x = 'text'\n", "constant", "x = ''"),
        ("def f():\n    return g()\n", "return", "return None"),
        ("f(x)\n", "removal", "pass"),
        ("await_ = 1\n", "removal", "pass"),
        ("async def f():\n    await g()\n", "removal", "pass"),
        (
            "with trio.CancelScope(shield=True):\n    f()\n",
            "shield",
            "with trio.CancelScope(shield=False):",
        ),
        ("with trio.move_on_after(5):\n    f()\n", "scope", "if True:"),
        ("async def f():\n    with suppress(OSError):\n        g()\n", "scope", "if True:"),
        ("try:\n    f()\nexcept OSError:\n    g()\n", "exception", "except ():"),
        ("try:\n    f()\nexcept (A, B):\n    g()\n", "exception", "except (B,):"),
        ("raise WrongError(x)\n", "exception", "raise Exception(x)"),
        ("raise WrongError(x)\n", "removal", "pass"),
        ("for x in y:\n    break\n", "removal", "pass"),
    ],
)
def test_each_operator_changes_what_it_is_for(source: str, operator: str, line: str) -> None:
    assert (operator, line) in changes(source)


def test_what_no_test_should_notice_is_left_alone() -> None:
    source = '''
        """A module's docstring."""
        from __future__ import annotations
        if TYPE_CHECKING:
            from a import b
            x = 1
        class C:
            """A docstring."""
            y: Literal["a"]
            def f(self, z: Literal[1]) -> Literal[2]:
                """Another."""
                log.warning("words", number=1)
        '''
    assert changes(source) == set()


@pytest.mark.slow
def test_every_mutant_of_the_project_compiles_and_has_a_key_of_its_own() -> None:
    for path in ("shim/reaper.py", "shim/container/lifecycle.py", "shim/records.py"):
        source = (ROOT / path).read_text()
        found = mutants_of(source, path)
        assert len({mutant.key for mutant in found}) == len(found) > 20
        assert all(mutant.apply(source) != source for mutant in found)


def test_a_key_outlives_changes_elsewhere_in_the_file() -> None:
    source = "def f():\n    return x < 1\n"
    moved = "import os\n\n\ndef g():\n    pass\n\n\n" + source
    assert {one.key for one in mutants_of(source, "m.py")} <= {
        one.key for one in mutants_of(moved, "m.py")
    }


def test_an_equivalent_mutant_needs_a_reason() -> None:
    assert list(keys("# a comment\n\nabc it is the same\n")) == [("abc", "it is the same")]
    with pytest.raises(ValueError, match="abc has no reason"):
        list(keys("abc\n"))


def test_a_sample_is_the_same_for_a_seed() -> None:
    found = mutants_of("x = 1\ny = 2\nz = a < b\n", "m.py")
    assert mutate.choose(found, 3, 7) == mutate.choose(found, 3, 7)
    assert len(mutate.choose(found, 3, 7)) == 3
    assert mutate.choose(found, 0, 7) == mutate.choose(found, 99, 7) == found


PROGRAM = """\
def larger(a, b):
    if a > b:
        return a
    return b


def count(n):
    while n > 0:
        n -= 1
    return "end"
"""
TESTS = """\
import time
from program import count, larger
class Slow(int):
    "The loop that does not end leaves the processor to others."
    def __gt__(self, other):
        time.sleep(0.01)
        return int(self) > other
def test_larger():
    assert (larger(1, 2), larger(2, 1)) == (2, 2)
def test_count():
    count(Slow(3))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "test_program.py").write_text(TESTS)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


@pytest.mark.slow
def test_survivors_are_shown_and_the_checkout_is_left_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--root", str(project), "--timeout", "30", "--jobs", "4"]
    arguments += [str(project / "program.py")]
    equivalent = project / "equivalent"
    arguments += ["--equivalent", str(equivalent), "test_program.py"]
    assert mutate.main(arguments) == 1
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines() if "program.py:" in line]
    known = (KILLED, SURVIVED, TIMEOUT)
    four = [line for line in lines if len(line) == 4 and line[0] in known]
    outcomes = {(place, operator): word for word, _, place, operator in four}
    assert outcomes["program.py:3", "return"] == KILLED
    assert outcomes["program.py:2", "comparison"] == SURVIVED  # a >= b gives the same
    assert outcomes["program.py:9", "removal"] == TIMEOUT  # n never gets less
    assert outcomes["program.py:10", "return"] == SURVIVED
    assert '-    return "end"\n+    return None\n' in said
    assert (project / "program.py").read_text() == PROGRAM
    # A change that is listed as equivalent is not tried again; one that is killed is tried once
    # more.
    tried = {key: word for word, key, *_ in four}
    again = next(key for key, word in tried.items() if word == KILLED)
    equivalent.write_text("".join(f"{key} known\n" for key in tried if key != again))
    assert mutate.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{len(tried) - 1} equivalent, 1 tried" in said
    assert f"{KILLED:8} {again}" in said


@pytest.mark.slow
def test_tests_that_fail_without_a_mutant_are_no_measure(project: Path) -> None:
    (project / "test_program.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(SystemExit, match="fail without a mutant"):
        mutate.main(["--root", str(project), str(project / "program.py"), "test_program.py"])
