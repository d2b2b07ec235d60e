"""One scenario, written with ``await``, on each face of the library."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

import shimctl
from shim.ttrpc.blocking import run
from shimctl import aio, blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_WRAPPED = (
    *(blocking.Shim, blocking.Task, blocking.Process, blocking.Input, blocking.Output),
    type(blocking),
)


class Awaited:
    """The face for threads, or an object of it, with results that can be awaited."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if isinstance(found, _WRAPPED):
            return Awaited(found)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            async def value() -> Any:
                return _wrapped(found(*args, **kwargs))

            if name in ("connect", "spawn") and not isinstance(self._inner, blocking.Shim):
                return _entered(found(*args, **kwargs))
            return Awaited(found(*args, **kwargs)) if name == "task" else value()

        return call

    def __repr__(self) -> str:
        return repr(self._inner)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self._inner:
            yield item


def _wrapped(found: Any) -> Any:
    return Awaited(found) if isinstance(found, _WRAPPED) else found


@asynccontextmanager
async def _entered(block: Any) -> AsyncIterator[Any]:
    with block as value:
        yield _wrapped(value)


FACES: dict[str, tuple[Any, Callable[[Callable[[], Awaitable[Any]]], Any]]] = {
    "trio": (shimctl, trio.run),
    "asyncio": (aio, lambda main: asyncio.run(main())),  # type: ignore[arg-type]
    "threads": (Awaited(blocking), lambda main: run(main())),  # type: ignore[arg-type]
}


def on(name: str, scenario: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run ``scenario`` with the face ``name`` as its argument, and return its result."""
    face, start = FACES[name]

    async def main() -> Any:
        return await scenario(face)

    return start(main)
