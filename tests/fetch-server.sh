#!/usr/bin/env bash
# fetch-server.sh vsftpd|sshd|promtool: unpacks Debian's program, and what it needs that this machine may lack, into
# build/NAME/root. Nothing is installed: no service, no user, no file outside of the clone. Run again: nothing is done.
set -euo pipefail

name=${1:?vsftpd, sshd or promtool}
program=usr/sbin/$name
case $name in
    vsftpd) packages=(vsftpd libwrap0 libpam-pwdfile) ;;
    sshd) packages=(openssh-server openssh-sftp-server libwrap0) ;;
    promtool)
        packages=(prometheus)
        program=usr/bin/promtool
        ;;
    *)
        echo "fetch-server: no server $name is known" >&2
        exit 2
        ;;
esac
home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
target=$home/build/$name/root
[[ ! -x $target/$program ]] || exit 0

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "fetch-server: the integration tests need Debian's $name, and this machine has no apt-get and dpkg-deb" >&2
    exit 3
fi

mkdir -p "$home/build/$name"
work=$(mktemp -d "$home/build/$name/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# apt's own user may not write here, which apt says in a warning and then does the work itself.
download() {
    apt-get -q download "${packages[@]}" >apt.log 2>&1
}
if ! download; then
    if [[ $EUID -ne 0 ]]; then
        cat apt.log >&2
        echo "fetch-server: apt has no list of packages; run as root: apt-get update" >&2
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
mv -T root "$target" 2>/dev/null || [[ -x $target/$program ]] # another one was first
