# Sourced by the programs beside it, in the checkout, with the container's id in $id: installs
# missing packages, makes the bundle $bundle, and removes everything at the end.

venv=${TRIO_SHIM_VENV:-$PWD/.cache/quickstart}
python=${PYTHON:-python3}
# Without bytecode files each start of an interpreter would compile all modules again.
unset PYTHONDONTWRITEBYTECODE

[ "$(id -u)" = 0 ] || { echo "cannot run containers: runc needs root to make namespaces and cgroups; run this as root" >&2; exit 1; }

# --- packages ----------------------------------------------------------------
missing=()
for package in runc busybox-static python3-venv ca-certificates; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
        missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "Installing ${missing[*]}"
    apt-get -qq -o Acquire::Retries=3 update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 \
        install --no-install-recommends "${missing[@]}" >/dev/null
fi
if [ ! -x "$venv/bin/shimctl" ] || [ "$venv" -ot pyproject.toml ]; then
    if [ -z "${TRIO_SHIM_VENV:-}" ] || [ ! -x "$venv/bin/shimctl" ]; then
        echo "Installing this package into $venv"
        "$python" -m venv "$venv"
        "$venv/bin/pip" install -qq --disable-pip-version-check -e . ||
            { sleep 5; "$venv/bin/pip" install -qq --disable-pip-version-check -e .; }
        touch "$venv"
    fi
fi
PATH=$venv/bin:$PATH

# --- a bundle: a directory with a root filesystem and a config.json ----------
bundle=$(mktemp -d "/tmp/$(basename "$0" .sh).XXXXXX")
# Separate from the fork server of other shims on this machine.
export TRIO_SHIM_FORKSERVER_DIR=$bundle/forkserver

clean_up() {
    shimctl delete --force "$id" >/dev/null 2>&1 || true
    # The first shim started a fork server for later shims; this script starts no more.
    shimctl forkserver stop >/dev/null 2>&1 || true
    # Do not remove files through a mount that still exists.
    grep -q " $bundle/" /proc/self/mountinfo || rm -rf "$bundle"
}
trap clean_up EXIT

mkdir -p "$bundle"/rootfs/{bin,dev,etc,proc,root,sys,tmp}
cp /bin/busybox "$bundle/rootfs/bin/"
for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$bundle/rootfs/bin/$applet"
done
runc spec --bundle "$bundle"

configure() { # PROGRAM ARG...: set the container's command
    "$venv/bin/python" - "$bundle/config.json" "$@" <<'PYTHON'
import json, sys

path, *args = sys.argv[1:]
spec = json.load(open(path))
spec["process"] |= {"args": args, "terminal": False}
spec["process"].pop("rlimits", None)  # a host may not allow raising them
json.dump(spec, open(path, "w"), indent=2)
PYTHON
}

show() {
    echo
    echo "\$ $*"
    "$@"
}
