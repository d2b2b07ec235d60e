"""Imports point down, and the daemon loads neither asyncio nor h2."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down.  A module may import from its own layer and from below it.
LAYERS = [
    {"shim.__main__"},
    {"shim.start", "shim.delete", "shim.boundedwork", "shim.info"},
    {"shim.daemon"},
    {"shim.service", "shim.ownservice", "shim.revival"},
    {"shim.container"},
    {"shim.runc", "shim.events", "shim.cgroup", "shim.stdio"},
    {"shim.api", "shim.reaper", "shim.spawning", "shim.hostfile"},
    {"shim.recovery"},
    {"shim.errors", "shim.scope", "shim.log", "shim.records", "shim.ttrpc", "shim.linux"}
    | {"shim.child", "shim.exit"}
    | {"shim.jsontext", "shim.offthread", "shim.outputaddress", "shim.text"},
    {"shim.names", "shim.counters"},
    {"shim.version"},
]

PURE = [
    "shim/jsontext.py",
    "shim/outputaddress.py",
    "shim/text.py",
    "shim/counters.py",
    "shim/exit.py",
    "shim/ttrpc/frames.py",
    "shim/ttrpc/protocol.py",
    "shim/runc/command.py",
    "shim/container/lifecycle.py",
    "shim/events/encoding.py",
    "shim/events/topics.py",
    "shim/recovery/messages.py",
    "shim/cgroup/metrics.py",
    "shimctl/cli/render.py",
    "shimctl/units.py",
    *(f"shimctl/gotemplate/{name}.py" for name in ("errors", "values", "lexing", "parsing")),
    *(f"shimctl/gotemplate/{name}.py" for name in ("running", "functions", "printf")),
    *(f"shimctl/listing/{name}.py" for name in ("origin", "row", "filters", "fields")),
    "shimctl/listing/manager.py",
    "shimctl/listing/formatting.py",
]
IMPURE = {"trio", "os", "socket", "time", "subprocess", "pathlib", "select", "signal"}

# The modules of the daemon's package that the command line and the library may import.
SHIMCTL_MAY = (
    *("shim.api", "shim.ttrpc", "shim.errors", "shim.records", "shim.scope", "shim.version"),
    *("shim.names", "shim.hostfile", "shim.start.identity"),
    "shim.exit",  # what an exit record holds
    "shim.recovery.versions",  # the states that this version can continue
    *("shim.linux", "shim.jsontext", "shim.outputaddress", "shim.text"),
    "shim.events.encoding",  # the format of the journal, which shimctl reads
    "shim.start.launcher",  # where fork servers listen, and which of them is to be trusted
    "shim.start.stopped",  # where those listen that accept no starts any more
)


# The root is the library.  A package imports from itself and from the layers below it.
# The faces, modules of the root, combine the packages below them.
FACES = ("shimctl.aio", "shimctl.blocking", "shimctl.__init__")
SHIMCTL_LAYERS = [
    {"cli"},
    {"faces"},
    {"standalone", "metrics"},
    {"images", "attach", "listing"},
    {"host", "gotemplate"},
    {""},
]


def imports_of(path: Path) -> set[str]:
    """Return the full names of a module's imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(package: str) -> list[Path]:
    generated = ("_pb2.py", "_grpc.py")
    return [p for p in sorted((ROOT / package).rglob("*.py")) if not p.name.endswith(generated)]


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    for level, layer in enumerate(LAYERS):
        if ".".join(parts[:2]) in layer:
            return level
    return None


