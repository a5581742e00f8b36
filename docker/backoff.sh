#!/usr/bin/env bash
# Becomes the program that is given, at once the first time; if it was started less than a minute ago, after a wait that
# doubles from 1 s to 30 s. supervisord starts its programs through it: they are started again for ever, at a pace that
# leaves the machine alone. Its own back-off ends (FATAL) and takes any quick end for one, exit code 2 as well.
set -euo pipefail

name=${SUPERVISOR_PROCESS_NAME:?}
file=${APPLIANCE_RUN_DIR:?}/$name.starts
calm_seconds=60
longest_seconds=30

failures=0 last=0
[[ ! -r $file ]] || read -r failures last <"$file" || true
printf -v now '%(%s)T' -1
((now - last <= calm_seconds)) || failures=0
if ((failures > 0)); then
    delay=$((failures > 5 ? longest_seconds : 1 << (failures - 1)))
    echo "$name ended; starting it again in $delay s"
    sleep "$delay"
    printf -v now '%(%s)T' -1
fi
echo "$((failures + 1)) $now" >"$file"
exec "$@"
