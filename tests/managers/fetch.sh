#!/usr/bin/env bash
# The managers and runtimes of three Debian releases, unpacked below the cache and not
# installed: what tests/e2e, tests/cri and tests/docker run.  Fetched once: 200 MB
# over the net, 570 MB on disk, a minute.
#
#   tests/managers/fetch.sh [SUITE...]     (bookworm trixie sid)
#
#   trixie, sid    containerd 1.7 and 2 with ctr, dockerd 26 and 28 with docker
#   sid            runc 1.3 and crun, in usr/oci: no manager finds them unless it is told to
#   bookworm       dockerd 20.10 with docker, tini-static, crun, runsc
#
# Then .cache/managers/SUITE/usr has bin and sbin.  They run on an older release, being Go
# programs or bookworm's; sid's move on.  What is there stays: fetching again is removing
# that directory.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
cache=$PWD/.cache/managers
[ $# -gt 0 ] || set -- bookworm trixie sid

retry() {
    "$@" || { sleep 3; "$@"; } || { sleep 10; "$@"; }
}

packages() {
    case $1 in
    bookworm) echo docker.io libdevmapper1.02.1 tini crun libyajl2 runsc ;;
    sid) echo containerd docker.io docker-cli runc crun libseccomp2 libc6 libyajl2 libjson-c5 libcap2 \
        libsystemd0 libblake3-0 libtbb12 libgcc-s1 libstdc++6 ;;
    *) echo containerd docker.io docker-cli ;;
    esac
}

# What a suite's directory lacks.  One without a list is of the time when all was containerd.
missing() {
    local done=" $(cat "$cache/$1/packages" 2>/dev/null || true) " package
    [ "$done" != "  " ] || [ ! -x "$cache/$1/usr/bin/ctr" ] || done=" containerd "
    for package in $(packages "$1"); do
        [[ $done == *" $package "* ]] || echo "$package"
    done
}

# The Debian mirror that the machine itself uses; empty before its first `apt-get update`.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' \
        'Created-By: Packages' |
        awk '$2 !~ /[-\/]/ && $3 == "main" && $4 == "Debian" && !found { print found = $1 }'
}

# A program whose libraries the machine may not have finds them in its own suite.
wrap() {
    [ -e "$1" ] || return 0
    mkdir -p "$work/root/usr/real"
    mv "$1" "$work/root/usr/real/"
    cat >"$1" <<WRAPPER
#!/bin/sh
export LD_LIBRARY_PATH="$cache/$suite/usr/lib"
exec "$cache/$suite/usr/real/$(basename "$1")" "\$@"
WRAPPER
    chmod +x "$1"
}

# A program of a newer C library is told where its own loader and libraries are.  A wrapper
# would not do: a runtime executes itself again.
adapt() {
    [ -e "$1" ] || return 0
    command -v patchelf >/dev/null || { echo "no patchelf: apt-get install patchelf" >&2; return 1; }
    mkdir -p "$work/root/usr/oci"
    patchelf --set-interpreter "$(echo "$cache/$suite"/usr/lib/ld-linux-*.so.*)" \
        --set-rpath "$cache/$suite/usr/lib" --output "$work/root/usr/oci/$(basename "$1")" "$1"
    rm "$1"
}

# Both together: what a list names may be gone from the mirror an hour later.
download() {
    apt-get "${apt[@]}" update >&2 &&
        # shellcheck disable=SC2086  # one word a package
        (cd "$work/cache" && apt-get "${apt[@]}" download $wanted >&2)
}

fetch() {
    local suite=$1 work=$cache/$1.new uri wanted deb
    wanted=$(missing "$suite" | xargs)
    [ -n "$wanted" ] || return 0
    uri=$(mirror)
    [ -n "$uri" ] || { retry apt-get -qq update >&2; uri=$(mirror); }
    [ -n "$uri" ] || { echo "no Debian mirror in the apt sources" >&2; return 1; }
    echo "== of $suite: $wanted" >&2
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root" "$work/lib"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" \
        >"$work/sources.list"
    local apt=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache"
        -o Dir::State::status=/dev/null
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
    retry download
    for deb in "$work"/cache/*.deb; do
        dpkg-deb -x "$deb" "$work/root"
    done
    # The loader is among the libraries, and its link would take its place.
    rm -rf "$work/root/usr/lib64"
    # Programs and libraries, without what comes with them and is not run here.
    find "$work/root" -name '*.so.*' -exec mv -t "$work/lib" {} +
    rm -rf "$work/root/usr/lib" "$work/root/usr/share"
    find "$work/root/usr" \( -name docker-proxy -o -name dnet -o -name ovrouter \
        -o -name containerd-stress -o -name cli-plugins -o -name containerd-shim -o -name 'containerd-shim*v1' \) \
        -prune -exec rm -r {} +
    mv "$work/lib" "$work/root/usr/lib"
    if [ "$suite" = bookworm ]; then
        wrap "$work/root/usr/sbin/dockerd"
        wrap "$work/root/usr/bin/crun"
    fi
    mkdir -p "$cache/$suite"
    if [ "$suite" = sid ]; then
        mkdir -p "$cache/$suite/usr"
        cp -a --remove-destination "$work/root/usr/lib" -t "$cache/$suite/usr"
        adapt "$work/root/usr/bin/runc"
        adapt "$work/root/usr/bin/crun"
        rm -f "$work/root/usr/sbin/runc" "$work/root/usr/bin/crun-wasm"
    fi
    # Beside what is there, or over it: it may be running, so it is not written to.
    cp -a --remove-destination "$work/root/usr" "$cache/$suite/"
    echo "$(packages "$suite")" >"$cache/$suite/packages"
    rm -rf "$work"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
for suite; do
    fetch "$suite"
done
