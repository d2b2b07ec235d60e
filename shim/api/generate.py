"""Generate the Python modules of the .proto files, or check that they are current.

    python -m shim.api.generate [--check]

protoc (grpcio-tools) generates the messages.  grpclib's plugin generates the stubs and
service bases, with this project's client and server modules in the place of grpclib's.
These load neither asyncio nor h2 nor trio, so that one set of stubs serves every channel.

Run from the source tree; needs the ``dev`` dependencies.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The file each module is generated from, and whether it has services.
SOURCES = {
    "shim/ttrpc/wire.proto": False,
    "shim/api/bootstrap.proto": False,
    "shim/api/cgroups_v1.proto": False,
    "shim/api/cgroups_v2.proto": False,
    "shim/api/containerevents.proto": False,
    "shim/api/containers.proto": False,
    "shim/api/envelope.proto": False,
    "shim/api/events.proto": False,
    "shim/api/forward.proto": True,
    "shim/api/introspection.proto": False,
    "shim/api/mount.proto": False,
    "shim/api/options.proto": False,
    "shim/api/process.proto": False,
    "shim/api/runtimeoptions.proto": False,
    "shim/api/subscribe.proto": False,
    "shim/api/task.proto": True,
}

# grpclib's plugin writes the names of the modules its globals hold.
_PLUGIN = """\
#!{python}
import types
from grpclib.plugin import main as plugin
real = plugin.client
plugin.client = types.SimpleNamespace(
    __name__="shim.ttrpc.calls", Channel=real.Channel,
    UnaryUnaryMethod=real.UnaryUnaryMethod, UnaryStreamMethod=real.UnaryStreamMethod,
    StreamUnaryMethod=real.StreamUnaryMethod, StreamStreamMethod=real.StreamStreamMethod)
plugin.server = types.SimpleNamespace(__name__="shim.ttrpc.services", Stream=plugin.server.Stream)
plugin.main()
"""


def generate(out: Path) -> list[Path]:
    """Write every generated module below ``out``; return their paths relative to it.

    :raises subprocess.CalledProcessError: protoc rejected a file; its stderr has the reason.
    """
    with tempfile.TemporaryDirectory() as scratch:
        plugin = Path(scratch) / "protoc-gen-ttrpc"
        plugin.write_text(_PLUGIN.format(python=sys.executable))
        plugin.chmod(0o755)
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}"]
        messages = [f"--python_out={out}", f"--pyi_out={out}"]
        stubs = [f"--plugin=protoc-gen-ttrpc={plugin}", f"--ttrpc_out={out}"]
        served = [name for name, has_services in SOURCES.items() if has_services]
        subprocess.run([*protoc, *messages, *SOURCES], check=True, cwd=ROOT)
        subprocess.run([*protoc, *stubs, *served], check=True, cwd=ROOT)
    written = []
    for name, has_services in SOURCES.items():
        stem = name.removesuffix(".proto")
        written += [Path(f"{stem}_pb2.py"), Path(f"{stem}_pb2.pyi")]
        if has_services:
            written.append(Path(f"{stem}_grpc.py"))
    return written


def stale() -> list[Path]:
    """Return the generated files that are stale."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        return [
            path
            for path in generate(fresh)
            if not (ROOT / path).exists()
            or not filecmp.cmp(fresh / path, ROOT / path, shallow=False)
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    old = stale()
    for path in old:
        print(f"{path} is stale: run python -m shim.api.generate", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
