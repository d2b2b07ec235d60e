"""The wheel and the source distribution: the files that an installation has.

``packaging/python/check`` installs it with pip, pipx and uv, for which it needs the index.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from shim.version import VERSION
from shimctl.cli.shared import shared_files

ROOT = Path(__file__).parents[1]
PARTS = ("shim", "shimctl", "examples", "pyproject.toml", "setup.py", "README.md", "LICENSE")
# Without an isolated environment, so that nothing is fetched.
BUILD = """
import sys
from setuptools import build_meta
kind, directory = sys.argv[1:]
print(getattr(build_meta, f"build_{kind}")(directory))
"""
EXAMPLES = "share/doc/trio-shim/examples"


def built(kind: str, source: Path, output: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of ``source``; the build writes into the source, too."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, kind, str(output)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    return built("sdist", source, source)


def test_a_wheel_of_the_source_distribution_has_every_file_for_a_user(
    sdist: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    with zipfile.ZipFile(built("wheel", tmp_path / f"trio_shim-{VERSION}", tmp_path)) as wheel:
        prefix = f"trio_shim-{VERSION}.data/data/"
        data = {
            name.removeprefix(prefix): wheel.read(name).decode()
            for name in wheel.namelist()
            if name.startswith(prefix)
        }
        scripts = wheel.read(f"trio_shim-{VERSION}.dist-info/entry_points.txt").decode()
    shared = {f"share/{name}": text for name, text in shared_files().items()}
    assert {name: text for name, text in data.items() if name in shared} == shared
    examples = {name: text for name, text in data.items() if name.startswith(EXAMPLES)}
    assert data.keys() == shared.keys() | examples.keys()
    for name in ("trio-shim.toml", "containerd/config-v3.toml", "docker/daemon.json"):
        assert examples[f"{EXAMPLES}/{name}"] == (ROOT / "examples" / name).read_text()
    assert "containerd-shim-trio-v2 = shim.start.launcher:main" in scripts
    assert "shimctl = shimctl.cli:main" in scripts


def test_the_pages_of_a_build_need_click_alone() -> None:
    code = "import sys, shimctl.cli.shared; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    others = {"trio", "grpclib", "google", "psutil", "yaml"}
    assert not others & set(done.stdout.split())
