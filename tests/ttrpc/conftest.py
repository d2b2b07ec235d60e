"""The stubs that grpclib generates."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def grpclib_stubs(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return what grpclib's own plugin makes of task.proto, for grpclib's own client."""
    out = tmp_path_factory.mktemp("grpclib")
    plugin = Path(sys.executable).parent / "protoc-gen-grpclib_python"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}"]
    options = [f"--plugin={plugin}", f"--grpclib_python_out={out}"]
    subprocess.run([*protoc, *options, "shim/api/task.proto"], check=True, timeout=60)
    spec = importlib.util.spec_from_file_location("stubs", out / "shim/api/task_grpc.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
