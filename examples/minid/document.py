"""Reads a YAML file strictly as plain values: without guesses, merges or replaced keys.

Text without quotes is a number, true, false or null only in JSON's form: ``no``,
``010``, ``1:30`` and dates are texts.  A repeated key, an alias (and so a cycle), a
tag and a second document are errors, with the line.  Bytes in, values out; no I/O
happens here.

Source: yaml.org/spec/1.2.2, "JSON Schema", except that other text is a text and not
an error; PyYAML's nodes, which have line numbers.
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
# NUL and a lone surrogate cannot be in the name of a program, a file or a variable.
_NOT_ALLOWED = re.compile(r"[\0\ud800-\udfff]")


class _Loader(yaml.BaseLoader):
    """PyYAML's loader of texts, lists and tables, without aliases and tags."""

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
    """Return the one document in ``data``; ``file`` is its name in errors.

    :raises InvalidError: the document is not valid; the error has the line if known.
    """
    if len(data) > MAX_FILE:
        raise InvalidError(f"{file}: has {len(data)} bytes, more than the limit of {MAX_FILE}")
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
            raise _error_at(key, f"{path or 'here'}: a key must be a text in one line")
        inner = f"{path}.{key.value}" if path else key.value
        if key.value in table:
            raise _error_at(key, f"{inner}: the key is repeated; remove one")
        table[key.value] = _value(value, inner)
    return table


def _scalar(node: yaml.ScalarNode, path: str) -> Any:
    text: str = node.value
    if _NOT_ALLOWED.search(text):
        raise _error_at(node, f"{path or 'here'}: contains NUL or a lone surrogate; remove it")
    if node.style is not None:  # in quotes, or a block
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _error_at(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
