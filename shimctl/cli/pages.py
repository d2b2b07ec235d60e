"""Write the reference of the commands from their help: docs/shimctl.md and the man pages.

    python -m shimctl.cli.pages PAGE           replace the reference in PAGE, a Markdown file
    python -m shimctl.cli.pages PAGE --check   exit with 1 if it is not current
    python -m shimctl.cli.pages --man DIR      write shimctl.1 and shimctl-COMMAND.1

Source: man-pages(7) for the sections of a man page, groff_man(7) for the macros.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shim.version import VERSION
from shimctl.cli.app import SECTIONS, SETTINGS, Command, app, load
from shimctl.cli.generated import roff, write_or_compare

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN = "<!-- The rest of this page is generated: python -m shimctl.cli.pages docs/shimctl.md -->"
# These options are described once for all commands.
SHARED = (
    *(("-h", "--help"), ("--state",), ("-o", "--output"), ("--json",)),
    ("-n", "--namespace"),
)
_SENTENCE = re.compile(r"(?<=[^.\s]\.) +(?=[A-Z`-])")


def contexts(name: str) -> list[click.Context]:
    """Return the context of a command, and those of the commands below it."""
    command = load(name)
    top = click.Context(command, info_name=name, parent=_top(), **SETTINGS)
    below = command.commands if isinstance(command, click.Group) else {}
    return [
        top,
        *(
            click.Context(one, info_name=verb, parent=top, **SETTINGS)
            for verb, one in below.items()
        ),
    ]


def _top() -> click.Context:
    return click.Context(app, info_name="shimctl", **SETTINGS)


def usage(context: click.Context) -> str:
    """Return the command line without its options: ``shimctl kill ID...``."""
    words = [context.command_path]
    words += [p.make_metavar(context) for p in context.command.params if _is_argument(p)]
    if isinstance(context.command, click.Group):
        words.append(f"[{'|'.join(context.command.commands)}]")
    return " ".join(words)


def paragraphs(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help, each on one line."""
    text = (command.help or "").strip()
    return [" ".join(part.split()) for part in text.split("\n\n")]


def rows(context: click.Context, *, shared: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the options of a command and their help; with ``shared`` also the common ones."""
    for parameter in context.command.get_params(context):
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        if not shared and tuple(parameter.opts) in SHARED:
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            yield record


def _is_argument(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument)


# Markdown


def reference() -> str:
    """Return the reference of all commands in Markdown."""
    parts = []
    for section, names in SECTIONS.items():
        parts.append(f"## {section}\n")
        parts += [_markdown(name) for name in names]
    return "\n".join(parts)


def _markdown(name: str) -> str:
    top, *below = contexts(name)
    command = top.command
    assert isinstance(command, Command)
    lines = [f"### `{usage(top)}`", ""]
    for text in paragraphs(command):
        lines += [*_SENTENCE.split(text), ""]
    lines += ["```", command.example, "```", ""]
    table = [f"| {_code(left)} | {_cell(right)} |" for left, right in rows(top)]
    for context in below:
        verb, path = str(context.info_name), usage(context).removeprefix(f"{top.command_path} ")
        table.append(f"| `{path}` | {_cell(paragraphs(context.command)[0])} |")
        table += [f"| `{verb}` {_code(one)} | {_cell(text)} |" for one, text in rows(context)]
    if table:
        lines += ["| option | |", "|---|---|", *table, ""]
    return "\n".join(lines)


def _code(record: str) -> str:
    """Return ``-n, --namespace NAMESPACE`` with each option as code."""
    words = record.split(" ")
    options = [word for word in words if word.startswith("-")]
    shown = ", ".join(f"`{option.rstrip(',')}`" for option in options)
    return " ".join([shown, *(_cell(_bare(word)) for word in words[len(options) :])])


def _bare(word: str) -> str:
    """Return a word without the brackets around the whole of it, which click adds to choices."""
    return word[1:-1] if word.startswith("[") and word.endswith("]") else word


def _cell(text: str) -> str:
    """Return the text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def replaced(page: str) -> str:
    """Return the page with a current reference.

    :raises ValueError: the page has no line that begins the reference.
    """
    own, found, _ = page.partition(BEGIN)
    if not found:
        raise ValueError(f"the page has no line {BEGIN}")
    return f"{own}{BEGIN}\n\n{reference().rstrip()}\n"


# man pages


def man_pages() -> dict[str, str]:
    """Return the text of each man page by its file's name."""
    pages = {"shimctl.1": _man_top()}
    for names in SECTIONS.values():
        pages |= {f"shimctl-{name}.1": _man(name) for name in names}
    return pages


def _man_top() -> str:
    lines = [*_man_head("shimctl", paragraphs(app)[0]), ".B shimctl", "COMMAND [ARGUMENTS...]"]
    lines += [".SH DESCRIPTION", *map(roff, paragraphs(app))]
    for section, names in SECTIONS.items():
        lines.append(f".SH {section.upper()}")
        for name in names:
            lines += [".TP", f".BR {roff(f'shimctl-{name}')} (1)", roff(_first(load(name)))]
    lines += [".SH OPTIONS", *_man_options(_top())]
    return "\n".join(lines) + "\n"


def _man(name: str) -> str:
    top, *below = contexts(name)
    command = top.command
    assert isinstance(command, Command)
    lines = _man_head(f"shimctl-{name}", _first(command))
    for context in [top, *below]:
        lines += [".PP", roff(usage(context))]
    lines.append(".SH DESCRIPTION")
    for text in paragraphs(command):
        lines += [".PP", roff(text)]
    lines += [".SH OPTIONS", *_man_options(top)]
    for context in below:
        verb = context.command
        lines += [f".SS {roff(context.command_path)}", roff(paragraphs(verb)[0])]
        lines += _man_options(context)
    lines += [".SH EXAMPLE", ".EX", roff(command.example), ".EE"]
    lines += [".SH SEE ALSO", r".BR shimctl (1)"]
    return "\n".join(lines) + "\n"


def _man_head(name: str, sentence: str) -> list[str]:
    return [
        f'.TH {roff(name.upper())} 1 "" "trio\\-shim {VERSION}"',
        ".SH NAME",
        f"{roff(name)} \\- {roff(sentence.rstrip('.'))}",
        ".SH SYNOPSIS",
    ]


def _man_options(context: click.Context) -> list[str]:
    lines = []
    for left, right in rows(context, shared=True):
        lines += [".TP", f".B {roff(left)}", roff(right)]
    return lines


def _first(command: click.Command) -> str:
    return _SENTENCE.split(paragraphs(command)[0])[0]


def main(argv: list[str]) -> int:
    """Write or check the pages; return the exit code."""
    match argv:
        case ["--man", directory]:
            # Late: where the package is built, click is the only requirement that is installed.
            from shim.linux.modes import make_directories, write_file

            place = Path(directory)
            make_directories(place, 0o755)
            for name, text in man_pages().items():
                write_file(place / name, text, 0o644)
        case [name] | [name, "--check"]:
            new = replaced(Path(name).read_text())
            return write_or_compare(name, new, "shimctl.cli.pages", check=len(argv) == 2)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
