#!/usr/bin/env bash
# Unpacks Debian's vsftpd, and what it needs that this machine may lack, into build/vsftpd/root. Nothing is installed:
# no service, no user, no file outside of the clone. Run again: nothing is done.
set -euo pipefail

packages=(vsftpd libwrap0 libpam-pwdfile)
home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
target=$home/build/vsftpd/root
[[ ! -x $target/usr/sbin/vsftpd ]] || exit 0

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "fetch-vsftpd: the integration tests need Debian's vsftpd, and this machine has no apt-get and dpkg-deb" >&2
    exit 3
fi

mkdir -p "$home/build/vsftpd"
work=$(mktemp -d "$home/build/vsftpd/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# apt's own user may not write here, which apt says in a warning and then does the work itself.
download() {
    apt-get -q download "${packages[@]}" >apt.log 2>&1
}
if ! download; then
    if [[ $EUID -ne 0 ]]; then
        cat apt.log >&2
        echo "fetch-vsftpd: apt has no list of packages; run as root: apt-get update" >&2
        exit 3
    fi
    if ! apt-get -q update >apt.log 2>&1 || ! download; then
        cat apt.log >&2
        exit 1
    fi
fi
for package in *.deb; do
    dpkg-deb -x "$package" root
done
mv -T root "$target" 2>/dev/null || [[ -x $target/usr/sbin/vsftpd ]] # another one was first
