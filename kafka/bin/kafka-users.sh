#!/usr/bin/env bash
# Makes the broker's SCRAM users those of a file, once it listens: `kafka-users.sh USERS_FILE APPLIED_FILE PORT`. Lines of
# name:password; what was applied is noted (names, and a checksum of the file), so that an unchanged file costs nothing.
set -euo pipefail

users_file=$1 applied=$2 port=$3
bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
say() { echo "kafka-users: $*"; }

checksum=$(sha256sum <"$users_file")
if [[ -r $applied && $(head -n 1 "$applied") == "$checksum" ]]; then
    exit 0
fi
for ((tries = 0; ; tries++)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    ((tries < 600)) || { say "the broker does not listen on port $port"; exit 1; }
    sleep 0.2
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 077
export ETL_BOOTSTRAP_SERVERS=127.0.0.1:$port
names=()
while IFS=: read -r name password || [[ -n $name ]]; do
    [[ -n $name && $name != \#* ]] || continue
    names+=("$name")
    # A file: arguments can be read by everybody on the machine.
    password=${password//\\/\\\\} # as a file of Java properties has it
    printf '%s\n' "SCRAM-SHA-512=password=$password" >"$work/config"
    "$bin/kafka-configs.sh" --alter --entity-type users --entity-name "$name" --add-config-file "$work/config" >/dev/null
done <"$users_file"
if [[ -r $applied ]]; then
    while IFS= read -r name; do
        if ! grep -qxF -- "$name" <<<"$(printf '%s\n' "${names[@]}")"; then
            "$bin/kafka-configs.sh" --alter --entity-type users --entity-name "$name" \
                --delete-config SCRAM-SHA-512 >/dev/null
        fi
    done < <(tail -n +2 "$applied")
fi
printf '%s\n' "$checksum" "${names[@]}" >"$applied"
say "users of the advertised listener: ${names[*]}"
