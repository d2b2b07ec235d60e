#!/usr/bin/env bash
# Runs containers with the shim and without containerd: on a Debian 12 machine, as root.
# Installs missing packages, shows each command, cleans up, and can be run again.
#
# TRIO_SHIM_VENV: the Python environment (default: .cache/quickstart in the checkout);
#                 nothing is installed in one that has shimctl
# PYTHON:         the interpreter that makes the environment (python3, 3.11 or later)
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
id=demo
. examples/prepare.sh

# --- attached: prints the output, and exits with the container's exit code ---
configure sh -c 'echo "hello from a container, as pid $$"; exit 7'
code=0
show shimctl run "$bundle" || code=$?
echo "(exit code $code)"
[ "$code" = 7 ]

# --- detached: the container keeps running after the command has returned ----
configure sh -c 'trap "exit 3" TERM; while :; do sleep 0.1; done'
show shimctl run --detach --id "$id" "$bundle"
show shimctl ps
show shimctl exec "$id" sh -c 'echo "in the same container:"; ps'
show shimctl kill "$id"
code=0
show shimctl wait "$id" || code=$?
echo "(exit code $code)"
[ "$code" = 3 ]
show shimctl delete "$id"

echo
echo "Done.  Next: README.md shows how to use the shim as a runtime of containerd."
