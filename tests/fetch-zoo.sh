#!/usr/bin/env bash
# Brings the servers of the zoo (tests/servers/zoo) into build/zoo: Debian's are unpacked, those of PyPI, npm, Maven and
# Go go into folders of their own. Nothing is installed: no service, no user, no file outside of the clone. What is
# there is left alone. What cannot be had is named at the end, with the reason, and the exit code is 3: the tests of
# that server fail, all others run.
#
#     tests/fetch-zoo.sh [PART...]        parts: debian python node java s3proxy go; default: all
set -euo pipefail

home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
zoo=$home/build/zoo
recipes=$home/tests/servers/zoo
declare -A binaries=([proftpd-core]=usr/sbin/proftpd [proftpd-mod-crypto]=usr/lib/proftpd/mod_sftp.so
    [pure-ftpd]=usr/sbin/pure-ftpd [inetutils-ftpd]=usr/sbin/ftpd)
declare -A recipe_of=([python]=requirements.txt [node]=node/package.json [java]=java/pom.xml
    [s3proxy]=s3proxy/pom.xml [go]=go/programs)

is_made() {
    local recipe=$recipes/${recipe_of[$1]}
    [[ -r $zoo/$1/.made-by && $(<"$zoo/$1/.made-by") == "$(cksum <"$recipe")" ]]
}

has() {
    local binary
    if [[ $1 != debian ]]; then
        is_made "$1"
        return
    fi
    for binary in "${binaries[@]}"; do
        [[ -e $zoo/root/$binary ]] || return 1
    done
}

parts=()
(($#)) || set -- debian python node java s3proxy go
for part in "$@"; do
    if [[ $part != debian && -z ${recipe_of[$part]:-} ]]; then
        echo "fetch-zoo: no such part: $part" >&2
        exit 2
    fi
    has "$part" || parts+=("$part")
done
((${#parts[@]})) || exit 0
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
    local name
    for name in "${!binaries[@]}"; do
        [[ -e $zoo/root/${binaries[$name]} ]] || debian_package "$name"
    done
}

debian_package() {
    local name=$1
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        lacks "$name" "this machine has no apt-get and dpkg-deb to unpack it with"
    elif ! unpack "$name" && ! { [[ $EUID -eq 0 ]] && try apt-get -q update && unpack "$name"; }; then
        lacks "$name" "apt-get could not download it: $(reason)"
    elif [[ ! -e $zoo/root/${binaries[$name]} ]]; then
        lacks "$name" "the package holds no ${binaries[$name]}"
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

# --- PyPI, npm, Maven, Go: a folder each, made anew when its recipe changes

keep() {
    local part=$1
    cksum <"$recipes/${recipe_of[$part]}" >"$work/$part/.made-by"
    chmod 755 "$work/$part"
    rm -rf "${zoo:?}/$part"
    mv -T "$work/$part" "$zoo/$part"
}

python() {
    local -a install=(-m pip install --disable-pip-version-check -q)
    if try "$home/.venv/bin/python" "${install[@]}" --target "$work/python" -r "$recipes/requirements.txt"; then
        keep python
    else
        lacks "aioftp, Twisted" "pip could not install them: $(reason)"
    fi
}

node() {
    local -a quiet=(--ignore-scripts --no-package-lock --no-audit --no-fund --silent)
    if ! type -P node >/dev/null || ! type -P npm >/dev/null; then
        lacks "ftp-srv" "it needs node and npm; please install them (Debian: apt-get install nodejs npm)"
        return
    fi
    mkdir "$work/node"
    cp "$recipes/node/package.json" "$work/node"
    if try npm install --prefix "$work/node" "${quiet[@]}"; then
        keep node
    else
        lacks "ftp-srv" "npm could not install it: $(reason)"
    fi
}

java() {
    jars java "Apache FtpServer"
}

s3proxy() {
    jars s3proxy s3proxy
}

jars() {
    local part=$1 name=$2 program
    if ! type -P mvn >/dev/null || ! program=$("$home/kafka/bin/kafka-run.sh" --print-java 2>/dev/null); then
        lacks "$name" "it needs Maven and Java 17 or newer; run: make bootstrap"
        return
    fi
    if JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$program")")") \
        try mvn -q -B -f "$recipes/$part/pom.xml" dependency:copy-dependencies -DoutputDirectory="$work/$part"; then
        keep "$part"
    else
        lacks "$name" "Maven could not fetch it: $(reason)"
    fi
}

# --- Go: programs are built from their modules, with caches that go away

go() {
    local program
    if ! type -P go >/dev/null; then
        lacks "versitygw, gofakes3" "they need Go 1.24 or newer to be built; please install it"
        return
    fi
    mkdir "$work/go"
    while read -r program; do
        if ! GOBIN=$work/go/bin GOPATH=$work/path GOCACHE=$work/cache GOFLAGS=-modcacherw try "$(type -P go)" install "$program"; then
            lacks "$program" "Go could not build it: $(reason)"
            return
        fi
    done <"$recipes/go/programs"
    keep go
}

# Another clone's turn, or another process of this one, may have brought it meanwhile.
for part in "${parts[@]}"; do
    has "$part" || "$part"
done
if ((${#not_had[@]})); then
    printf 'fetch-zoo: could not bring %s\n' "${not_had[@]}" >&2
    exit 3
fi
