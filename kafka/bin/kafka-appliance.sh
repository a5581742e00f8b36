#!/usr/bin/env bash
# Runs the embedded broker: formats its data folder if that is new, writes its settings, becomes the broker.
# With --check it only looks whether it could. Exit code 2: wrong settings, a folder that is not ours, no Java, no jars;
# 1: what may pass, a taken port or a full disk; each with one sentence.
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
#   KAFKA_ADVERTISED_PROTOCOL  PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL, on both
#                           (default: PLAINTEXT)
#   KAFKA_TLS_CERT_FILE     with SSL: its certificate and the chain, PEM
#   KAFKA_TLS_KEY_FILE      with SSL: its private key, PEM (PKCS 8, not encrypted)
#   KAFKA_USERS_FILE        with SASL: who may log in, and do what; see kafka-users.py
#   KAFKA_CLUSTER_ID        id of a new data folder; an existing one must have it (default: any)
#   KAFKA_EXTRA_PROPERTIES  a file of further broker settings, which win
#   KAFKA_HEAP and others   see kafka-run.sh
set -euo pipefail
umask 077

checking=false
[[ ${1:-} != --check ]] || checking=true
bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
data=${KAFKA_DATA_DIR:-$bin/../../build/kafka/data}
port=${KAFKA_PORT:-9092}
controller_port=${KAFKA_CONTROLLER_PORT:-9093}
bind=${KAFKA_BIND_ADDRESS:-0.0.0.0}
minimum_free=16 # MB; with none Java dies of its own files' pages, in a hundred lines

# Wrong settings: exit code 2; what may pass: 1.
refuse() {
    echo "kafka-appliance: $1" >&2
    exit "${2:-2}"
}

check_port() {
    if ! [[ $2 =~ ^[0-9]{1,5}$ ]] || (($2 < 1 || $2 > 65535)); then
        refuse "$1=$2 is not a port (1 to 65535)"
    fi
}

check_file() {
    [[ -n ${!1:-} ]] || refuse "$1 is not set; KAFKA_ADVERTISED_PROTOCOL=$protocol needs it"
    [[ -r ${!1} ]] || refuse "$1: ${!1} cannot be read"
}

