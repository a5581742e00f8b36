#!/usr/bin/env bash
# Behind the commands of the image (`docker exec C etl …`, `docker exec C kafka-topics.sh …`, also as
# `/opt/kafka/bin/kafka-topics.sh`, `docker exec C supervisorctl …`): gives them the topic, the group and the bootstrap
# servers that this container was started with, then becomes the command it was called by.
set -euo pipefail

home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
name=$(basename "$0")
started_with=${APPLIANCE_RUN_DIR:-/tmp/etl-run}/environment
if [[ -r $started_with ]]; then
    while IFS= read -r line; do
        export "${line?}"
    done <"$started_with"
fi
case $name in
    etl) exec "$home/.venv/bin/etl" "$@" ;;
    supervisorctl)
        words=()
        for word in "$@"; do
            [[ $word != etl-consumer ]] || word+=':*' # all processes of that name, however many they are
            words+=("$word")
        done
        # A second -c of the caller's would be refused.
        [[ ${1:-} == -c* || ${1:-} == --configuration* ]] || words=(-c "$home/docker/supervisord.conf" "${words[@]}")
        exec "$home/.venv/bin/supervisorctl" "${words[@]}"
        ;;
    *) exec "$home/kafka/bin/$name" "$@" ;;
esac
