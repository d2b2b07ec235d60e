"""docs/api.md has every name of the library for trio, asyncio and threads, described once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import shimctl
from shimctl import aio, common
from shimctl.images import names as images

ROOT = Path(__file__).parents[2]
OWN = sorted({*vars(aio)["__all__"]} - {*common.__all__, "images"})
CLASSES = {"Process", "Shim", "Task"}  # asyncio has those of trio


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page as Sphinx makes it, as plain text with one line for each paragraph."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-b", "text", "-c", f"{ROOT}/docs"]
    command += ["-D", "include_patterns=docs/api.md", "-D", "root_doc=docs/api"]
    command += ["-d", f"{directory}/trees", str(ROOT), str(directory)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return (directory / "docs/api.txt").read_text()


def signatures(page: str) -> dict[str, str]:
    """Return the line of each top name: ``shimctl.run``: ``async shimctl.run(...) -> ...``."""
    lines = re.findall(r"(?m)^((?:async |class |exception )?(shimctl[.\w]+)\b.*)$", page)
    return {name: line for line, name in lines}


def test_every_name_of_each_framework_is_on_the_page(page: str) -> None:
    found = signatures(page).keys()
    assert {f"shimctl.{name}" for name in dir(shimctl) if name != "images"} <= found
    assert {f"shimctl.aio.{name}" for name in OWN if name not in CLASSES} <= found
    assert {f"shimctl.blocking.{name}" for name in OWN} <= found
    assert {f"shimctl.images.{name}" for name in images.NAMES} <= found
    assert not {f"shimctl.blocking.{name}" for name in common.__all__} & found


def test_only_the_functions_that_are_awaited_are_async(page: str) -> None:
    lines = signatures(page)
    for name in ("run", "launch", "list_shims", "dispose"):
        assert lines[f"shimctl.{name}"].startswith("async ")
        assert lines[f"shimctl.aio.{name}"].startswith("async ")
        assert not lines[f"shimctl.blocking.{name}"].startswith("async ")
    threads = page[page.index("class shimctl.blocking.Process") :]
    assert "async " not in threads.partition("shimctl.blocking.connect")[0]
    for face in ("", "aio.", "blocking."):
        kind = "AbstractContextManager" if face == "blocking." else "AbstractAsyncContextManager"
        assert lines[f"shimctl.{face}connect"].endswith(f"-> {kind}[Shim]")
        assert lines[f"shimctl.{face}spawn"].endswith(f"-> {kind}[Process]")


def test_a_description_is_on_the_page_once(page: str) -> None:
    text = " ".join(page.split())
    for name in (shimctl.launch, shimctl.run, shimctl.Task.exec):
        assert name.__doc__
        *_, second = name.__doc__.strip().split("\n\n")[:2]
        plain = re.sub(r"[`*:]", "", " ".join(second.split()))[:40].strip()
        assert re.sub(r"[\"*:]", "", text).count(plain) == 1, plain
    assert 'as "shimctl.launch()"' in text
