"""Rows of ``ps``: names, states, filters and formats, without a shim."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError
from shimctl import units
from shimctl.cli.render import as_json
from shimctl.discover import Found, Health
from shimctl.gotemplate import TemplateError
from shimctl.listing.collect import row_of, runtime_name
from shimctl.listing.fields import inspected, listed
from shimctl.listing.filters import Filters
from shimctl.listing.formatting import Format
from shimctl.listing.origin import Origin, command_of, docker_file, origin_of
from shimctl.listing.row import Row, short_id
from shimctl.values import Exited, Status

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = "4f5c" * 16
UP = Found("k8s.io", ID, "unix:///s", "/b", Health.UP, Status.RUNNING, 42, 41)
POD = Origin("web-1/nginx", "docker.io/library/nginx:1.27", "web-1", "shop", "ab" * 32, {"a": "1"})
ROW = Row(
    UP,
    POD,
    ("nginx", "-g", "daemon off;", "-q"),
    NOW - timedelta(minutes=3),
    NOW - timedelta(seconds=90),
    "io.containerd.runc.v2",
)


@pytest.mark.parametrize(
    ("seconds", "expected", "short"),
    [
        (-5, "Less than a second", "0s"),
        (0.9, "Less than a second", "0s"),
        (1, "1 second", "1s"),
        (59, "59 seconds", "59s"),
        (60, "About a minute", "60s"),
        (150, "2 minutes", "2m"),
        (46 * 60, "46 minutes", "46m"),
        (60 * 60, "About an hour", "60m"),
        (60 * 100, "2 hours", "100m"),
        (47 * 3600, "47 hours", "47h"),
        (48 * 3600, "2 days", "2d"),
        (13 * 86400, "13 days", "13d"),
        (14 * 86400, "2 weeks", "14d"),
        (60 * 86400, "2 months", "60d"),
        (3 * 365 * 86400, "3 years", "1095d"),
    ],
)
def test_ages_are_worded_as_docker_and_crictl_word_them(
    seconds: float, expected: str, short: str
) -> None:
    assert units.duration(seconds) == expected
    assert units.age(NOW - timedelta(seconds=seconds), NOW) == f"{expected} ago"
    assert units.short_age(NOW - timedelta(seconds=seconds), NOW) == short
    assert units.age(None, NOW) == units.short_age(None, NOW) == ""


def stopped(status: int, health: Health = Health.UP, reason: str = "") -> Found:
    exited = Exited(status, NOW - timedelta(hours=2), 42, reason)
    return replace(UP, status=Status.STOPPED, health=health, exited=exited)


@pytest.mark.parametrize(
    ("found", "state", "status"),
    [
        (UP, "running", "Up About a minute"),
        (replace(UP, status=Status.PAUSED), "paused", "Up About a minute (Paused)"),
        (replace(UP, status=Status.CREATED), "created", "Created"),
        (replace(UP, status=Status.UNKNOWN), "unknown", "Unknown"),
        (stopped(137), "exited", "Exited (137) 2 hours ago"),
        (stopped(7, Health.DEAD), "exited", "Exited (7) 2 hours ago, no shim"),
        (stopped(7, Health.SILENT), "exited", "Exited (7) 2 hours ago, shim silent"),
        (stopped(255, Health.DEAD, "lost"), "exited", "Exited (?) 2 hours ago, no shim"),
        (replace(UP, health=Health.DEAD), "dead", "Dead"),
        (replace(UP, health=Health.SILENT), "silent", "Silent"),
        (replace(UP, health=Health.FOREIGN), "foreign", "Not a shim"),
    ],
)
def test_states_are_worded_as_docker_words_them(found: Found, state: str, status: str) -> None:
    row = replace(ROW, found=found)
    assert (row.state, row.status(NOW)) == (state, status)


def test_a_container_whose_start_is_unknown_is_up_and_no_more() -> None:
    assert replace(ROW, started_at=None).status(NOW) == "Up"
    unknown = replace(UP, status=Status.STOPPED, exited=Exited(3, None))
    assert replace(ROW, found=unknown).status(NOW) == "Exited (3)"


def test_only_a_generated_id_is_shortened() -> None:
    assert short_id(ID) == ID[:12]
    assert short_id("a-name-with-more-than-twelve-letters") == (
        "a-name-with-more-than-twelve-letters"
    )


CRI = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.container-name": "nginx",
    "io.kubernetes.cri.sandbox-name": "web-1",
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-id": "ab" * 32,
    "io.kubernetes.cri.image-name": "docker.io/library/nginx:1.27",
}
CRIO = {
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.container.name": "nginx",
    "io.kubernetes.pod.name": "web-1",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.cri-o.SandboxID": "ab" * 32,
    "io.kubernetes.cri-o.ImageName": "docker.io/library/nginx:1.27",
    "io.kubernetes.cri-o.Name": "k8s_nginx_web-1_shop_1234_0",
}


@pytest.mark.parametrize("annotations", [CRI, CRIO], ids=["containerd", "crio"])
def test_a_container_of_a_pod_has_the_names_of_both(annotations: dict[str, str]) -> None:
    assert origin_of({"annotations": annotations}, {}) == replace(POD, labels=annotations)
    kind = next(key for key in annotations if key.lower().endswith(("type", "container-type")))
    sandbox = origin_of({"annotations": annotations | {kind: "sandbox"}}, {})
    assert sandbox.name == "web-1"


def test_nerdctl_and_shimctl_record_names_and_images_in_annotations() -> None:
    origin = origin_of({"annotations": {"nerdctl/name": "db", "io.trio-shim.image": "oci:x"}}, {})
    assert (origin.name, origin.image) == ("db", "oci:x")


def test_docker_records_names_images_and_labels_in_its_own_file(tmp_path: Path) -> None:
    directory = tmp_path / "containers" / ID
    directory.mkdir(parents=True)
    (directory / "config.v2.json").write_text(
        json.dumps({"Name": "/web", "Config": {"Image": "redis:7", "Labels": {"a": "1"}}})
    )
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    mount = {"destination": "/etc/hostname", "source": f"{directory}/hostname"}
    (bundle / "config.json").write_text(
        json.dumps({"process": {"args": ["redis-server"]}, "mounts": [{}, mount]})
    )
    row = row_of(Found("moby", ID, "", str(bundle)))
    assert (row.name, row.origin.image) == ("web", "redis:7")
    assert row.origin.labels == {"a": "1"}
    assert row.command == ("redis-server",)
    assert row.created_at is not None


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{", "[" * 100_000, '{"mounts": 3, "process": 4}']
)
def test_a_bundle_that_cannot_be_read_has_a_row_without_its_facts(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    row = row_of(replace(UP, bundle=str(tmp_path), pid=0))
    assert (row.name, row.command, row.origin.image) == (ID, (), "")
    assert (row.created_at is None) is (text is None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
PARTS = st.sampled_from(["annotations", "mounts", "process", "args", "source", "Config", "Name"])


@given(st.dictionaries(PARTS, JSON | st.dictionaries(PARTS, JSON)))
def test_no_config_of_another_shape_is_an_error(config: dict[str, Any]) -> None:
    origin_of(config, config)
    docker_file(config)
    command_of(config)


@pytest.mark.parametrize(
    ("executable", "name"),
    [
        ("/usr/bin/containerd-shim-runc-v2", "io.containerd.runc.v2"),
        ("containerd-shim-trio-v2", "io.containerd.trio.v2"),
        ("/opt/shim", "/opt/shim"),
        ("", ""),
    ],
)
def test_the_runtime_is_named_as_containerd_names_it(executable: str, name: str) -> None:
    assert runtime_name(executable) == name


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), True),
        (("id=4f5c",), True),
        (("id=5c",), False),
        (("name=nginx",), True),
        (("name=^web-1/nginx$",), True),
        (("name=^nginx",), False),
        (("name=^/web",), True),
        (("name=web.*gin",), True),
        (("name=inx$",), True),
        (("name=web$",), False),
        (("name=no", "name=web"), True),
        (("name=web", "namespace=other"), False),
        (("namespace=k8s.io",), True),
        (("status=running",), True),
        (("status=exited", "status=Running"), True),
        (("status=exited",), False),
        (("exited=0",), False),
        (("label=a",), True),
        (("label=a=1",), True),
        (("label=a=2",), False),
        (("label=a", "label=b"), False),
        (("annotation=a=1",), True),
        (("ancestor=nginx",), True),
        (("image=nginx:1.27",), True),
        (("image=docker.io/library/nginx:1.27",), True),
        (("image=ngin",), False),
        (("image=nginx:1.26",), False),
        (("runtime=runc",), True),
        (("runtime=io.containerd.runc.v2",), True),
        (("runtime=trio",), False),
        (("pod=web-1",), True),
        (("pod=shop/web-1",), True),
        (("pod=abab",), True),
        (("pod=",), False),
    ],
)
def test_filters_have_dockers_meaning(texts: tuple[str, ...], expected: bool) -> None:
    assert Filters(texts).match(ROW) is expected


def test_a_filter_by_exit_status_or_status_finds_finished_containers() -> None:
    row = replace(ROW, found=stopped(137))
    assert Filters(["exited=1", "exited=137"]).match(row)
    assert not Filters(["exited=13"]).match(row)
    assert not Filters(["exited=255"]).match(replace(ROW, found=stopped(255, reason="lost")))
    assert Filters(["status=stopped"]).match(row)
    assert Filters(["status=exited"]).wants_finished
    assert Filters(["exited=0"]).wants_finished
    assert not Filters(["name=x"]).wants_finished


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nope=1", "use KEY=VALUE with one of the keys ancestor, annotation, exited, id, image"),
        ("name", "use KEY=VALUE"),
        ("", "use KEY=VALUE"),
        ("status=nope", "use one of created, dead, exited"),
        ("exited=x", "use an exit status"),
        ("exited=", "use an exit status"),
        ("name=(a+)+$", "use a part of the name"),
        ("\x1b=\x1b", "use KEY=VALUE"),
    ],
)
def test_a_wrong_filter_is_one_line_with_the_remedy(text: str, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Filters([text])
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@given(st.lists(st.sampled_from(["^", "$", ".*", "a", "b", "ab"]), max_size=8), st.text("ab"))
def test_a_name_filter_matches_as_the_regular_expression_does(parts: list[str], name: str) -> None:
    pattern = "".join(parts)
    inner = pattern.removeprefix("^").removesuffix("$")
    if "^" in inner or "$" in inner:
        return
    row = replace(ROW, found=replace(UP, id=name or "x"), origin=Origin())
    expected = any(re.search(pattern, text) for text in (row.name, f"/{row.name}"))
    assert Filters([f"name={pattern}"]).match(row) is expected


def test_a_name_filter_takes_no_exponential_time() -> None:
    row = replace(ROW, found=replace(UP, id="a" * 76), origin=Origin())
    started = time.process_time()
    assert not Filters([f"name={'.*a' * 2000}b"]).match(row)
    assert time.process_time() - started < 5


def shown(format_: str, *rows: Row, whole: bool = False) -> str:
    documents = [listed(row, NOW, whole=whole) for row in rows]
    return Format(format_).render(documents, lambda value: as_json(value, indent=None))


def test_the_formats_of_docker_ps_work_on_our_rows() -> None:
    assert shown("{{.ID}}", ROW) == f"{ID[:12]}\n"
    assert shown("{{.ID}}", ROW, whole=True) == f"{ID}\n"
    assert shown("{{.Names}}: {{.Status}} {{.RunningFor}}", ROW) == (
        "web-1/nginx: Up About a minute 3 minutes ago\n"
    )
    assert shown("{{.Command}}", ROW) == '"nginx -g daemon off…"\n'
    assert shown("{{.Command}}", ROW, whole=True) == '"nginx -g daemon off; -q"\n'
    assert shown('{{.Label "a"}}{{.Labels}}{{.Ports}}|{{.Pid}}', ROW) == "1a=1|42\n"
    assert shown("{{.State}} {{.CreatedAt}}", ROW) == "running 2026-01-02T03:01:05Z\n"
    assert shown("{{.Namespace}} {{.Runtime}} {{.Pod}}", ROW) == (
        "k8s.io io.containerd.runc.v2 web-1\n"
    )
    for text in ("json", "{{json .}}"):
        assert json.loads(shown(text, ROW))["Names"] == "web-1/nginx"


def test_a_table_template_has_a_header_and_aligned_columns() -> None:
    other = replace(ROW, found=replace(UP, id="short"), origin=Origin())
    for text in (
        r"table {{.ID}}\t{{.Names}}\t{{.RunningFor}}",
        "table {{.ID}}\t{{.Names}}\t{{.RunningFor}}",
    ):
        assert shown(text, ROW, other).splitlines() == [
            "CONTAINER ID   NAMES         CREATED",
            "4f5c4f5c4f5c   web-1/nginx   3 minutes ago",
            "short          short         3 minutes ago",
        ]
    assert shown("table {{.ID}}") == "CONTAINER ID\n"
    assert shown(r"table {{upper .State}}\t{{json .Names}}", ROW) == (
        'STATE     NAMES\nRUNNING   "web-1/nginx"\n'
    )
    assert shown(r"table{{.State}}", ROW) == "STATE\nrunning\n"
    assert shown("tables {{.State}}", ROW) == "tables running\n"


def test_a_field_that_no_row_has_is_an_error_that_lists_them() -> None:
    with pytest.raises(TemplateError, match=r"no field \.Nope; use one of \.Address, \.Bundle"):
        shown("{{.Nope}}", ROW)
    with pytest.raises(TemplateError, match="table has no template"):
        Format("table ")


def test_inspect_has_our_fields_and_those_of_docker() -> None:
    values = {
        "id": ID,
        "state": {"pid": 42, "status": "running", "exit_status": None},
        "config": {"args": ["sh"], "env": ["A=b"], "annotations": {"a": "1"}},
        "shim": {"version": "1"},
    }
    document = inspected(values, ROW)

    def one(text: str) -> str:
        return Format(text).render([document], lambda value: as_json(value, indent=None)).strip()

    assert one("{{.State.Pid}} {{.State.Running}} {{.State.ExitCode}}") == "42 true 0"
    assert one("{{.State.Status}} {{.State.StartedAt}}") == "running 2026-01-02T03:02:35Z"
    assert json.loads(one("{{json .State}}")) == values["state"]
    assert json.loads(one("{{json .}}")) == values
    assert one("{{.Name}} {{.Config.Image}} {{.Id}}") == f"web-1/nginx {POD.image} {ID}"
    assert one('{{range .Config.Env}}{{println .}}{{end}}{{.Path}} {{join .Args ","}}') == (
        "A=b\nnginx -g,daemon off;,-q"
    )
    assert one('{{index .Config.Labels "a"}}{{index .Config.Annotations "a"}}') == "11"
    assert one("{{.Shim.Version}}") == "1"
    silent = inspected({"state": None, "config": None}, replace(ROW, found=stopped(137)))
    text = "{{.State.Status}} {{.State.ExitCode}} {{.State.FinishedAt}}"
    assert Format(text).render([silent], str) == "exited 137 2026-01-02T01:04:05Z\n"


def test_no_name_of_a_container_controls_the_terminal() -> None:
    evil = "a\x1b[2J\x9b1m\u202eb\n"
    origin = Origin(evil, evil, evil, evil, evil, {evil: evil})
    row = replace(ROW, origin=origin, command=(evil,), runtime=evil)
    every = "".join(f"{{{{.{name}}}}}" for name in (*listed(row, NOW), "Pod", "Runtime", "Name"))
    for text in (every, "{{json .}}", f"table {every}", '{{printf "%s%q" .Names .Image}}'):
        assert shown(text, row, whole=True).replace("\n", "").isprintable()
