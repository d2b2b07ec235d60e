"""The attributes that containers may inherit from their manager, and how a process gets each."""

from __future__ import annotations

import sys

# The exit status of a process that cannot have the attribute on this machine.
UNSUPPORTED = 77

# Run by a process that becomes the manager's child that starts a shim.
PROLOGUE = f"""
import ctypes, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    if result == -1:
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        sys.exit({UNSUPPORTED})

def write(path, text):
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as exc:
        print(exc, file=sys.stderr)
        sys.exit({UNSUPPORTED})

"""
_EPILOGUE = "\nos.execvp(sys.argv[1], sys.argv[1:])"

# How a manager gets each attribute.  Another fork server serves it, or its children take
# the attribute over.
IDENTITY = {
    "personality": "check(libc.personality(0x40000))",  # ADDR_NO_RANDOMIZE, setarch -R
    "io-priority": "check(libc.syscall(251, 1, 0, 2 << 13 | 7))",  # ionice -c2 -n7
    "policy": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",  # chrt -b
    "coredump-filter": 'write("/proc/self/coredump_filter", "0x7f")',
    "timer-slack": "check(libc.prctl(29, 123456, 0, 0, 0))",
    "huge-pages": "check(libc.prctl(41, 1, 0, 0, 0))",
    "memory-policy": "check(libc.syscall(238, 3, ctypes.byref(ctypes.c_ulong(1)), 64))",
    "securebits": "check(libc.prctl(28, 4, 0, 0, 0))",  # SECBIT_NO_SETUID_FIXUP
    "mdwe": "check(libc.prctl(65, 1, 0, 0, 0))",
    "ksm": "check(libc.prctl(67, 1, 0, 0, 0))",
    "machine-checks": "check(libc.prctl(33, 1, 1, 0, 0))",
    "io-flusher": "check(libc.prctl(57, 1, 0, 0, 0))",
    "speculation": "check(libc.prctl(53, 0, 4, 0, 0))",
    "no-new-privileges": "check(libc.prctl(38, 1, 0, 0, 0))",
    "login": 'write("/proc/self/loginuid", "1000")',
}
TAKEN = {
    "nice": "os.nice(5)",
    "affinity": "os.sched_setaffinity(0, {0})",
    "limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 2000))",
    "oom-score": 'write("/proc/self/oom_score_adj", "77")',
}
# Set again by the runtime or by the shim.
RESET = {
    "hang-up": "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)",  # nohup
    "mask": "import signal; signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1})",
    "keyring": "check(libc.syscall(250, 1, None))",  # keyctl session
}
GROUPS = "os.setgroups([7, 8])"
# A filter that allows every call.
FILTER = """
code = ctypes.create_string_buffer(bytes.fromhex("060000000000ff7f"))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(1, ctypes.addressof(code))
check(libc.prctl(22, 2, ctypes.byref(program), 0, 0))
"""


def prefix(attribute: str) -> list[str]:
    """Return a command that gets ``attribute``, code from above, and executes its arguments."""
    return [sys.executable, "-c", f"{PROLOGUE}{attribute}{_EPILOGUE}"]
