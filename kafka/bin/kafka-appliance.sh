#!/usr/bin/env bash
# Runs the embedded broker: formats its data folder if that is new, writes its settings, becomes the broker.
#
#   KAFKA_DATA_DIR          folder of everything it keeps                 (default: build/kafka/data of this clone)
#   KAFKA_PORT              loopback listener, for the processes here      (default: 9092)
#   KAFKA_CONTROLLER_PORT   loopback, the controller's own                 (default: 9093)
#   KAFKA_ADVERTISED_HOST   name by which clients outside reach us; unset = no such listener
#   KAFKA_ADVERTISED_PORT   port by which clients outside reach us         (default: 9094)
#   KAFKA_EXTERNAL_PORT     port we listen on for them                     (default: KAFKA_ADVERTISED_PORT)
#   KAFKA_NETWORK_HOST      our name in the containers' network; unset = no such listener
#   KAFKA_NETWORK_PORT      port for other containers                      (default: 9095)
#   KAFKA_BIND_ADDRESS      where the last two listen                      (default: all addresses)
#   KAFKA_EXTRA_PROPERTIES  a file of further broker settings, which win
#   KAFKA_HEAP and others   see kafka-run.sh
set -euo pipefail

bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
data=${KAFKA_DATA_DIR:-$bin/../../build/kafka/data}
port=${KAFKA_PORT:-9092}
controller_port=${KAFKA_CONTROLLER_PORT:-9093}
bind=${KAFKA_BIND_ADDRESS:-0.0.0.0}

check_port() {
    if ! [[ $2 =~ ^[0-9]{1,5}$ ]] || (($2 < 1 || $2 > 65535)); then
        echo "kafka-appliance: $1=$2 is not a port (1 to 65535)" >&2
        exit 2
    fi
}

check_port KAFKA_PORT "$port"
check_port KAFKA_CONTROLLER_PORT "$controller_port"
mkdir -p "$data"
data=$(cd "$data" && pwd)

listeners=LOCAL://127.0.0.1:$port
advertised=$listeners
if [[ -n ${KAFKA_NETWORK_HOST:-} ]]; then
    check_port KAFKA_NETWORK_PORT "${KAFKA_NETWORK_PORT:=9095}"
    listeners+=,NETWORK://$bind:$KAFKA_NETWORK_PORT
    advertised+=,NETWORK://$KAFKA_NETWORK_HOST:$KAFKA_NETWORK_PORT
fi
if [[ -n ${KAFKA_ADVERTISED_HOST:-} ]]; then
    check_port KAFKA_ADVERTISED_PORT "${KAFKA_ADVERTISED_PORT:=9094}"
    check_port KAFKA_EXTERNAL_PORT "${KAFKA_EXTERNAL_PORT:=$KAFKA_ADVERTISED_PORT}"
    listeners+=,EXTERNAL://$bind:$KAFKA_EXTERNAL_PORT
    advertised+=,EXTERNAL://$KAFKA_ADVERTISED_HOST:$KAFKA_ADVERTISED_PORT
fi

{
    echo "# Written by kafka-appliance.sh at every start; do not edit."
    cat "$bin/../config/server.properties"
    echo "listeners=$listeners,CONTROLLER://127.0.0.1:$controller_port"
    echo "advertised.listeners=$advertised"
    echo "controller.quorum.voters=1@127.0.0.1:$controller_port"
    echo "log.dirs=$data/log"
    [[ -z ${KAFKA_EXTRA_PROPERTIES:-} ]] || cat "$KAFKA_EXTRA_PROPERTIES"
} >"$data/server.properties"

if [[ ! -e $data/log/meta.properties ]]; then
    # 16 random bytes, base64 in its URL form; the leading letter keeps it from looking like an option.
    cluster_id=E$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c 2-22)
    "$bin/kafka-storage.sh" format --ignore-formatted -t "$cluster_id" -c "$data/server.properties" >/dev/null
fi

exec "$bin/kafka-server-start.sh" "$data/server.properties"
