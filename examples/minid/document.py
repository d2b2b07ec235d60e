"""A YAML file as plain values, strictly: nothing is guessed, merged, or silently replaced.

A key that is there twice, an alias (and so a cycle), a tag, or a second document
is refused, with its line.  Bytes in, values out; no I/O happens here.

Source: yaml.org/spec/1.1, and PyYAML's nodes, which still know their lines.
"""

from __future__ import annotations

from typing import Any

import yaml

from shimctl import InvalidError

LONGEST = 1 << 20  # bytes of a file


class _Loader(yaml.SafeLoader):
    """PyYAML's safe one, without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call] # its stubs have gaps
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor} is not supported; write its value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


def parse(data: bytes, file: str) -> Any:
    """Return the one document in ``data``; ``file`` is its name in what is said of it.

    :raises InvalidError: with the line, where there is one.
    """
    if len(data) > LONGEST:
        raise InvalidError(f"{file}: has {len(data)} bytes; {LONGEST} is the most that is read")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise InvalidError(f"{file}: byte {exc.start} is not UTF-8; save it as UTF-8") from None
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _value(loader, node, file, "")
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise InvalidError(f"{file}:{line}: {exc.problem}") from None
    except yaml.YAMLError as exc:
        raise InvalidError(f"{file}: {str(exc).splitlines()[0]}") from None
    except RecursionError:
        raise InvalidError(f"{file}: it is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _value(loader: Any, node: Any, file: str, path: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, one, file, f"{path}[{i}]") for i, one in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node)
        except ValueError as exc:  # a date that is none, say
            where = f"{file}:{node.start_mark.line + 1}: {path}"
            raise InvalidError(f"{where}: {node.value[:60]!r}: {exc}") from None
    table: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            raise InvalidError(f"{file}:{line}: {path or 'here'}: a key must be a plain word")
        name = str(key.value)  # as it is written: ``on`` and ``1`` are words too
        inner = f"{path}.{name}" if path else name
        if name in table:
            raise InvalidError(f"{file}:{line}: {inner}: is there twice; remove one")
        table[name] = _value(loader, value, file, inner)
    return table
