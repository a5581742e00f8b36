#!/usr/bin/env bash
# Behind the commands of the image (`docker exec C etl …`, `docker exec C kafka-topics.sh …`): gives them the topic, the
# group and the bootstrap servers that this container was started with, then becomes the command it was called by.
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
    *) exec "$home/kafka/bin/$name" "$@" ;;
esac
