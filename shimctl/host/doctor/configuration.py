"""Reads the configuration of the managers and of this shim, and judges it.

A file that does not exist is fine.  :func:`judge_containerd` and its like are pure, but
for ``exists``, which checks whether a file of the host exists.

Sources: containerd docs/cri/config.md; dockerd(8); crio.conf(5); examples/ of this project.
"""

from __future__ import annotations

import json
import os
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim import hostfile, names
from shim.errors import InvalidError
from shim.linux.files import read_whole
from shim.text import explain
from shimctl.host import managerfiles
from shimctl.host.doctor.finding import Finding, Level
from shimctl.host.managerfiles import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Exists = Callable[[str], bool]

_AREA = "configuration"
_MOST = 4 << 20  # bytes of a file


def check(root: str = "/") -> list[Finding]:
    """Check the configuration below ``root`` of every manager, and this shim's own."""

    def exists(path: str) -> bool:
        return os.path.exists(f"{root.rstrip('/')}/{path.lstrip('/')}")  # noqa: PTH110

    found: list[Finding] = []
    for path in (managerfiles.CONTAINERD, f"{managerfiles.K3S}/config.toml"):
        for shown, text in _texts(root, path, found):
            found += judge_containerd(shown, text, exists)
    for shown, text in _texts(root, managerfiles.DOCKER, found):
        found += judge_docker(shown, text, exists)
    dropins = sorted(Path(root, managerfiles.CRIO_DROPINS.lstrip("/")).glob("*"))
    crio = [managerfiles.CRIO, *(f"{managerfiles.CRIO_DROPINS}/{one.name}" for one in dropins)]
    for path in crio:
        for shown, text in _texts(root, path, found):
            found += judge_crio(shown, text, exists)
    for shown, text in _texts(root, managerfiles.OPTIONS, found):
        _, problem = _parsed(shown, text, "every Create fails whose runtime names it")
        found.append(problem or Finding(_AREA, shown, Level.OK, "valid TOML"))
    if root == "/":
        found.append(_check_own())
    return found


