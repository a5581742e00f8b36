#!/usr/bin/env bash
# Unpacks Debian's rclone, lftp and curl into build/peers/root, those that this machine lacks. Nothing is installed. What
# cannot be had is named in one line each, and its column of the benchmark stays empty. Run again: nothing is done.
set -euo pipefail

home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
target=$home/build/peers/root
mkdir -p "$target"

fetch() {
    local name=$1 work
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "fetch-peers: no $name: this machine has no apt-get and dpkg-deb to unpack it with" >&2
        return
    fi
    work=$(mktemp -d "$home/build/peers/fetch.XXXXXX")
    if (cd "$work" && { apt-get -q download "$name" || { apt-get -q update && apt-get -q download "$name"; }; }) \
        >"$work/log" 2>&1; then
        dpkg-deb -x "$work"/*.deb "$target"
    else
        echo "fetch-peers: no $name: apt-get could not download it: $(tail -n 1 "$work/log")" >&2
    fi
    rm -rf "$work"
}

for name in rclone lftp curl; do
    command -v "$name" >/dev/null && continue
    [[ -x $target/usr/bin/$name ]] || fetch "$name"
    if [[ -x $target/usr/bin/$name ]] && lacking=$(ldd "$target/usr/bin/$name" 2>/dev/null | grep 'not found'); then
        echo "fetch-peers: no $name: it needs ${lacking//$'\n'/,}" >&2
        rm -f "$target/usr/bin/$name"
    fi
done
