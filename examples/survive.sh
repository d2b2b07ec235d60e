#!/usr/bin/env bash
# Kills the shim of a running container ten times, and upgrades it once: the container runs
# on, no line of its output is missing, and `shimctl wait`, which began before, returns the
# true exit code.
# For a Debian 12 machine, as root; see quickstart.sh for the variables.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
id=survivor
. examples/prepare.sh

# The setting of /etc/trio-shim.toml, for this script only.
export TRIO_SHIM_CONFIG=$bundle/trio-shim.toml
echo 'survive = true' >"$TRIO_SHIM_CONFIG"
# A shim that dies three times within a minute is given up; here there is no limit.
export TRIO_SHIM_DEATHS=0
# The fork server keeps the files of the shims.
export TRIO_SHIM_FORKSERVER=on

shim_pid() { shimctl ps -a -o json | "$venv/bin/python" -c '
import json, sys
print(next(row["shim_pid"] for row in json.load(sys.stdin) if row["id"] == sys.argv[1]))' "$id"; }

configure sh -c 'trap "exit 7" TERM; n=0; while :; do n=$((n + 1)); echo $n; usleep 1000; done'
show shimctl run --detach --id "$id" "$bundle"
shimctl wait "$id" &
waiting=$!

for kill in 1 2 3 4 5 6 7 8 9 10; do
    pid=$(shim_pid)
    [ "$pid" -gt 1 ] # 0: the shim is dead
    show kill -9 "$pid"
    sleep 0.5
done
echo "(the eleventh shim has the pid $(shim_pid))"

# An upgrade replaces it by the installed version, which here is the same one.
show shimctl upgrade --force "$id"

show shimctl kill "$id"
code=0
wait "$waiting" || code=$?
echo "(shimctl wait returned $code)"
[ "$code" = 7 ]

shimctl logs "$id" >"$bundle/lines"
last=$(tail -n 1 "$bundle/lines")
seq "$last" | cmp - "$bundle/lines"
echo "(the container counted to $last, and no number is missing)"
show shimctl delete "$id"
