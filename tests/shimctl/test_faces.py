"""The library's three faces: the same names, the same values, the same arguments."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

import shimctl
from shimctl import aio, blocking, pipes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

TRIO: ModuleType = shimctl  # whose __all__ is found at runtime only
FACES = [aio, blocking]
NAMES = ["shimctl", "shimctl.aio", "shimctl.blocking"]
# What waits, and so differs; all else is the very same object.
CALLS = [
    "connect",
    "dispose",
    "launch",
    "list_shims",
    "run",
    "run_delete",
    "serve_events",
    "spawn",
]


def methods() -> Iterator[tuple[str, str]]:
    """Yield each class that differs on threads, with each of its public methods on trio."""
    for kind in (shimctl.Shim, shimctl.Task, shimctl.Process, pipes.Input, pipes.Output):
        for name, found in inspect.getmembers(kind, inspect.isfunction):
            waits = inspect.iscoroutinefunction(inspect.unwrap(found))
            waits = waits or inspect.isasyncgenfunction(inspect.unwrap(found))
            if waits and not name.startswith("_") and (kind.__name__, name) not in INTERNAL:
                yield kind.__name__, name


INTERNAL = {("Shim", "call"), ("Process", "watch")}
METHODS = [*methods(), ("Shim", "task")]


@pytest.mark.parametrize("face", FACES)
def test_a_face_has_the_names_of_the_others_and_the_same_values(face: ModuleType) -> None:
    assert sorted(face.__all__) == sorted(TRIO.__all__)
    waiting = {*CALLS, "Shim", "Task", "Process", "images"}
    for name in set(TRIO.__all__) - waiting:
        assert getattr(face, name) is getattr(shimctl, name)
    for name in waiting:
        assert getattr(face, name).__doc__


def test_what_no_face_has_is_an_attribute_error() -> None:
    for face in (shimctl, *FACES):
        with pytest.raises(AttributeError, match="nonesuch"):
            _ = face.nonesuch


def test_the_images_of_each_face_have_the_same_names() -> None:
    found = [face.images for face in (TRIO, *FACES)]
    assert all(sorted(images.__all__) == sorted(found[0].__all__) for images in found)
    for name in found[0].__all__:
        same = len({id(getattr(images, name)) for images in found}) == 1
        assert same == (name != "prepare")


def test_a_type_checker_knows_each_name_and_refuses_another(tmp_path: Path) -> None:
    imports = "".join(f"import {name}\n" for name in NAMES)
    modules = {f"{name}{part}": "" for name in NAMES for part in ("", ".images")}
    for name, face in zip(NAMES, (TRIO, *FACES), strict=True):
        modules[name] = "".join(f"{name}.{of_face}\n" for of_face in face.__all__)
        of_images = (f"{name}.images.{found}\n" for found in face.images.__all__)
        modules[f"{name}.images"] = "".join(of_images)
    known, unknown = tmp_path / "known.py", tmp_path / "unknown.py"
    known.write_text(imports + "".join(modules.values()))
    unknown.write_text(imports + "".join(f"{name}.nonesuch\n" for name in modules))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, known, unknown],
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == len(modules), done.stdout
    assert all("unknown.py" in line and "nonesuch" in line for line in errors), errors


def arguments(function: Any) -> list[tuple[str, object]]:
    """Return the names and kinds of a function's parameters, without those for waiting."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind) for p in found if p.name != "task_status"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("face", FACES)
def test_a_function_takes_the_same_arguments_on_each(face: ModuleType, name: str) -> None:
    assert arguments(getattr(face, name)) == arguments(getattr(shimctl, name))


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_method_takes_the_same_arguments_and_defaults_on_each(kind: str, name: str) -> None:
    home = pipes if kind in ("Input", "Output") else shimctl
    ours, theirs = (getattr(getattr(face, kind), name) for face in (home, blocking))
    assert [str(p) for p in inspect.signature(ours).parameters.values()] == [
        str(p) for p in inspect.signature(theirs).parameters.values()
    ]
    assert ours.__doc__.splitlines()[0] == theirs.__doc__.splitlines()[0]


@pytest.mark.parametrize("face", NAMES)
def test_a_face_loads_none_of_the_others(face: str) -> None:
    """And threads load what finds, launches and listens when it is asked for."""
    code = f"import {face}, sys; {face}.connect; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "trio" not in loaded
    if face == "shimctl.blocking":
        assert not {"asyncio", "psutil", "subprocess", "shimctl.events"} & set(loaded)


def test_help_can_show_each() -> None:
    for face in NAMES:
        code = f"import {face}; help({face})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert "serve_events(" in done.stdout


WRONG = [
    ("trio", aio, "cannot call shimctl.aio in a trio task; use shimctl"),
    ("trio", blocking, "cannot call shimctl.blocking in a trio task; use shimctl"),
    ("asyncio", shimctl, "cannot call shimctl in an asyncio task; use shimctl.aio"),
    ("asyncio", blocking, "cannot call shimctl.blocking in an asyncio task; use shimctl.aio"),
]


@pytest.mark.parametrize(("running", "face", "message"), WRONG)
def test_the_wrong_face_names_the_right_one(running: str, face: Any, message: str) -> None:
    async def main() -> None:
        for function in (face.list_shims, lambda: face.run("/none")):
            with pytest.raises(shimctl.WrongFaceError, match=message):
                await function()
        block = face.connect("/none")
        with pytest.raises(shimctl.WrongFaceError, match=message):
            _ = block.__enter__() if face is blocking else await block.__aenter__()

    trio.run(main) if running == "trio" else asyncio.run(main())


def test_a_block_of_another_kind_names_the_right_face() -> None:
    with (
        pytest.raises(shimctl.WrongFaceError, match=r"use shimctl\.blocking"),
        shimctl.connect("/none"),  # type: ignore[attr-defined]
    ):
        pass

    async def main() -> None:
        with (
            pytest.raises(shimctl.WrongFaceError, match="use `async with`"),
            aio.connect("/none"),  # type: ignore[attr-defined]
        ):
            pass

    asyncio.run(main())