def _texts(root: str, path: str, found: list[Finding]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of a file if it exists; add what prevents its reading."""
    try:
        data = read_whole(f"{root.rstrip('/')}{path}", _MOST)
        yield path, data.decode()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:
        remedy = "make it a readable file"
        found.append(Finding(_AREA, path, Level.BROKEN, f"cannot be read: {explain(exc)}", remedy))
    except UnicodeDecodeError as exc:
        found.append(Finding(_AREA, path, Level.BROKEN, f"is not UTF-8: {exc}", "correct it"))


def _check_own() -> Finding:
    path = os.environ.get(names.HOST_FILE_VARIABLE) or names.HOST_FILE
    try:
        settings = hostfile.read(os.environ)
    except InvalidError as exc:
        text = f"{exc}; every Create fails with this"
        return Finding(_AREA, path, Level.BROKEN, text, "correct the file")
    text = "" if os.path.lexists(path) else "does not exist; "
    return Finding(_AREA, path, Level.OK, text + describe(settings))


def describe(settings: hostfile.HostFile) -> str:
    """Return the settings of this shim in one line."""
    output = settings.output
    text = f"output without a reader: {output.policy}"
    if output.policy == hostfile.SPOOL:
        text += f", {output.limit} bytes a stream in {output.directory}"
    match settings.share:
        case hostfile.OWN:
            text += "; each pod has a shim of its own"
        case hostfile.UNLIMITED:
            text += "; the containers of a namespace share a shim"
        case most:
            text += f"; a shim serves at most {most} containers"
    return f"{text}; a killed shim is {'' if settings.survive else 'not '}replaced"


def _parsed(
    path: str, text: str, effect: str = "the manager does not start with it"
) -> tuple[dict[str, Any], Finding | None]:
    """Parse a file; if it is not TOML, ``effect`` explains what does not work."""
    try:
        return tomllib.loads(text), None
    except (ValueError, RecursionError) as exc:
        remedy = f"correct that line; {effect}"
        return {}, Finding(_AREA, path, Level.BROKEN, f"is not TOML: {exc}", remedy)


def judge_containerd(path: str, text: str, exists: Exists) -> list[Finding]:
    """Judge a configuration of containerd: its version, its plugins and our runtimes."""
    config, problem = _parsed(path, text)
    if problem:
        return [problem]
    made = partial(Finding, _AREA, path)
    version = managerfiles.version_of(config)
    found = []
    if version == 1 and config:
        remedy = "convert it: `containerd config migrate`"
        found.append(made(Level.ADVICE, "has version 1, which containerd 2 does not read", remedy))
    for other, plugin in managerfiles.CRI_PLUGINS.items():
        if other > version and plugin in table(config, "plugins"):
            text = f'has version {version}, so [plugins."{plugin}"] has no effect'
            found.append(made(Level.BROKEN, text, f"set version = {other}"))
    runtimes = managerfiles.cri_runtimes(config)
    ours = {name: entry for name, entry in runtimes.items() if _is_ours(entry)}
    disabled = config.get("disabled_plugins") or []
    plugin = managerfiles.CRI_PLUGINS.get(version, "cri")
    if ours and isinstance(disabled, list) and {"cri", plugin} & set(map(str, disabled)):
        text = "disabled_plugins disables the CRI plugin, so no pod can use these runtimes"
        found.append(made(Level.BROKEN, text, f"remove {plugin} from disabled_plugins"))
    parent = table(config, "plugins", plugin, "containerd")
    default = parent.get("default_runtime_name", "runc")
    if ours and version == 2 and default not in runtimes:
        text = f"has no table of the default runtime {default}: containerd 1.x does not start pods"
        found.append(made(Level.ADVICE, text, f"add the table runtimes.{default}"))
    for name, entry in ours.items():
        found += _judge_runtime(path, name, entry, exists, key="runtime_path")
    if not ours:
        text = f"version {version}; no runtime of this shim for pods"
        found.append(made(Level.OK, text))
    return found


def _is_ours(entry: object) -> bool:
    kind = table(entry).get("runtime_type")
    path = str(table(entry).get("runtime_path") or "")
    return kind == names.RUNTIME or Path(path).name == names.EXECUTABLE


def _judge_runtime(
    path: str, name: str, entry: Mapping[str, Any], exists: Exists, *, key: str
) -> list[Finding]:
    """Judge the entry of a runtime of this shim: the files that it names exist."""
    made = partial(Finding, _AREA, path)
    options = table(entry, "options")
    files = {key: entry.get(key)}
    files |= {word: options.get(word) for word in ("ConfigPath", "BinaryName")}
    if key == "runtime_path":
        files["runtime_config_path"] = entry.get("runtime_config_path")
    missing = [
        made(
            Level.BROKEN,
            f"runtime {name}: {word} is {file}, which does not exist",
            "correct the path, or install the file",
        )
        for word, file in files.items()
        if isinstance(file, str) and file.startswith("/") and not exists(file)
    ]
    return missing or [made(Level.OK, f"runtime {name} is this shim")]


def judge_docker(path: str, text: str, exists: Exists) -> list[Finding]:
    """Judge Docker's configuration."""
    made = partial(Finding, _AREA, path)
    try:
        config = json.loads(text or "{}")
    except (ValueError, RecursionError) as exc:
        remedy = "correct that line; dockerd does not start with it"
        return [made(Level.BROKEN, f"is not JSON: {exc}", remedy)]
    if not isinstance(config, dict):
        return [made(Level.BROKEN, "is not a JSON object", "dockerd needs { ... }")]
    found = []
    for name, entry in table(config, "runtimes").items():
        kind = table(entry).get("runtimeType")
        if kind == names.RUNTIME or Path(str(kind)).name == names.EXECUTABLE:
            found += _judge_runtime(path, name, table(entry), exists, key="runtimeType")
        elif Path(str(table(entry).get("path"))).name == names.EXECUTABLE:
            text = f"runtime {name}: `path` is for an OCI runtime such as runc, not for a shim"
            remedy = f'replace it with "runtimeType": "{names.RUNTIME}"'
            found.append(made(Level.BROKEN, text, remedy))
    if found and not config.get("live-restore"):
        text = "live-restore is off: a restart of dockerd ends every container"
        found.append(made(Level.ADVICE, text, 'add "live-restore": true'))
    return found or [made(Level.OK, "valid; no runtime of this shim")]


def judge_crio(path: str, text: str, exists: Exists) -> list[Finding]:
    """Judge one file of CRI-O's configuration."""
    config, problem = _parsed(path, text)
    if problem:
        return [problem]
    made = partial(Finding, _AREA, path)
    found = []
    for name, entry in table(config, "crio", "runtime", "runtimes").items():
        if not _is_ours(entry):
            continue
        kind = entry.get("runtime_type")
        if kind != "vm":
            text = f"runtime {name}: runtime_type is {kind!r}, and CRI-O runs a shim only as vm"
            found.append(made(Level.BROKEN, text, 'set runtime_type = "vm"'))
        if not entry.get("runtime_path"):
            text = f"runtime {name}: CRI-O needs the path of the shim"
            found.append(made(Level.BROKEN, text, "set runtime_path"))
        found += _judge_runtime(path, name, entry, exists, key="runtime_path")
    return found or [made(Level.OK, "valid; no runtime of this shim")]
