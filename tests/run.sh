#!/usr/bin/env bash
# The whole test suite, on a Debian machine as root.  Installs what is missing,
# starts no system service, and can be run again.
#
#   tests/run.sh                          every ring, in isolated workers (tests/worker)
#   tests/run.sh --fast                   the rings without processes, lint and types
#   tests/run.sh tests/ttrpc -x           one pytest with these arguments, no workers
#
#   --all-managers    every release of each manager, not the oldest and the newest alone
#   --python VERSION  with this Python, such as 3.13, in an environment of its own; "newest"
#                     is the newest of this machine beside the default one, without which
#                     nothing is run
#   --workers N       so many workers side by side; 0 is one pytest without workers.  "auto",
#                     the default unless tests are named, is three a processor, or one where
#                     workers cannot be isolated from each other.
#   --busy, --idle    only the tests that may run beside other processes; only the others,
#                     which are marked "timed" or "host"
#   -m EXPRESSION     as pytest's, in addition to what run.sh selects
#   --setup-only      only install; print the environment's directory
#   The remaining arguments are pytest's.
#
# TRIO_SHIM_VENV: where the environment goes (.cache/venv below the checkout)
# PYTHON:         the interpreter it is made with (python3, 3.11 or later)
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
cache=$PWD/.cache
venv=${TRIO_SHIM_VENV:-$cache/venv}
python=${PYTHON:-python3}
setup_only='' fast='' only='' workers='' fetching='' markers='' arguments=()
mkdir -p "$cache"

# The interpreter of a version: on PATH, or among pyenv's.
find_python() {
    if "python$1" --version >/dev/null 2>&1; then command -v "python$1"; return; fi
    command -v pyenv >/dev/null && find "$(pyenv root)/versions" -path "*/$1.*/bin/python$1" | sort -V | tail -1 | grep .
}

# The version of the newest Python beside the default one.
newest_python() {
    local version default
    default=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    for version in 3.{19..11}; do
        [ "$version" = "$default" ] || ! find_python "$version" >/dev/null || { echo "$version"; return; }
    done
    return 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --setup-only) setup_only=1 ;;
    --fast) fast=1 ;;
    --all-managers) export TRIO_SHIM_TEST_MANAGERS=all ;;
    --python)
        [ "$2" != newest ] || set -- "$1" "$(newest_python)" "${@:3}"
        [ -n "$2" ] || { echo "== no other Python here: nothing is run" >&2; exit 0; }
        python=$(find_python "$2") || { echo "$0: there is no Python $2 here" >&2; exit 1; }
        venv=$cache/venv-$2
        shift
        ;;
    --workers) workers=$2; shift ;;
    --busy | --idle) only=$1 ;;
    # pytest uses the last -m alone, so this one and those of the phases below are joined.
    -m) markers=$2; shift ;;
    *) arguments+=("$1") ;;
    esac
    shift
done

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
    # "compat" puts the checkout into a .pth file; the default is an import hook, which doubles
    # the start of each Python that the tests run.
    retry "$venv/bin/pip" install -qq --disable-pip-version-check --config-settings editable_mode=compat \
        -e '.[dev]' >&2
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
        umoci skopeo tmux bash zsh fish e2fsprogs erofs-utils fuse3 fuse-overlayfs patchelf
    make_criu
    tests/managers/fetch.sh &
    fetching=$!
fi
make_venv  # while the managers are fetched
[ -z "$fetching" ] || wait "$fetching" ||
    step "no other managers: their share of tests/e2e, tests/docker and tests/cri will be skipped"
# Without bytecode each start of an interpreter would compile everything again.
unset PYTHONDONTWRITEBYTECODE
export PATH
if [ -n "$setup_only" ]; then
    echo "$venv"
    exit
fi
PATH=$venv/bin:$PATH

# The options of a run in so many workers.  pytest-xdist splits the command at spaces, so the
# checkout's path may not contain one.
in_workers() {
    options=(--dist loadscope
        --tx "$1*popen//python=$PWD/tests/worker $venv/bin/python")
}

# The rings that start no process of ours, beside the checks that read the code.
run_fast() {
    local jobs=() job failed=0 log=$cache/fast count=$((2 * $(nproc))) options=()
    mkdir -p "$log"
    in_workers "$count"
    tests/worker --check || options=(-n "$count" --dist loadscope)
    check() {
        step "$*"
        "$@" >"$log/$1-$2" 2>&1 || { step "failed: $*"; cat "$log/$1-$2" >&2; return 1; }
    }
    (check ruff format --check && check ruff check . && check mypy --strict shim shimctl tests examples/minid) &
    jobs+=($!)
    (check pytest -q "${options[@]}" -m "not e2e and not slow and not timed and not host${markers:+ and ($markers)}" "${fast_rings[@]}") &
    jobs+=($!)
    for job in "${jobs[@]}"; do
        wait "$job" || failed=1
    done
    [ $failed = 1 ] || step "all passed"
    return $failed
}
fast_rings=(tests/cgroup tests/container tests/events tests/linux tests/runc tests/stdio/*.py tests/ttrpc tests/test_*.py)
if [ -n "$fast" ]; then
    run_fast
    exit
fi

# A run that names tests is one process, as a debugger wants it.
named=''
for argument in "${arguments[@]}"; do
    [ ! -e "${argument%%::*}" ] || named=1
done
[ -n "$workers" ] || { [ -n "$named" ] && workers=0 || workers=auto; }
if [ "$workers" = auto ]; then
    # A test waits for more than half of its time, for processes and for limits of time.
    workers=$((3 * $(nproc)))
fi
if [ "$workers" -gt 1 ] && ! tests/worker --check; then
    step "workers cannot be isolated from each other here: one worker"
    workers=1
    unshare --mount --pid --fork --mount-proc true 2>/dev/null || workers=0
fi

failed=0
# run_tests PHASE OPTIONS...: PHASE is an expression of markers, empty for all tests.
run_tests() {
    local status=0 selected=${1:+($1)}${1:+${markers:+ and }}${markers:+($markers)} phase=$1
    shift
    [ -z "$selected" ] || set -- -m "$selected" "$@"
    step "pytest $*"
    "$venv/bin/python" -m pytest "$@" "${arguments[@]}" || status=$?
    # 5: no test is selected, as with a phase that the named tests do not have.
    [ $status = 0 ] || { [ $status = 5 ] && [ -n "$phase" ]; } || failed=$status
}

# The files with a marker: pytest imports all others in vain, which takes ten seconds.
files_with() {
    [ -n "$named" ] || grep -rl --include='test_*.py' "mark\.$1\b" tests
}

SECONDS=0
if [ "$workers" = 0 ]; then
    run_tests ""
else
    if [ "$only" != --idle ]; then
        in_workers "$workers"
        run_tests "not host and not timed" --durations=10 "${options[@]}"
    fi
    if [ "$only" != --busy ]; then
        in_workers 1
        step "the tests that measure time: they need an idle machine"
        # shellcheck disable=SC2046  # one word a file
        run_tests timed "${options[@]}" $(files_with timed)
        step "the tests that need the host's own pid namespace"
        # shellcheck disable=SC2046
        run_tests host $(files_with host)
    fi
    step "all rings in $((SECONDS / 60)) min $((SECONDS % 60)) s"
fi
exit $failed
