"""examples/crio: the rules CRI-O has for a runtime, which it would check when it starts.

There is no package of CRI-O, so they are below.

Source: cri-o/cri-o pkg/config/config.go, RuntimeHandler and its Validate; the use of each key,
internal/oci/runtime_vm.go.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.container.options import Options
from shim.hostfile import Output
from tests.examples.files import EXECUTABLE, HANDLER, OPTIONS_FILE, text_of, toml_of

# The keys of RuntimeHandler, by the type of their value.
_KEYS: dict[str, type] = {
    "runtime_config_path": str,
    "runtime_path": str,
    "runtime_type": str,
    "runtime_root": str,
    "privileged_without_host_devices": bool,
    "allowed_annotations": list,
    "monitor_path": str,
    "monitor_cgroup": str,
    "monitor_env": list,
    "monitor_exec_cgroup": str,
    "platform_runtime_paths": dict,
    "runtime_pull_image": bool,
    "container_min_memory": str,
    "no_sync_log": bool,
    "inherit_default_runtime": bool,
    "default_annotations": dict,
    "stream_websockets": bool,
    "exec_cpu_affinity": str,
    "seccomp_profile": str,
    "container_create_timeout": int,
}
# RuntimeTypeVMBinaryPattern, for the last part of runtime_path.
_VM_NAME = re.compile(r"containerd-shim-[a-zA-Z0-9\-+]+")
# Keys for the type "oci" or "pod", which are an error or have no effect for "vm".
_NOT_OF_VM = {"no_sync_log", "stream_websockets", "monitor_path", "monitor_cgroup", "monitor_env"}


def mistakes(handler: dict[str, Any]) -> list[str]:
    """Return what CRI-O would not start with, or pass over in silence."""
    found = [f"{key} is not known" for key in handler if key not in _KEYS]
    found += [
        f"{key} is not a {_KEYS[key].__name__}"
        for key, value in handler.items()
        if key in _KEYS and type(value) is not _KEYS[key]
    ]
    if handler.get("runtime_type", "") not in {"", "oci", "vm", "pod"}:
        found.append("runtime_type")
    if handler.get("runtime_type") != "vm":
        return [*found, "not a runtime that is a shim"]
    if not _VM_NAME.fullmatch(Path(str(handler.get("runtime_path", ""))).name):
        found.append("runtime_path")
    # The path of the fifos' directory contains it.
    if not str(handler.get("runtime_root", "")).startswith("/"):
        found.append("runtime_root")
    # Only names of CRI-O's experiments may be in it.
    if handler.get("allowed_annotations"):
        found.append("allowed_annotations")
    return found + sorted(_NOT_OF_VM & handler.keys())


def handler_of(*, choices: bool = False) -> dict[str, Any]:
    told = toml_of("crio/10-trio.conf", choices=choices)
    assert told.keys() == {"crio"}
    assert told["crio"].keys() == {"runtime"}
    assert told["crio"]["runtime"].keys() == {"runtimes"}
    assert told["crio"]["runtime"]["runtimes"].keys() == {HANDLER}
    handler = told["crio"]["runtime"]["runtimes"][HANDLER]
    assert isinstance(handler, dict)
    return handler


@pytest.mark.parametrize("choices", [False, True])
def test_cri_o_would_take_the_drop_in(choices: bool) -> None:
    assert mistakes(handler_of(choices=choices)) == []


def test_it_names_the_installed_shim_and_the_file_of_its_options() -> None:
    handler = handler_of()
    assert handler["runtime_path"] == EXECUTABLE
    assert handler["runtime_config_path"] == OPTIONS_FILE
    # CRI-O's cgroup manager is systemd by default.
    assert Options.from_toml(text_of("options.toml")).systemd_cgroup


def test_a_policy_for_all_pods_is_there_to_choose() -> None:
    assert "default_annotations" not in handler_of()
    annotations = handler_of(choices=True)["default_annotations"]
    assert Output().annotated(annotations).policy == "spool"


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        ({"runtime_tpye": "vm"}, "runtime_tpye is not known"),
        ({"runtime_type": "shim"}, "runtime_type"),
        ({"runtime_type": "oci"}, "not a runtime that is a shim"),
        ({"runtime_path": "/usr/local/bin/trio-shim"}, "runtime_path"),
        ({"runtime_path": "/usr/local/bin/containerd-shim-trio_v2"}, "runtime_path"),
        ({"runtime_root": "run/trio"}, "runtime_root"),
        ({"runtime_root": 1}, "runtime_root is not a str"),
        ({"allowed_annotations": ["io.trio-shim.output"]}, "allowed_annotations"),
        ({"no_sync_log": True}, "no_sync_log"),
    ],
)
def test_the_check_sees_what_cri_o_would(change: dict[str, Any], mistake: str) -> None:
    assert mistake in mistakes(handler_of() | change)


@given(st.text(alphabet="azAZ09-+", min_size=1, max_size=20))
def test_any_name_of_that_form_would_do(suffix: str) -> None:
    assert not mistakes(handler_of() | {"runtime_path": f"/opt/containerd-shim-{suffix}"})