# Kafka reads its settings as Latin-1 with escapes: `\` and what is not ASCII are written as \uXXXX.
escaped() {
    local LC_ALL=C.UTF-8 text=$1 letter number i
    for ((i = 0; i < ${#text}; i++)); do
        letter=${text:i:1}
        printf -v number %d "'$letter"
        if ((number > 0xffff)); then
            printf '\\u%04x\\u%04x' $((0xd7c0 + (number >> 10))) $((0xdc00 + (number & 0x3ff)))
        elif ((number > 126)) || [[ $letter == \\ ]]; then
            printf '\\u%04x' "$number"
        else
            printf '%s' "$letter"
        fi
    done
}

check_port KAFKA_PORT "$port"
check_port KAFKA_CONTROLLER_PORT "$controller_port"
[[ -z ${KAFKA_HEAP:-} || $KAFKA_HEAP =~ ^[1-9][0-9]*[kKmMgG]?$ ]] ||
    refuse "KAFKA_HEAP=$KAFKA_HEAP is not a size such as 512M"
[[ -z ${KAFKA_EXTRA_PROPERTIES:-} || -r $KAFKA_EXTRA_PROPERTIES ]] ||
    refuse "KAFKA_EXTRA_PROPERTIES: $KAFKA_EXTRA_PROPERTIES cannot be read"
{ mkdir -p "$data" && [[ -w $data ]]; } 2>/dev/null ||
    refuse "user $(id -u), group $(id -g) cannot write to $data: give the folder to that user or group"
data=$(cd "$data" && pwd)
[[ $data != *,* ]] || refuse "$data has a comma in its name, which Kafka takes for two folders: use another (KAFKA_DATA_DIR)"
# In it are jobs, dead letters and what logins are checked with; older files of it may be readable to all.
chmod go= "$data" 2>/dev/null || true

# Kafka takes its own lock only after it has written to the log of its metadata: two brokers on one volume would ruin it.
# Held open until the broker ends; a broker that is just ending is waited for.
if command -v flock >/dev/null; then
    exec 8>"$data/in-use"
    flock -w 5 8 ||
        refuse "$data is in use by another broker, which must end first: a folder or volume of data is for one broker at a time"
fi
free=$(df -Pk "$data" | awk 'NR == 2 { print int($4 / 1024) }')
((free >= minimum_free)) || refuse "$data has $free MB free, fewer than $minimum_free: make room there" 1

libs=${KAFKA_LIBS:-$bin/../../build/kafka/libs}
version=$(cd "$libs" 2>/dev/null && compgen -G 'kafka_2.13-*.jar' | head -n 1) || true
version=${version#kafka_2.13-} version=${version%.jar}
[[ -n $version ]] || refuse "no Kafka in $libs; run: make bootstrap"
if [[ -r $data/version ]]; then
    written_by=$(<"$data/version")
    [[ $(printf '%s\n' "$written_by" "$version" | sort -V | tail -n 1) == "$version" ]] ||
        refuse "$data was written by Kafka $written_by, which is newer than this one ($version): use that version or later"
fi

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

protocol=${KAFKA_ADVERTISED_PROTOCOL:-PLAINTEXT}
case $protocol in
    PLAINTEXT | SSL | SASL_PLAINTEXT | SASL_SSL) ;;
    *) refuse "KAFKA_ADVERTISED_PROTOCOL=$protocol is none of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL" ;;
esac
[[ -z ${KAFKA_USERS_FILE:-} || $protocol == SASL* ]] ||
    refuse "KAFKA_USERS_FILE is set, and KAFKA_ADVERTISED_PROTOCOL=$protocol asks nobody to log in: use SASL_SSL or SASL_PLAINTEXT"
security=
if [[ $protocol == *SSL ]]; then
    check_file KAFKA_TLS_CERT_FILE
    check_file KAFKA_TLS_KEY_FILE
    # Kafka reads the two files where they are: no copy of the key is written.
    # shellcheck disable=SC2016 # Kafka's own variables
    from_file() { printf '${dir:%s:%s}\n' "$(escaped "$(cd "$(dirname "$1")" && pwd)")" "$(escaped "$(basename "$1")")"; }
    security+="config.providers=dir"$'\n'
    security+="config.providers.dir.class=org.apache.kafka.common.config.provider.DirectoryConfigProvider"$'\n'
    security+="ssl.keystore.type=PEM"$'\n'
    security+="ssl.keystore.key=$(from_file "$KAFKA_TLS_KEY_FILE")"$'\n'
    security+="ssl.keystore.certificate.chain=$(from_file "$KAFKA_TLS_CERT_FILE")"$'\n'
fi
users=("${APPLIANCE_PYTHON:-$bin/../../.venv/bin/python}" "$bin/kafka-users.py" "${KAFKA_USERS_FILE:-}")
if [[ $protocol == SASL* ]]; then
    check_file KAFKA_USERS_FILE
    "${users[@]}" --check || refuse "KAFKA_USERS_FILE is wrong"
    for listener in network external; do
        security+="listener.name.$listener.sasl.enabled.mechanisms=SCRAM-SHA-512"$'\n'
        security+="listener.name.$listener.scram-sha-512.sasl.jaas.config="
        security+="org.apache.kafka.common.security.scram.ScramLoginModule required;"$'\n'
    done
    # Who comes through the loopback listeners is nobody by name, and may do everything; all others what the file says.
    security+="authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer"$'\n'
    security+="super.users=User:ANONYMOUS"$'\n'
else
    for host in "${KAFKA_NETWORK_HOST:-}" "${KAFKA_ADVERTISED_HOST:-}"; do
        case $host in
            '' | localhost | 127.* | ::1 | '[::1]') ;;
            *) $checking || echo "kafka-appliance: WARNING: $host is advertised beyond this host, and everybody who reaches" \
                "it may read, write and delete everything: see KAFKA_USERS_FILE" >&2 ;;
        esac
    done
fi

