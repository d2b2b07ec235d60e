"""The file: the accepted keys and values, and the one-line error for all others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minid.config import Limits, Log, Mount, Settings, Spec, load, parse, parse_container
from minid.policy import Backoff, Restart

from shimctl import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = Path("/etc/minid")


def read(text: str) -> Settings:
    return parse(text.encode(), "m.yaml", BASE)


def only(text: str) -> Spec:
    """Parse the settings of one container named web."""
    (spec,) = read(f"containers:\n  web: {{bundle: b, {text}}}").containers
    return spec


def refusal(data: str | bytes) -> str:
    with pytest.raises(InvalidError) as caught:
        parse(data.encode() if isinstance(data, str) else data, "m.yaml", BASE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def complaint(read: Callable[[], object]) -> str:
    try:
        read()
    except InvalidError as exc:
        return str(exc)
    return ""


def test_everything_that_can_be_said_is_understood() -> None:
    settings = read(
        """
state: st
namespace: mine
containers:
  web-1:
    bundle: bundles/web
    command: [httpd, -f]
    environment: {PORT: 80, NAME: "a b", EMPTY: ""}
    mounts:
      - {source: data, target: /data}
      - {source: /etc/hosts, target: /etc/hosts, readonly: true}
    stdin: input
    tty: true
    restart: on-failure:5
    backoff: {start: 1, cap: 30, reset: 60}
    log: {file: logs/web, size: 1 MiB, count: 7}
    limits: {memory: 64MiB, cpus: 0.5, pids: 100}
    grace: 3
  db:
    image: oci:layout:v1
