"""Stand between a containerd 2 and our shim so that both speak as a containerd 2.3 does.

2.3 writes BootstrapParams to the shim and reads a protobuf answer of version 3; 2.0 to
2.2 write the options alone, but take the same answer as JSON.  This program translates,
so that the calls that follow are those of version 3.  Every other action is passed on.

Names: containerd api/runtime/bootstrap/v1/bootstrap.proto, core/runtime/v2/binary.go.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from google.protobuf.any_pb2 import Any

from shim.api.bootstrap_pb2 import (
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_INFO,
    BootstrapParams,
    BootstrapResult,
    Extension,
)

_ROOT = Path(__file__).parent.parent.parent


def write_wrapper(directory: Path, name: str) -> None:
    """Put a translating ``name`` into ``directory``; the real one is beside the interpreter."""
    real = Path(sys.executable).parent / name
    words = [sys.executable, "-m", "tests.e2e.modern", str(real)]
    start = f'PYTHONPATH={shlex.quote(str(_ROOT))} exec {shlex.join(words)} "$@"'
    path = directory / name
    path.write_text(
        "#!/bin/sh\n"
        f'for last; do :; done\n[ "$last" != start ] || {start}\n'
        f'exec {shlex.quote(str(real))} "$@"\n'
    )
    path.chmod(0o755)


def params_of(argv: list[str], options: bytes) -> BootstrapParams:
    def flag(name: str) -> str:
        return argv[argv.index("-" + name) + 1]

    params = BootstrapParams(
        instance_id=flag("id"),
        namespace=flag("namespace"),
        log_level=LOG_LEVEL_DEBUG if "-debug" in argv else LOG_LEVEL_INFO,
        containerd_version="2.3.0",
        containerd_ttrpc_address=os.environ["TTRPC_ADDRESS"],
        containerd_grpc_address=flag("address"),
        containerd_binary=flag("publish-binary"),
    )
    if options:
        params.extensions.append(Extension(value=Any.FromString(options)))
    return params


def main(argv: list[str]) -> int:
    params = params_of(argv, sys.stdin.buffer.read())
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        argv, input=params.SerializeToString(), env=environ, capture_output=True, check=False
    )
    sys.stderr.buffer.write(done.stderr)
    if done.returncode == 0:
        result = BootstrapResult.FromString(done.stdout)
        assert result.version == 3, f"an answer of another version: {done.stdout!r}"
        answer = {
            "version": result.version,
            "address": result.address,
            "protocol": result.protocol,
        }
        sys.stdout.write(json.dumps(answer))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
