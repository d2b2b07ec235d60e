#!/usr/bin/env bash
# The whole test suite, on a Debian machine as root.  Installs what is missing,
# starts no system service, and can be run again.
#
#   tests/run.sh [pytest's arguments]     tests/run.sh tests/ttrpc -x
#   tests/run.sh --setup-only             only install; print the environment's directory
#
# TRIO_SHIM_VENV: where the environment goes (.cache/venv below the checkout)
# PYTHON:         the interpreter it is made with (python3, 3.11 or later)
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
cache=$PWD/.cache
venv=${TRIO_SHIM_VENV:-$cache/venv}
python=${PYTHON:-python3}
mkdir -p "$cache"

step() { echo "== $*" >&2; }

have() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

install_packages() {
    local missing=() package
    for package in "$@"; do
        have "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    step "apt: ${missing[*]}"
    apt-get -qq -o Acquire::Retries=3 update >&2
    # A new containerd is not to start: not by systemd (masked), not by invoke-rc.d (RUNLEVEL=1).
    # Under systemd it also stays disabled: `systemctl enable --now containerd` when you want it.
    local mask=() failed=0
    if [ -d /run/systemd/system ] && ! have containerd; then
        mask=(containerd.service)
        systemctl mask --runtime --quiet "${mask[@]}"
    fi
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o Acquire::Retries=3 \
        -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}" >>"$cache/apt.log" 2>&1 ||
        failed=1
    [ ${#mask[@]} -eq 0 ] || systemctl unmask --runtime --quiet "${mask[@]}"
    [ $failed = 0 ] || { tail -20 "$cache/apt.log" >&2; return 1; }
}

retry() {
    "$@" || { sleep 3; "$@"; } || { sleep 10; "$@"; }
}

make_venv() {
    local stamp=$venv/.stamp wanted
    wanted=$(sha256sum pyproject.toml; pwd; "$python" -c 'import sys; print(sys.version)')
    [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    step "venv: $venv"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "$python is older than 3.11; set PYTHON" >&2; return 1; }
    "$python" -m venv "$venv"
    retry "$venv/bin/pip" install -qq --disable-pip-version-check -e '.[dev]' >&2
    echo "$wanted" >"$stamp"
}

# Debian 12's criu does not work on newer kernels.  The next release's does, when
# it runs with that release's own libraries; nothing of it is installed.
make_criu() {
    local root=$cache/criu/root bin=$cache/criu/bin lists=$cache/criu/apt uri loader names
    if [ ! -x "$bin/criu" ]; then
        criu check >/dev/null 2>&1 && return
        step "criu: $(criu --version 2>/dev/null | head -1) cannot work on $(uname -r), fetching another"
        # The mirror that the machine itself uses.
        uri=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
            awk '$2 == "bookworm" && $3 == "main" { print $1; exit }')
        [ -n "$uri" ] || { echo "no mirror for bookworm in the apt sources" >&2; return; }
        mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial" "$root" "$bin"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri trixie main" \
            >"$lists/sources.list"
        local apt=(-qq -o "Dir::Etc::sourcelist=$lists/sources.list" -o Dir::Etc::sourceparts=-
            -o "Dir::State::Lists=$lists/lists" -o "Dir::Cache=$lists/cache"
            -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
        retry apt-get "${apt[@]}" update >&2
        names=$(apt-cache "${apt[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts \
            --no-breaks --no-replaces --no-enhances criu | grep -E '^(criu|lib)' | sort -u)
        # shellcheck disable=SC2086  # one word a package
        (cd "$lists/cache" && retry apt-get "${apt[@]}" download $names >&2)
        for deb in "$lists"/cache/*.deb; do
            dpkg-deb -x "$deb" "$root"
        done
        loader=$(find "$root" -name 'ld-linux*.so.*' | head -1)
        cat >"$bin/criu.new" <<WRAPPER
#!/bin/sh
exec $loader --library-path $(dirname "$(find "$root" -name libc.so.6 | head -1)") $root/usr/sbin/criu "\$@"
WRAPPER
        chmod +x "$bin/criu.new"
        "$bin/criu.new" check >/dev/null 2>&1 || { echo "this criu cannot work here either" >&2; return; }
        mv "$bin/criu.new" "$bin/criu"
        rm -rf "$lists"
    fi
    PATH=$bin:$PATH
}

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # criu locks the network of what it dumps with iptables.
    # umoci and skopeo make images and take them apart; the rest is what people sit in front of.
    install_packages containerd runc criu iptables busybox-static procps python3-venv ca-certificates \
        umoci skopeo tmux bash zsh fish
    make_criu
    tests/managers/fetch.sh || step "no other managers: their share of tests/e2e, tests/docker and tests/cri will be skipped"
fi
make_venv
# Without bytecode each start of an interpreter would compile everything again.
unset PYTHONDONTWRITEBYTECODE
export PATH
if [ "${1:-}" = --setup-only ]; then
    echo "$venv"
    exit
fi
step "pytest $*"
exec "$venv/bin/python" -m pytest "$@"