"""
    )
    web, db = settings.containers
    assert (settings.state, settings.namespace) == (BASE / "st", "mine")
    assert web == Spec(
        name="web-1",
        bundle=BASE / "bundles/web",
        command=("httpd", "-f"),
        environment=(("PORT", "80"), ("NAME", "a b"), ("EMPTY", "")),
        mounts=(
            Mount("/etc/minid/data", "/data"),
            Mount("/etc/hosts", "/etc/hosts", readonly=True),
        ),
        stdin="/etc/minid/input",
        tty=True,
        restart=Restart("on-failure", 5),
        backoff=Backoff(1, 30, 60),
        log=Log(BASE / "logs/web", 1 << 20, 7),
        limits=Limits(64 << 20, 0.5, 100),
        grace=3,
    )
    assert db.image == "oci:/etc/minid/layout:v1"


def test_what_yaml_1_1_would_take_for_something_else_is_what_is_written() -> None:
    assert only("restart: no").restart == Restart("no")
    assert only("restart: 'no'").restart == Restart("no")
    written = {"A": "on", "B": "010", "C": "1:30", "D": "2024-01-01", "E": "1_000", "F": "0x1f"}
    variables = ", ".join(f"{name}: {value}" for name, value in written.items())
    assert dict(only(f"environment: {{{variables}}}").environment) == written


def test_an_argument_may_be_empty() -> None:
    assert only("command: [sh, -c, '']").command == ("sh", "-c", "")


@pytest.mark.parametrize("kind", ["always", "unless-stopped", "on-failure"])
def test_each_policy_is_known(kind: str) -> None:
    assert only(f"restart: {kind}").restart == Restart(kind)


def test_a_size_is_a_number_of_bytes_or_has_a_unit() -> None:
    assert only("limits: {memory: 4194304}").limits.memory == 4 << 20
    assert only("limits: {memory: 2 GiB}").limits.memory == 2 << 30


def test_what_was_written_says_it_all_once_more() -> None:
    spec = only("restart: no, environment: {A: 1}, log: {size: 8KiB}")
    assert parse_container("web", spec.written, BASE, "spec.json") == spec


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ("command: [x]", True),
        ("environment: {A: b}", True),
        ("limits: {pids: 5}", True),
        ("tty: true", True),
        ("restart: always", False),
        ("backoff: {start: 5}", False),
        ("log: {size: 1MiB}", False),
        ("grace: 1", False),
    ],
)
def test_what_is_in_the_container_takes_another_one_and_the_rest_does_not(
    change: str, another: bool
) -> None:
    assert only(change).needs_new_generation(only("tty: false")) is another


WEB = "containers:\n  web: {bundle: b, %s}"
REFUSED = {
    "a key nobody knows": ("contaners: {}", "contaners: is unknown; did you mean containers?"),
    "one far from all": (
        "x: 1",
        "x: is unknown; use one of state, namespace, containers",
    ),
    "a key of a container": (WEB % "comand: [x]", "containers.web.comand: is unknown; did you"),
    "a key of a limit": (WEB % "limits: {mem: 1}", "containers.web.limits.mem: is unknown"),
    "no table": ("- a", "the document: must be a table, not ['a']"),
    "nothing": ("", "the document: must be a table, not None"),
    "containers in a list": ("containers: [a]", "containers: must be a table"),
    "a container that is a text": ("containers: {web: b}", "containers.web: must be a table"),
    "neither": ("containers: {web: {}}", "containers.web: needs either bundle or image"),
    "both": (
        WEB % "image: 'oci:x'",
        "containers.web: needs either bundle or image",
    ),
    "another image": (
        "containers: {web: {image: 'docker:x'}}",
        "web.image: is not an image; use oci:",
    ),
    "a name with a slash": ("containers: {a/b: {bundle: b}}", "'a/b' is not a name"),
    "a name with dots": ("containers: {..: {bundle: b}}", "'..' is not a name"),
    "a name too long": (
        f"containers: {{{'a' * 61}: {{bundle: b}}}}",
        "is not a name; use up to 60",
    ),
    "an empty name": ("containers: {'': {bundle: b}}", "'' is not a name"),
    "a namespace that is none": ("namespace: a/b", "namespace: 'a/b' is not a name"),
    "a state too long": (f"state: /{'s' * 90}", "state: is too long for a socket in it"),
    "a command in one text": (WEB % "command: ls -l", "web.command: must be a list, not 'ls -l'"),
    "an empty command": (WEB % "command: []", "web.command: is empty; name a program"),
    "an empty program": (WEB % "command: ['', a]", "web.command: is empty; name a program"),
    "a number in it": (WEB % "command: [sleep, 5]", "web.command[1]: must be a text, not 5; put"),
    "a bundle that is a number": ("containers: {web: {bundle: 5}}", "web.bundle: must be a text"),
    "an empty bundle": ("containers: {web: {bundle: ''}}", "web.bundle: must not be empty"),
    "a NUL": (
        'containers: {web: {bundle: "a\\0b"}}',
        "m.yaml:1: containers.web.bundle: contains NUL or a lone surrogate",
    ),
    "half a character": ('state: "\\ud800"', "state: contains NUL or a lone surrogate"),
    "two lines for a key": (
        WEB % '"a\\nb": 1',
        "m.yaml:2: containers.web: a key must be a text in one line",
    ),
    "a variable that is true": (
        WEB % "environment: {A: true}",
        "environment.A: must be a text, not True; put it in quotes",
    ),
    "a variable that is 1.10": (
        WEB % "environment: {A: 1.10}",
        "environment.A: must be a text, not 1.1; put it in quotes",
    ),
    "a variable in a list": (WEB % "environment: [A=b]", "web.environment: must be a table"),
    "a variable with =": (WEB % "environment: {A=B: c}", "is not the name of a variable"),
    "a mount without target": (WEB % "mounts: [{source: a}]", "web.mounts[0]: needs a target"),
    "a mount on a relative path": (
        WEB % "mounts: [{source: a, target: b}]",
        "web.mounts[0].target: must be absolute, not 'b'",
    ),
    "a tty that is 1": (WEB % "tty: 1", "web.tty: must be true or false, not 1"),
    "another policy": (WEB % "restart: allways", "web.restart: must be no, on-failure[:MAX], alw"),
    "a bound for always": (WEB % "restart: always:3", "web.restart: must be no"),
    "a negative bound": (WEB % "restart: on-failure:-1", "web.restart: must be no"),
    "a bound of a mile": (WEB % f"restart: on-failure:{'1' * 5000}", "web.restart: must be no"),
    "true": (WEB % "restart: true", "web.restart: must be a text, not True"),
    "a negative pause": (WEB % "backoff: {start: -1}", "backoff.start: must be a number from 0"),
    "an endless pause": (WEB % "backoff: {cap: .inf}", "backoff.cap: must be a number from 0"),
    "no number": (WEB % "grace: .nan", "web.grace: must be a number from 0, not '.nan'"),
    "a number of a mile": (
        WEB % f"grace: 1{'0' * 400}",
        "web.grace: must be a number from 0, not",
    ),
    "seconds with their name": (WEB % "grace: 5s", "web.grace: must be a number from 0, not '5s'"),
    "a cap below the start": (WEB % "backoff: {start: 9, cap: 1}", "has a cap below its start"),
    "a bad size": (WEB % "log: {size: lots}", "web.log.size: must be a size from 4096, such as"),
    "a size in MB": (WEB % "log: {size: 5MB}", "web.log.size: must be a size"),
    "a negative size": (WEB % "log: {size: -1}", "web.log.size: must be a size"),
    "a size too small": (WEB % "log: {size: 1KiB}", "web.log.size: must be a size from 4096"),
    "a size too large": (WEB % "log: {size: 999999999999999GiB}", "log.size: must be a size"),
    "memory for nobody": (
        WEB % "limits: {memory: 5}",
        "limits.memory: must be a size from 1048576",
    ),
    "no files": (WEB % "log: {count: 0}", "web.log.count: must be a whole number from 1 to 1000"),
    "half a file": (WEB % "log: {count: 1.5}", "web.log.count: must be a whole number"),
    "no processes": (WEB % "limits: {pids: 0}", "limits.pids: must be a whole number from 1"),
    "no cpu": (WEB % "limits: {cpus: 0}", "limits.cpus: must be a number from 0.01"),
    "a cpu in quotes": (WEB % "limits: {cpus: '1'}", "limits.cpus: must be a number"),
    "two logs in one file": (
        "containers: {a: {bundle: b, log: {file: l}}, c: {bundle: b, log: {file: l}}}",
        "containers.c: log.file is a log file of a, or a rotated one; use another",
    ),
    "one where another's is": (
        "{state: /s, containers: {a: {bundle: b}, c: {bundle: b, log: {file: /s/./logs/a.log}}}}",
        "containers.c: log.file is a log file of a, or a rotated one; use another",
    ),
    "one where another's comes to be": (
        "containers: {a: {bundle: b, log: {file: l}}, c: {bundle: b, log: {file: l.1}}}",
        "containers.c: log.file is a log file of a, or a rotated one; use another",
    ),
    "the same name twice": (
        "containers:\n  web: {bundle: b}\n  web: {bundle: c}",
        "m.yaml:3: containers.web: the key is repeated; remove one",
    ),
    "a cycle": ("containers: &c\n  web: *c", "m.yaml:2: the alias *c is not supported; write"),
    "an alias": ("a: &x 1\nb: *x", "m.yaml:2: the alias *x is not supported"),
    "a merge": ("containers:\n  <<: {bundle: b}", "containers.<<: '<<' is not a name"),
    "a key that is a list": ("[a]: b", "m.yaml:1: here: a key must be a text in one line"),
    "a tag": (
        "a: !!python/object:os.system x",
        "m.yaml:1: the tag tag:yaml.org,2002:python/object:os.system is not supported; remove it",
    ),
    "a tag of yaml's own": ("a: !!bool x", "the tag tag:yaml.org,2002:bool is not supported"),
    "a tag of a table": ("a: !!set {x}", "the tag tag:yaml.org,2002:set is not supported"),
    "a syntax error": ("a: [1", "m.yaml:1: "),
    "a tab": ("a:\n\t- b", "m.yaml:2: "),
    "two documents": ("a: 1\n---\nb: 2", "m.yaml:2: but found another document"),
    "a control character": ("a: \x07", "m.yaml: "),
    "a great depth": ("[" * 5000, "m.yaml: it is nested too deeply"),
    "too much": (
        "#" * (1 << 20) + "\n",
        "m.yaml: has 1048577 bytes, more than the limit of 1048576",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_the_place_in_one_line(what: str) -> None:
    text, said = REFUSED[what]
    assert said in refusal(text)


def test_what_is_not_utf_8_is_refused_with_the_place() -> None:
    assert refusal(b"state: \xff") == "m.yaml: byte 7 is not UTF-8; save it as UTF-8"


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"none\.yaml: cannot be read: No such file"):
        load(tmp_path / "none.yaml")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("state: s\ncontainers: {a: {bundle: b}}")
    settings = load(tmp_path / "m.yaml")
    assert settings.state == tmp_path / "s"
    assert settings.containers[0].bundle == tmp_path / "b"


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused_in_one_line(data: bytes) -> None:
    said = complaint(lambda: parse(data, "m.yaml", BASE))
    assert said.startswith("m.yaml:") or not said
    assert len(said.splitlines()) < 2


_plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_any = st.recursive(
    _plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
_keys = st.sampled_from(
    ["bundle", "image", "command", "environment", "mounts", "stdin", "tty", "restart"]
    + ["backoff", "log", "limits", "grace"]
)


@given(st.dictionaries(_keys, _any, max_size=4))
def test_any_values_make_a_container_or_one_line(written: dict[str, object]) -> None:
    said = complaint(lambda: parse_container("web", written, BASE, "m.yaml"))
    assert said.startswith("m.yaml: containers.web") or not said
    assert "\n" not in said
