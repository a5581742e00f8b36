#!/usr/bin/env bash
# Makes the one account and becomes vsftpd. Arguments are further settings of vsftpd.conf: `local_max_rate=1000000`.
set -euo pipefail

: "${FTP_USER:?}" "${FTP_PASS:?}"
files=/home/ftp-files
if ! id "$FTP_USER" >/dev/null 2>&1; then
    useradd --no-create-home --home-dir "$files" --shell /bin/bash "$FTP_USER"
fi
echo "$FTP_USER:$FTP_PASS" | chpasswd
mkdir -p "$files" /run/vsftpd/empty
chown "$FTP_USER" "$files"
{
    printf '%s\n' listen=YES listen_ipv6=NO background=NO anonymous_enable=NO local_enable=YES write_enable=YES \
        mdtm_write=YES local_umask=022 local_root="$files" chroot_local_user=YES allow_writeable_chroot=YES \
        force_dot_files=YES utf8_filesystem=YES seccomp_sandbox=NO connect_from_port_20=NO \
        secure_chroot_dir=/run/vsftpd/empty delay_failed_login=0 isolate=NO isolate_network=NO
    ((!$#)) || printf '%s\n' "$@"
} >/etc/vsftpd-test.conf
# As the first process of a container vsftpd ends with its first session.
vsftpd /etc/vsftpd-test.conf &
server=$!
trap 'kill "$server"' TERM INT
wait "$server"
