#!/usr/bin/env bash
# The one step of the image that installs packages of the operating system; knows apt and dnf.
#
#   packages.sh runtime   what the image runs with: Python, and ssh for servers of type sftp
#   packages.sh build     what only builds it: Maven, and a Java development kit to cut the runtime from
set -euo pipefail

first_of_apt() {
    local name
    for name in "$@"; do
        if [[ $(apt-cache policy "$name") == *"Candidate: "[0-9]* ]]; then
            echo "$name"
            return
        fi
    done
    echo "packages: none of $* is to be had" >&2
    return 1
}

what=${1:?runtime or build}
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    case $what in
        runtime)
            python=$(first_of_apt python3.12 python3.13 python3)
            packages=("$python" "$python-venv" ca-certificates openssh-client)
            ;;
        build) packages=("$(first_of_apt openjdk-21-jdk-headless openjdk-17-jdk-headless)" maven binutils) ;;
    esac
    # Without manuals, as dnf's --nodocs does it; licences stay.
    apt-get -q -y -o Dpkg::Options::=--path-exclude='/usr/share/man/*' -o Dpkg::Options::=--path-exclude='/usr/share/doc/*' \
        -o Dpkg::Options::=--path-include='/usr/share/doc/*/copyright' install --no-install-recommends "${packages[@]}"
    apt-get -q clean
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old
elif command -v dnf >/dev/null; then
    case $what in
        runtime) packages=(python3.12 ca-certificates openssh-clients) ;;
        build) packages=(python3.12-pip java-21-openjdk-devel java-21-openjdk-jmods maven binutils) ;;
    esac
    dnf -y --setopt=install_weak_deps=False --nodocs install "${packages[@]}"
    dnf clean all
else
    echo "packages: neither apt-get nor dnf is here; another base image (BASE_IMAGE) is needed" >&2
    exit 1
fi