properties=$(
    echo "# Written by kafka-appliance.sh at every start; do not edit."
    cat "$bin/../config/server.properties"
    echo "listeners=$listeners,CONTROLLER://127.0.0.1:$controller_port"
    echo "advertised.listeners=$advertised"
    echo "controller.quorum.voters=1@127.0.0.1:$controller_port"
    echo "log.dirs=$(escaped "$data/log")"
    echo "listener.security.protocol.map=CONTROLLER:PLAINTEXT,LOCAL:PLAINTEXT,NETWORK:$protocol,EXTERNAL:$protocol"
    printf '%s' "$security"
    [[ -z ${KAFKA_EXTRA_PROPERTIES:-} ]] || cat "$KAFKA_EXTRA_PROPERTIES"
)

property() { sed -n "s/^$2=//p" <<<"$1" | tail -n 1; }

# The last of several wins, as with Kafka.
folder=$(property "$properties" log.dirs)
[[ $folder != "$(escaped "$data/log")" ]] || folder=$data/log
node=$(property "$properties" node.id)
meta=$folder/meta.properties
if [[ -e $meta ]]; then
    written=$(<"$meta")
    [[ $(property "$written" version) == 1 ]] || refuse "$folder is of a Kafka with ZooKeeper: this one cannot read it"
    [[ $(property "$written" node.id) == "$node" ]] ||
        refuse "$folder belongs to node $(property "$written" node.id) of another cluster; this is node $node"
    [[ -z ${KAFKA_CLUSTER_ID:-} || $(property "$written" cluster.id) == "$KAFKA_CLUSTER_ID" ]] ||
        refuse "$folder belongs to cluster $(property "$written" cluster.id), not to $KAFKA_CLUSTER_ID"
fi

setting_of() {
    case $1 in
        LOCAL) echo KAFKA_PORT ;;
        NETWORK) echo KAFKA_NETWORK_PORT ;;
        EXTERNAL) echo KAFKA_EXTERNAL_PORT ;;
        CONTROLLER) echo KAFKA_CONTROLLER_PORT ;;
        *) echo "listener $1" ;;
    esac
}

# What Java says of a port that it cannot have is a stack of calls.
IFS=, read -r -a listening <<<"$(property "$properties" listeners)"
seen=" "
for listener in "${listening[@]}"; do
    name=${listener%%://*} number=${listener##*:} host=${listener#*://}
    host=${host%:*}
    if [[ $seen == *" $number="* ]]; then
        other=${seen##*" $number="}
        refuse "$(setting_of "${other%% *}") and $(setting_of "$name") are the same port, $number"
    fi
    seen+="$number=$name "
    [[ -n $host && $host != 0.0.0.0 ]] || host=127.0.0.1
    if (exec 3<>"/dev/tcp/$host/$number") 2>/dev/null; then
        refuse "port $number ($(setting_of "$name")) is taken: end the program that listens there, or choose another" 1
    fi
done
! $checking || exit 0

printf '%s\n' "$properties" >"$data/server.properties"
if ! [[ -e $meta ]]; then
    # 16 random bytes, base64 in its URL form; the leading letter keeps it from looking like an option.
    random_id() { echo "E$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c 2-22)"; }
    cluster_id=${KAFKA_CLUSTER_ID:-$(random_id)}
    # What `kafka-storage.sh format` writes is always the same but for the ids; kafka-class-data.sh kept a copy.
    formatted=$(dirname "$libs")/bootstrap.checkpoint-$version
    if [[ -r $formatted ]]; then
        mkdir -p "$folder"
        cat "$formatted" >"$folder/bootstrap.checkpoint"
        printf '%s\n' version=1 "node.id=$node" "cluster.id=$cluster_id" "directory.id=$(random_id)" >"$meta.new"
        mv "$meta.new" "$meta"
    else
        "$bin/kafka-storage.sh" format --ignore-formatted -t "$cluster_id" -c "$data/server.properties" >/dev/null
    fi
fi
echo "$version" >"$data/version"

# The users live in the broker's own metadata: it must run to be told of a change.
if [[ $protocol == SASL* ]]; then
    { "${users[@]}" "$port" ||
        echo "kafka-appliance: the users of $KAFKA_USERS_FILE could not be made the broker's" >&2; } 8>&- &
fi

# zstd and snappy unpack a library and run it, which a container's tmpfs does not allow.
rm -rf "$data/tmp" "$data/keystore.pem" # and the copy of the key that older versions made
mkdir "$data/tmp"
KAFKA_TMP_DIR=$data/tmp exec "$bin/kafka-server-start.sh" "$data/server.properties"
