"""Templates: what users of docker paste works, and no template crashes or hangs."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shimctl.cli.render import as_json
from shimctl.gotemplate import Document, Template, TemplateError

DATA = Document(
    {
        "id": "4f5c",
        "name": "/web",
        "state": {"pid": 42, "exit_code": None, "running": True},
        "args": ["sh", "-c", "echo <&> x"],
        "labels": {"b.c": "two", "a": "one"},
        "limits": {"cpus": 1.5, "none": None},
        "mounts": [{"source": "/a", "destination": "/b"}, {"source": "/c", "destination": "/d"}],
        "nothing": [],
    },
    {"Label": {"a": "one"}.get, "ExitCode": 137},
)


def rendered(template: str, value: object = DATA) -> str:
    return Template(template).render(value, lambda found: as_json(found, indent=None))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("plain }} text", "plain }} text"),
        ("{{.ID}}", "4f5c"),
        ("{{ .Id }} {{.id}}", "4f5c 4f5c"),
        (r"{{.ID}}\t{{.Name}}\n", "4f5c\t/web\n"),
        ("{{.State.Pid}}", "42"),
        ("{{.State.ExitCode}}|{{.ExitCode}}", "<no value>|137"),
        ("{{json .State}}", '{"pid": 42, "exit_code": null, "running": true}'),
        ("{{json .Args}}", '["sh", "-c", "echo <&> x"]'),
        ("{{.Args}} {{.Labels}}", "[sh -c echo <&> x] map[a:one b.c:two]"),
        ("{{range .Args}}[{{.}}]{{end}}", "[sh][-c][echo <&> x]"),
        ("{{range $i, $v := .Args}}{{$i}}={{$v}};{{end}}", "0=sh;1=-c;2=echo <&> x;"),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "a=one;b.c=two;"),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ("{{range .Mounts}}{{.Source}}:{{.Destination}}{{$.ID}},{{end}}", "/a:/b4f5c,/c:/d4f5c,"),
        ("{{range .Args}}{{if eq . `-c`}}{{break}}{{end}}{{.}}{{end}}", "sh"),
        ("{{range .Args}}{{if eq . `-c`}}{{continue}}{{end}}{{.}},{{end}}", "sh,echo <&> x,"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if not .State.Running}}down{{else if .Nothing}}x{{else}}up{{end}}", "up"),
        ("{{if and .State.Running (gt .State.Pid 40)}}yes{{end}}", "yes"),
        ("{{if or .Nothing (eq .ID `no` `4f5c`)}}yes{{end}}", "yes"),
        ("{{with .State}}{{.Pid}}{{end}}{{with .Nothing}}x{{else}}-{{end}}", "42-"),
        ("{{with $x := .State}}{{$x.Pid}}{{end}}", "42"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ("{{$x := 1}}{{if true}}{{$x := 2}}{{end}}{{$x}}", "1"),
        ('{{index .Labels "b.c"}} {{index .Args 0}}', "two sh"),
        ('{{(index .Mounts 1).Source}} {{index .Labels "no"}}', "/c <no value>"),
        ('{{.Label "a"}} {{len .Args}}', "one 3"),
        ('{{join .Args " "}} {{.Name | upper | lower}}', "sh -c echo <&> x /web"),
        ('{{join (slice .Args 1) ","}} {{slice .ID 0 2}}', "-c,echo <&> x 4f"),
        ('{{range split "a,b" ","}}<{{.}}>{{end}}', "<a><b>"),
        ('{{printf "%-6s|%4d|%q|%v|%05.1f" .ID 7 "x" .Args 1.25}}', None),
        ('{{printf "%s\\t%s\\n" .ID .Name}}', "4f5c\t/web\n"),
        ('{{.ID | printf "%.2s%%"}}', "4f%"),
        ('{{print .ID 1 2 "x" "y"}}', "4f5c1 2xy"),
        ('{{println .ID}}', "4f5c\n"),
        ("a  {{- .ID -}}  b", "a4f5cb"),
        ("a {{- /* words */ -}} b{{/* more */}}c", "abc"),
        ("{{'a'}} {{0x10}} {{-3}} {{1.5}} {{true}}", "97 16 -3 1.5 true"),
        ('{{truncate .ID 2}}{{pad "x" 1 2}}|{{title "web"}}', "4f x  |Web"),
        ("{{.limits.cpus}} {{.Limits.None.More}}", "1.5 <no value>"),
        ("{{ne .ID `x`}} {{le 1 2}} {{lt `b` `a`}} {{ge 2 2.5}}", "true true false false"),
    ],
)  # fmt: skip
def test_what_users_of_docker_write_works(template: str, expected: str | None) -> None:
    if expected is None:
        expected = '4f5c  |   7|"x"|[sh -c echo <&> x]|001.2'
    assert rendered(template) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{.Nope}}", "no field .Nope; use one of .args, .ExitCode, .id"),
        ("{{.ID.More}}", "a text has no field .More"),
        ("{{.ID", "no end; add }}"),
        ("{{if .ID}}x", "no end; add {{end}}"),
        ("{{end}}", "{{end}} without a block"),
        ('{{template "x"}}', "{{template}} is not supported"),
        ('{{define "x"}}{{end}}', "{{define}} is not supported"),
        ("{{nope .ID}}", "no function nope"),
        ("{{ID}}", "no function ID; a field is .ID"),
        ("{{.ID | 1}}", "a value follows |; write a function there"),
        ("{{.ID )}}", "unexpected ')' in an action"),
        ('{{printf "%d" 1.5}}', "cannot format a number with a fraction with %d"),
        ('{{printf "%f" 1}}', "cannot format a whole number with %f"),
        ("{{$x}}", "no variable $x"),
        ("{{}}", "empty part"),
        ("{{.ID | }}", "empty part"),
        ("{{'ab'}}", "not one character"),
        ("{{#}}", "cannot read '#'"),
        ("{{break}}", "outside of {{range}}"),
        ("{{range .ID}}{{end}}", "cannot range over a text"),
        ("{{index .Args 9}}", "index 9 is out of range; there are 3 elements"),
        ('{{index .Args "a"}}', "index cannot use a text"),
        ("{{join .ID `,`}}", "join cannot use a text"),
        ('{{printf "%d" .ID}}', "printf cannot format a text with %d; use %v instead"),
        ('{{printf "%s"}}', "more verbs than values"),
        ('{{printf "x" 1}}', "more values than verbs"),
        ("{{lower}}", "lower has 0 arguments"),
        ("{{lt .ID 1}}", "lt cannot compare a text with a number"),
        ("{{.Label}}", "lacks its argument"),
        ("{{len 3}}", "len cannot use a number"),
        ("{{1 2}}", "a value that is no function has arguments"),
        ("{{if .ID}}{{else with .ID}}{{end}}", "{{else with}} after {{if}}"),
        ("{{" + "(" * 50 + ".ID" + ")" * 50 + "}}", "more than 40 levels"),
        ("{{if .ID}}" * 50, "more than 40 levels"),
        ("{{" + "9" * 30 + "}}", "too long"),
        ("x" * 70_000, "longer than 65536 characters"),
    ],
)
def test_any_other_part_is_one_error_that_names_it(template: str, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        rendered(template)
    message = str(caught.value)
    assert words in message
    assert message.startswith("--format: ")
    assert "; " in message
    assert message.isprintable()


def test_no_text_of_a_container_controls_the_terminal_and_the_template_may() -> None:
    evil = "a\x1b[2J\x9b1m\u202eb\n"
    data = {"name": evil, "list": [evil], evil: 1}
    for template in (
        "{{.name}}{{.list}}{{json .}}{{.}}",
        '{{print .name}}{{println .name}}{{printf "%s%q%v" .name .name .list}}',
        '{{join .list ","}}{{upper .name}}{{slice .name 1}}{{truncate .name 9}}{{pad .name 1 1}}',
        '{{range split .name "["}}{{.}}{{end}}{{range $k, $v := .}}{{$k}}{{end}}',
    ):
        assert rendered(template, data).replace("\n", "").isprintable()
    with pytest.raises(TemplateError) as caught:
        rendered("{{.x}}", data)
    assert str(caught.value).isprintable()
    assert rendered('{{"\\t"}}\t', data) == "\t\t"


# Parts that are likely to be combined badly.
PARTS = st.sampled_from(
    [
        *(
            "{{",
            "}}",
            "{{- ",
            " -}}",
            "(",
            ")",
            "|",
            ".",
            "$",
            "$x",
            ":=",
            "=",
            ",",
            '"',
            "`",
            "'",
        ),
        *(".ID", ".args", ".labels", ".state.pid", ".nothing", ".Label", "{{end}}", "{{else}}"),
        *("{{range .args}}", "{{if .id}}", "{{with .state}}", "range", "if", "with", "break"),
        *("index", "slice", "printf", "print", "join", "split", "json", "len", "and", "or", "not"),
        *("eq", "lt", "upper", "pad", "truncate", '"%d%s"', '"%99999999d"', '"%-999.999f"'),
        *("0", "-1", "99999999999999999999", "1e999", "0x", "true", "nil", "/*", "*/", "\\", "%"),
        *(" ", "\n", "\t", "\x1b", "\udc80"),
    ]
)
TEMPLATES = st.lists(PARTS | st.text(max_size=3), max_size=25).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "args", "state", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=400, deadline=None)
@given(TEMPLATES, VALUES | st.just(DATA))
def test_no_template_crashes(template: str, value: object) -> None:
    try:
        shown = rendered(template, value)
    except TemplateError as exc:
        shown = str(exc)
    assert "\x1b" not in shown or "\x1b" in template


@pytest.mark.parametrize(
    "template",
    [
        "{{range .}}{{range $}}{{range $}}{{range $}}{{.}}{{end}}{{end}}{{end}}{{end}}",
        "{{range .}}{{range $}}{{if json $}}{{end}}{{end}}{{end}}",
        "{{range .}}{{range $}}{{if eq (join $ `,`) `x`}}{{end}}{{end}}{{end}}",
        "{{$x := `aaaaaaaa`}}{{range .}}{{$x = print $x $x}}{{end}}",
        '{{range .}}{{printf "%1000d" 1}}{{range $}}{{printf "%1000d" 1}}{{end}}{{end}}',
        "{{$x := .}}{{range .}}{{range .}}{{end}}{{range $}}{{$y := slice $ 1}}{{end}}{{end}}",
        "{{/*" * 15_000,
        "{{(" * 15_000,
        "{{$a := 1}}" * 5_000,
        "{{ " + " " * 60_000 + "-",
        '{{"' + "\\x" * 30_000,
    ],
)
def test_no_template_hangs(template: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateError):
        rendered(template, [str(number) for number in range(1000)])
    assert time.monotonic() - started < 20
