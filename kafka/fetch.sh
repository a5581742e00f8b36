#!/usr/bin/env bash
# Fetches the jars of pom.xml into the folder KAFKA_LIBS, and takes only what libs.lock names, byte for byte. Maven
# checks what it is told by where the jars come from; the list is ours. `--lock` makes it anew (`make lock`).
#
# A line of libs.lock: SHA-256, and GROUP:ARTIFACT:VERSION of ARTIFACT-VERSION.jar.
set -euo pipefail

folder=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
lock=$folder/libs.lock
goal() { mvn -q -B -Dstyle.color=never --strict-checksums -f "$folder/pom.xml" "$@"; }

if [[ ${1:-} == --lock ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    KAFKA_LIBS=$work/libs goal dependency:copy-dependencies dependency:list -DoutputFile="$work/list"
    sed -nE 's/^ +([^: ]+):([^: ]+):jar:([^: ]+):(compile|runtime).*/\1:\2:\3/p' "$work/list" | LC_ALL=C sort -u |
        while IFS=: read -r group artifact version; do
            sum=$(sha256sum "$work/libs/$artifact-$version.jar")
            echo "${sum%% *}  $group:$artifact:$version"
        done >"$work/lock"
    mv "$work/lock" "$lock"
    exit 0
fi

libs=${KAFKA_LIBS:?folder for the jars}
goal dependency:copy-dependencies
sed -E 's/^([0-9a-f]{64})  [^:]+:([^:]+):([^:]+)$/\1  \2-\3.jar/' "$lock" | (cd "$libs" && sha256sum --check --strict --quiet) || {
    echo "fetch: a jar in $libs is not the one that $lock names" >&2
    exit 1
}
found=("$libs"/*.jar)
[[ ${#found[@]} -eq $(wc -l <"$lock") ]] || {
    echo "fetch: $libs holds ${#found[@]} jars, $lock names $(wc -l <"$lock")" >&2
    exit 1
}
