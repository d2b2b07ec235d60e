"""Small changes of a program's text, each of which some test should notice.

A change replaces one stretch of the source and leaves every other byte alone, so that
its diff shows one line or two.  Annotations, decorators, docstrings and what only a
type checker reads are not changed, nor are messages and logging, which no test has to spell out.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from difflib import unified_diff
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPARISONS: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
}
_ARITHMETIC: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.FloorDiv(),
    ast.BitOr: ast.BitAnd(),
    ast.BitAnd: ast.BitOr(),
}
# Context managers that can be removed from a program that then still runs.
_SCOPES = ("move_on_after", "move_on_at", "fail_after", "fail_at", "CancelScope", "suppress")
_REMOVED = (ast.Assign, ast.AugAssign, ast.Delete, ast.Raise, ast.Break, ast.Continue)
_LOGGERS = ("log",)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: bytes ``start`` to ``end`` of the source become ``text``.

    ``key`` names it in a list of equivalent mutants; it stays the same while the lines
    that it changes, and their function, do.
    """

    operator: str
    line: int
    start: int
    end: int
    text: str
    key: str = ""

    def apply(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def diff(self, source: str, name: str) -> str:
        before, after = source.splitlines(), self.apply(source).splitlines()
        return "\n".join(unified_diff(before, after, name, name, lineterm="", n=2))


def mutants_of(source: str, name: str) -> list[Mutant]:
    """Return every mutant of ``source`` that compiles, from its top to its end."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    seen: Counter[str] = Counter()
    found = []
    for mutant, function in finder.found:
        changed = mutant.apply(source)
        if changed == source or not _compiles(changed):
            continue
        lines = [line for line in mutant.diff(source, name).splitlines()[3:] if line[0] in "+-"]
        text = "\n".join((name, function, mutant.operator, *(line.strip() for line in lines)))
        seen[text] += 1
        digest = hashlib.sha256(f"{text}\n{seen[text]}".encode()).hexdigest()
        found.append(replace(mutant, key=digest[:10]))
    return sorted(found, key=lambda mutant: (mutant.start, mutant.operator, mutant.text))


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self._data = source.encode()
        self._lines = [0]
        for line in self._data.split(b"\n"):
            self._lines.append(self._lines[-1] + len(line) + 1)
        self._function: list[str] = []
        self.found: list[tuple[Mutant, str]] = []

    def _place(self, line: int, column: int) -> int:
        return self._lines[line - 1] + column

    def _add(self, operator: str, node: ast.expr | ast.stmt, text: str) -> None:
        start = self._place(node.lineno, node.col_offset)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        self._cut(
            operator, node.lineno, start, self._place(node.end_lineno, node.end_col_offset), text
        )

    def _cut(self, operator: str, line: int, start: int, end: int, text: str) -> None:
        self.found.append((Mutant(operator, line, start, end, text), ".".join(self._function)))

    # Skipped

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.generic_visit(node)

    def _named(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._function.append(node.name)
        parts: list[ast.AST] = list(node.body)
        if not isinstance(node, ast.ClassDef):
            parts += [one for one in (*node.args.defaults, *node.args.kw_defaults) if one]
        for part in parts:
            self.visit(part)
        self._function.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _named  # noqa: N815 - as ast has it

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave texts alone."""

    def visit_Import(self, node: ast.Import) -> None:
        """Leave imports alone."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Leave imports alone."""

    # Changed

    def visit_Compare(self, node: ast.Compare) -> None:
        for place, comparison in enumerate(node.ops):
            ops = list(node.ops)
            ops[place] = _COMPARISONS[type(comparison)]
            self._add(
                "comparison",
                node,
                f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})",
            )
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._add("boolean", node, f"({ast.unparse(ast.BoolOp(other, node.values))})")
        for place in range(len(node.values)):
            rest = [value for other, value in enumerate(node.values) if other != place]
            kept = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
            self._add("boolean", node, f"({ast.unparse(kept)})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add("boolean", node, f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add("boolean", node.test, f"(not ({ast.unparse(node.test)}))")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = _ARITHMETIC.get(type(node.op))
        if other is not None:
            self._add(
                "arithmetic", node, f"({ast.unparse(ast.BinOp(node.left, other, node.right))})"
            )
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add("constant", node, str(not node.value))
        elif isinstance(node.value, int | float):
            self._add("constant", node, repr(node.value + 1))
        elif isinstance(node.value, str | bytes) and node.value:
            self._add("constant", node, repr(type(node.value)()))

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (
            isinstance(node.value, ast.Constant) and node.value.value is None
        ):
            self._add("return", node, "return None")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        value = node.value
        if isinstance(value, ast.Constant):  # a docstring
            return
        if isinstance(value, ast.Call) and _root(value.func) in _LOGGERS:
            return
        self._add("removal", node, "pass")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg == "shield":
                self._add("shield", keyword.value, "False")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        if isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            self._add("removal", node, "pass")
            self._add("exception", node.exc.func, "Exception")
            return  # the argument is a message
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self._add("exception", node.type, "()")
            if isinstance(node.type, ast.Tuple):
                for place in range(len(node.type.elts)):
                    rest = [one for other, one in enumerate(node.type.elts) if other != place]
                    self._add("exception", node.type, ast.unparse(ast.Tuple(rest, ast.Load())))
        for part in node.body:
            self.visit(part)

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        only = node.items[0].context_expr
        called = only.func if isinstance(only, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if len(node.items) == 1 and node.items[0].optional_vars is None and name in _SCOPES:
            start = self._place(node.lineno, node.col_offset)
            assert only.end_lineno is not None
            assert only.end_col_offset is not None
            end = self._place(only.end_lineno, only.end_col_offset)
            self._cut("scope", node.lineno, start, end, "if True")
        self.generic_visit(node)

    visit_With = visit_AsyncWith = _with  # noqa: N815 - as ast has it

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, _REMOVED):
            self._add("removal", node, "pass")
        super().generic_visit(node)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def keys(text: str) -> Iterator[tuple[str, str]]:
    """Give key and reason of each line of a list of equivalent mutants.

    :raises ValueError: a line has no reason.
    """
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            key, _, reason = line.partition(" ")
            if not reason.strip():
                raise ValueError(f"{key} has no reason: say why no test can notice it")
            yield key, reason.strip()
