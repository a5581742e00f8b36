#!/usr/bin/env bash
# Brings the FTP servers of the zoo (tests/servers/zoo) into build/zoo: Debian's are unpacked, those of PyPI, npm and
# Maven go into folders of their own. Nothing is installed: no service, no user, no file outside of the clone. What is
# there is left alone. What cannot be had is named at the end, with the reason, and the exit code is 3: the tests of
# that server fail, all others run.
#
#     tests/fetch-zoo.sh [PART...]        parts: debian python node java; default: all
set -euo pipefail

home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
zoo=$home/build/zoo
recipes=$home/tests/servers/zoo
parts=("$@")
((${#parts[@]})) || parts=(debian python node java)
mkdir -p "$zoo" "${HOME:=/root}/.cache/etl-file-sync"

# Clones take turns, as in docker/bootstrap.sh: package managers and their caches are shared.
if command -v flock >/dev/null; then
    exec 9>>"$HOME/.cache/etl-file-sync/bootstrap.lock"
    flock 9
fi
work=$(mktemp -d "$zoo/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
not_had=()

lacks() {
    not_had+=("$1: $2")
}

# Run quietly in a folder of its own; the last line of what was printed is the reason of a failure.
try() {
    (cd "$work" && "$@") >"$work/log" 2>&1 </dev/null 9>&-
}

reason() {
    grep -v '^[[:space:]]*$' "$work/log" | tail -n 1
}

# --- Debian: the package itself, and what it needs that this machine lacks

debian() {
    local name=$1 binary=$2
    [[ ! -x $zoo/root/$binary ]] || return 0
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        lacks "$name" "this machine has no apt-get and dpkg-deb to unpack it with"
        return 0
    fi
    if ! unpack "$name" && ! { [[ $EUID -eq 0 ]] && try apt-get -q update && unpack "$name"; }; then
        lacks "$name" "apt-get could not download it: $(reason)"
    elif [[ ! -x $zoo/root/$binary ]]; then
        lacks "$name" "the package holds no $binary"
    fi
}

unpack() {
    local name=$1 package
    local -a packages
    mapfile -t packages < <(apt-get -s -q --no-install-recommends install "$name" 2>/dev/null 9>&- |
        sed -n 's/^Inst \([^ ]*\).*/\1/p')
    packages+=("$name")
    rm -f "$work"/*.deb
    try apt-get -q download "${packages[@]}" || return 1
    mkdir -p "$zoo/root"
    for package in "$work"/*.deb; do
        dpkg-deb -x "$package" "$zoo/root"
    done
}

# --- PyPI, npm, Maven: a folder each, made anew when its recipe changes

is_made() {
    [[ -r $1/.made-by && $(<"$1/.made-by") == "$(cksum <"$2")" ]]
}

keep() {
    local fresh=$1 target=$2 recipe=$3
    cksum <"$recipe" >"$fresh/.made-by"
    chmod 755 "$fresh"
    rm -rf "$target"
    mv -T "$fresh" "$target"
}

python() {
    local recipe=$recipes/requirements.txt fresh=$work/python
    is_made "$zoo/python" "$recipe" && return
    if try "$home/.venv/bin/python" -m pip install --disable-pip-version-check -q --target "$fresh" -r "$recipe"; then
        keep "$fresh" "$zoo/python" "$recipe"
    else
        lacks "aioftp, Twisted" "pip could not install them: $(reason)"
    fi
}

node() {
    local recipe=$recipes/node/package.json fresh=$work/node
    is_made "$zoo/node" "$recipe" && return
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        lacks "ftp-srv" "it needs node and npm; please install them (Debian: apt-get install nodejs npm)"
        return
    fi
    mkdir "$fresh"
    cp "$recipe" "$fresh"
    if try npm install --prefix "$fresh" --ignore-scripts --no-package-lock --no-audit --no-fund --silent; then
        keep "$fresh" "$zoo/node" "$recipe"
    else
        lacks "ftp-srv" "npm could not install it: $(reason)"
    fi
}

java() {
    local recipe=$recipes/java/pom.xml fresh=$work/java java
    is_made "$zoo/java" "$recipe" && return
    if ! command -v mvn >/dev/null || ! java=$("$home/kafka/bin/kafka-run.sh" --print-java 2>/dev/null); then
        lacks "Apache FtpServer" "it needs Maven and Java 17 or newer; run: make bootstrap"
        return
    fi
    if JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$java")")") \
        try mvn -q -B -f "$recipe" dependency:copy-dependencies -DoutputDirectory="$fresh"; then
        keep "$fresh" "$zoo/java" "$recipe"
    else
        lacks "Apache FtpServer" "Maven could not fetch it: $(reason)"
    fi
}

for part in "${parts[@]}"; do
    case $part in
        debian)
            debian proftpd-core usr/sbin/proftpd
            debian pure-ftpd usr/sbin/pure-ftpd
            debian inetutils-ftpd usr/sbin/ftpd
            ;;
        python | node | java) "$part" ;;
        *)
            echo "fetch-zoo: no such part: $part" >&2
            exit 2
            ;;
    esac
done
if ((${#not_had[@]})); then
    printf 'fetch-zoo: could not bring %s\n' "${not_had[@]}" >&2
    exit 3
fi