@pytest.mark.parametrize("path", modules("shim"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    level = layer_of(own)
    if own == "shim.__init__":
        assert not imports_of(path)
        return
    assert level is not None, f"{own} has no layer"
    for name in imports_of(path):
        assert not name.startswith("shimctl"), f"{own} imports {name}"
        below = layer_of(name)
        assert below is None or below >= level, f"{own} imports {name}, which is above it"


@pytest.mark.parametrize("path", modules("shimctl"), ids=lambda p: str(p.relative_to(ROOT)))
def test_shimctl_takes_only_the_wire_from_the_daemon(path: Path) -> None:
    for name in imports_of(path):
        if name == "shim" or name.startswith("shim."):
            assert name.startswith(SHIMCTL_MAY), f"{path.name} imports {name}"


def shimctl_package(name: str) -> str:
    """Return the layer's name of module ``name``: its package, or an empty text for the root."""
    if ".".join(name.split(".")[:2]) in FACES:
        return "faces"
    part = name.split(".")[1] if "." in name else ""
    return part if (ROOT / "shimctl" / part).is_dir() else ""


@pytest.mark.parametrize("path", modules("shimctl"), ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_of_shimctl_import_only_from_below(path: Path) -> None:
    if path == ROOT / "shimctl/__main__.py":
        return  # what ``python -m shimctl`` runs
    levels = {name: level for level, names in enumerate(SHIMCTL_LAYERS) for name in names}
    own = shimctl_package(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports_of(path):
        if name.startswith("shimctl"):
            other = shimctl_package(name)
            assert other == own or levels[other] > levels[own], f"{path.name} imports {name}"


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_no_io(name: str) -> None:
    assert not {n.split(".")[0] for n in imports_of(ROOT / name)} & IMPURE


def test_only_the_reaper_spawns_and_waits() -> None:
    calls = (
        "waitpid(",
        "waitid(",
        "wait4(",
        "posixspawn",
        "libc.clone_ended",
        "subprocess",
        "run_process",
        "os.fork",
    )
    culprits = {
        str(path.relative_to(ROOT))
        for path in modules("shim")
        for call in calls
        if call in path.read_text()
    }
    # These fork daemons, or themselves, and wait for them; the generator runs protoc.
    start = {
        f"shim/start/{name}.py"
        for name in ("bootstrap", "forking", "newserver", "orphans", "server")
    }
    daemon = {"shim/reaper.py", "shim/spawning.py"}
    assert culprits == {"shim/api/generate.py", "shim/boundedwork.py"} | daemon | start
    spawning = [p for p in modules("shim") if "shim.spawning" in " ".join(imports_of(p))]
    assert spawning == [ROOT / "shim/reaper.py"]


def test_text_of_the_kernel_and_trees_have_one_way_each() -> None:
    # The first splits at characters that names have; the second follows mounts.
    calls = (".splitlines()", "rmtree(")
    culprits = {
        (str(path.relative_to(ROOT)), call)
        for package in ("shim", "shimctl", "examples/minid")
        for path in modules(package)
        for call in calls
        if call in path.read_text()
    }
    # A module's docstring, and the message of a parser.
    assert culprits == {
        ("shim/api/generate.py", ".splitlines()"),
        ("examples/minid/document.py", ".splitlines()"),
    }


def test_only_three_modules_use_ctypes() -> None:
    culprits = {p.name for p in modules("shim") if "ctypes" in imports_of(p)}
    assert culprits == {"libc.py", "mapping.py", "posixspawn.py"}


def test_the_daemon_loads_no_asyncio_no_h2_and_nothing_of_the_command_line() -> None:
    script = (
        "import sys, shim.start.bootstrap, shim.daemon;"
        "slow = ('asyncio', 'h2', 'tomllib', 'yaml', 'psutil', 'click', 'rich', 'shimctl');"
        "print([m for m in slow if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


_CREATES = {"mkdir", "makedirs", "mkfifo", "mknod", "touch", "write_text", "write_bytes"}
# They write to files of the kernel, generate code, or set the mode of each copy by its fd.
_CREATES_NOTHING = {
    *("shim/start/daemonize.py", "shim/start/profile.py", "shim/api/generate.py"),
    "shimctl/host/cgroups.py",
    "shimctl/host/treewriter.py",
}


@pytest.mark.parametrize(
    "path", [*modules("shim"), *modules("shimctl")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_what_is_created_gets_its_mode_from_one_place(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name == "shim/linux/modes.py" or name in _CREATES_NOTHING:
        return
    calls = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not calls & _CREATES, "use shim.linux.modes: the umask changes what these create"
