#!/usr/bin/env bash
# Other Debian releases' containerd, unpacked below the cache and not installed: the
# managers that tests/e2e/test_managers.py runs.  Fetched once: 85 MB, half a minute.
#
#   tests/managers/fetch.sh [SUITE...]     (trixie sid: containerd 1.7 and 2)
#
# Then .cache/managers/SUITE/usr/bin has containerd and ctr.  They are Go programs that
# run on an older release; fetching again is removing that directory.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
cache=$PWD/.cache/managers
[ $# -gt 0 ] || set -- trixie sid

retry() {
    "$@" || { sleep 3; "$@"; } || { sleep 10; "$@"; }
}

# The Debian mirror that the machine itself uses; empty before its first `apt-get update`.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' \
        'Created-By: Packages' |
        awk '$2 !~ /[-\/]/ && $3 == "main" && $4 == "Debian" && !found { print found = $1 }'
}

fetch() {
    local suite=$1 work uri
    [ -x "$cache/$suite/usr/bin/ctr" ] && return
    uri=$(mirror)
    [ -n "$uri" ] || { retry apt-get -qq update >&2; uri=$(mirror); }
    [ -n "$uri" ] || { echo "no Debian mirror in the apt sources" >&2; return 1; }
    echo "== containerd of $suite" >&2
    work=$cache/$suite.new
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" \
        >"$work/sources.list"
    local apt=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache"
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
    retry apt-get "${apt[@]}" update >&2
    (cd "$work/cache" && retry apt-get "${apt[@]}" download containerd >&2)
    dpkg-deb -x "$work"/cache/containerd_*.deb "$work/root"
    "$work/root/usr/bin/containerd" --version >&2
    mv -T "$work/root" "$cache/$suite"
    rm -rf "$work"
}

for suite; do
    fetch "$suite"
done
