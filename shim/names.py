"""Names that several modules share: of the runtime, of files, annotations, types and ids.

Sources: containerd pkg/shim (the executable of a runtime), pkg/identifiers (ids),
api/types/runc/options and the typeurl package (type URLs), containerd-shim-runc-v2
manager (group annotations).  Nothing is imported here that takes time.
"""

from __future__ import annotations

import re

RUNTIME = "io.containerd.trio.v2"
# The file name of RUNTIME's executable, by containerd's rule.
EXECUTABLE = "containerd-shim-trio-v2"

# The host's settings file, and the environment variable that names another file.
HOST_FILE = "/etc/trio-shim.toml"
HOST_FILE_VARIABLE = "TRIO_SHIM_CONFIG"
# The file in the directory of fork servers that lists the daemons they have given up.
GIVEN_UP = ".given-up"

# Why a daemon has no keeper of its files, unless a fork server has refused it.
NO_KEEPER = "no fork server runs"

# Annotations of a container that override the host file.
OUTPUT_POLICY = "io.trio-shim.output"
OUTPUT_LIMIT = "io.trio-shim.output-limit"
SHARE = "io.trio-shim.share"

# The annotation with the image of a container that shimctl created.
IMAGE = "io.trio-shim.image"

# Annotations that name the group of containers that share a daemon; the first one present counts.
GROUPS = (
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
)

# Type names of protobuf messages in an Any.
RUNC_OPTIONS = "containerd.runc.v1.Options"
GENERIC_OPTIONS = "runtimeoptions.v1.Options"
PROCESS_DETAILS = "containerd.runc.v1.ProcessDetails"
# Type URLs of JSON values in an Any: this and the name of the object, such as Process.
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/"
FEATURES = f"{SPEC}features/Features"
# This shim's own type: JSON, the reply to Stats for the empty id, see shim.counters.
COUNTERS = "io.trio-shim/Counters"

# This shim's own service: the requests of shimctl to a daemon, with JSON in an Any.
OWN_SERVICE = "io.trio_shim.v1.Daemon"
STATUS, MOVE = f"/{OWN_SERVICE}/Status", f"/{OWN_SERVICE}/Move"

# The longest id, in characters.
ID_MAX = 76
_ID = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


def type_name(type_url: str) -> str:
    """Return the full name of the type in an Any: the text after the last slash."""
    return type_url.rpartition("/")[2]


def is_id(text: str) -> bool:
    """Return whether ``text`` is a valid id of a container, an exec or a namespace.

    A valid id is also a valid file name.
    """
    return len(text) <= ID_MAX and _ID.fullmatch(text) is not None
