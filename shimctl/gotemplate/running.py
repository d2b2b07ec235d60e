"""Execute the tree of a template on a value.

Source: text/template/exec.go for scopes and the order of execution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shim.text import printable
from shimctl.gotemplate.errors import OUTPUT, STEPS, WEIGHT, TemplateError
from shimctl.gotemplate.functions import FUNCTIONS, Functions
from shimctl.gotemplate.parsing import (
    Block,
    Chain,
    Constant,
    Dot,
    Function,
    Jump,
    Pipeline,
    Text,
    Variable,
    parse,
)
from shimctl.gotemplate.values import field, kind, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shimctl.gotemplate.parsing import Node, Operand


class Template:
    """A parsed template.

    :raises TemplateError: the text is malformed, or uses an unsupported part.
    """

    def __init__(self, text: str) -> None:
        self._nodes = parse(text, FUNCTIONS)

    def render(self, value: object, as_json: Callable[[object], str]) -> str:
        """Execute the template on ``value``, which has the types of JSON.

        ``as_json`` formats a value as JSON without characters that control a terminal.

        :raises TemplateError: a part cannot be executed on this value.
        """
        run = _Run(value, Functions(as_json))
        try:
            run.nodes(self._nodes, value)
        except RecursionError:
            raise TemplateError("a value has too many levels") from None
        except _JumpError:
            pass  # the parser allows a jump in a loop only
        return "".join(run.written)


class _JumpError(Exception):
    def __init__(self, keyword: str) -> None:
        super().__init__(keyword)
        self.keyword = keyword


class _Run:
    def __init__(self, value: object, functions: Functions) -> None:
        self.written: list[str] = []
        self._length = 0
        self._steps = 0
        self._functions = functions
        self._variables: list[tuple[str, Any]] = [("$", value)]

    def nodes(self, nodes: Iterable[Node], dot: object) -> None:
        for node in nodes:
            self._step()
            match node:
                case Text():
                    self._write(node.text)
                case Block():
                    self._block(node, dot)
                case Jump():
                    raise _JumpError(node.keyword)
                case Pipeline():
                    value = self._pipeline(node, dot)
                    if node.variables:
                        self._assign(node, value)
                    else:
                        self._write(show(value))

    def _block(self, block: Block, dot: object) -> None:
        known = len(self._variables)
        try:
            value = self._pipeline(block.pipeline, dot)
            if block.keyword == "range":
                self._range(block, value, dot)
                return
            if block.pipeline.variables:
                self._assign(block.pipeline, value)
            if value:
                self.nodes(block.body, value if block.keyword == "with" else dot)
            else:
                self.nodes(block.otherwise, dot)
        finally:
            del self._variables[known:]

    def _range(self, block: Block, value: Any, dot: object) -> None:
        pairs: Iterable[tuple[object, object]]
        if value is None:
            pairs = ()
        elif isinstance(value, dict):
            pairs = sorted(value.items(), key=lambda pair: str(pair[0]))
        elif isinstance(value, (list, tuple)):
            pairs = enumerate(value)
        else:
            raise TemplateError(f"cannot range over {kind(value)}", "use a list or an object")
        if not value:
            self.nodes(block.otherwise, dot)
        known = len(self._variables)
        for key, one in pairs:
            self._step()
            names = block.pipeline.variables
            bound = zip(names, (key, one) if len(names) > 1 else (one,), strict=False)
            if block.pipeline.declares:
                self._variables += bound
            else:
                for name, found in bound:
                    self._set(name, found)
            try:
                self.nodes(block.body, one)
            except _JumpError as jump:
                if jump.keyword == "break":
                    return
            finally:
                del self._variables[known:]

    def _pipeline(self, pipeline: Pipeline, dot: object) -> Any:
        value: Any = None
        for at, command in enumerate(pipeline.commands):
            last = (value,) if at else ()
            value = self._command(command, last, dot)
        return value

    def _command(self, operands: Sequence[Operand], last: tuple[Any, ...], dot: object) -> object:
        self._step()
        first, *rest = operands
        if isinstance(first, Function):
            # Lazily: `and` and `or` do not evaluate what follows a decision.
            given = (self._operand(one, dot) for one in rest)
            return self._call(first.name, given, last)
        if not rest and not last:
            return self._operand(first, dot)
        arguments = [*(self._operand(one, dot) for one in rest), *last]
        assert isinstance(first, Chain)  # the parser accepts nothing else with arguments
        *parents, name = first.fields
        target = self._operand(Chain(first.base, tuple(parents)), dot)
        method = field(target, name)
        if not callable(method) or len(arguments) != 1:
            raise TemplateError(f".{printable(name)} has unexpected arguments", "use index")
        return method(arguments[0])

    def _call(self, name: str, given: Iterable[object], last: tuple[Any, ...]) -> object:
        value = self._functions.call(name, self._weighed(given), last)
        return next(iter(self._weighed((value,))))

    def _weighed(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield ``values``, and count the size of each as steps."""
        for value in values:
            if isinstance(value, (str, list, tuple, dict)):
                self._step(len(value) // WEIGHT)
            yield value

    def _operand(self, operand: Operand, dot: object) -> Any:
        self._step()
        match operand:
            case Constant():
                return operand.value
            case Dot():
                return dot
            case Variable():
                return self._get(operand.name)
            case Function():
                return self._call(operand.name, (), ())
            case Chain():
                value = self._operand(operand.base, dot)
                for name in operand.fields:
                    value = field(value, name)
                return value
            case Pipeline():
                return self._pipeline(operand, dot)

    def _assign(self, pipeline: Pipeline, value: object) -> None:
        (name,) = pipeline.variables
        if pipeline.declares:
            self._variables.append((name, value))
        else:
            self._set(name, value)

    def _get(self, name: str) -> Any:
        return next(value for known, value in reversed(self._variables) if known == name)

    def _set(self, name: str, value: object) -> None:
        for at in range(len(self._variables) - 1, -1, -1):
            if self._variables[at][0] == name:
                self._variables[at] = (name, value)
                return

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > STEPS:
            raise TemplateError("the template needs too many steps")

    def _write(self, text: str) -> None:
        self._length += len(text)
        if self._length > OUTPUT:
            raise TemplateError("the output is too long")
        self.written.append(text)
