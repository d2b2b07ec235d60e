"""A YAML file as plain values, strictly: nothing is guessed, merged, or silently replaced.

Text that is not in quotes is a number, true, false or null only where it is
written as in JSON: ``no``, ``010``, ``1:30`` and dates are texts.  A key that is
there twice, an alias (and so a cycle), a tag, or a second document is refused,
with its line.  Bytes in, values out; no I/O happens here.

Source: yaml.org/spec/1.2.2, "JSON Schema", but for its error where nothing
matches; PyYAML's nodes, which still know their lines.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from shimctl import InvalidError

MAX_FILE = 1 << 20  # bytes of a file
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?", re.ASCII)
# No program, file or variable has one: NUL, and half a pair of UTF-16.
_NOT_ALLOWED = re.compile(r"[\0\ud800-\udfff]")


class _Loader(yaml.BaseLoader):
    """PyYAML's one for texts, lists and tables, without aliases and tags."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call] # its stubs have gaps
        problem = ""
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor} is not supported; write its value out"
        elif getattr(event, "tag", None) is not None:
            problem = f"the tag {event.tag} is not supported; remove it"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def parse(data: bytes, file: str) -> Any:
    """Return the one document in ``data``; ``file`` is its name in what is said of it.

    :raises InvalidError: with the line, where there is one.
    """
    if len(data) > MAX_FILE:
        raise InvalidError(f"{file}: has {len(data)} bytes; {MAX_FILE} is the most that is read")
    try:
        node = _Loader(data.decode()).get_single_node()
        return None if node is None else _value(node, "")
    except UnicodeDecodeError as exc:
        raise InvalidError(f"{file}: byte {exc.start} is not UTF-8; save it as UTF-8") from None
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise InvalidError(f"{file}:{line}: {exc.problem}") from None
    except yaml.YAMLError as exc:
        raise InvalidError(f"{file}: {str(exc).splitlines()[0]}") from None
    except RecursionError:
        raise InvalidError(f"{file}: it is nested too deeply") from None


def _value(node: Any, path: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(one, f"{path}[{i}]") for i, one in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path)
    table: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable():
            raise _error_at(key, f"{path or 'here'}: a key must be a plain word")
        inner = f"{path}.{key.value}" if path else key.value
        if key.value in table:
            raise _error_at(key, f"{inner}: is there twice; remove one")
        table[key.value] = _value(value, inner)
    return table


def _scalar(node: yaml.ScalarNode, path: str) -> Any:
    text: str = node.value
    if _NOT_ALLOWED.search(text):
        raise _error_at(node, f"{path or 'here'}: has a character that cannot be passed on")
    if node.style is not None:  # in quotes, or a block
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _error_at(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
