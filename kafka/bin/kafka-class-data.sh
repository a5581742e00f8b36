#!/usr/bin/env bash
# Makes the class-data archive with which broker and commands start in half the time. It fits one Java and one folder
# of jars, so it is made where it is used; with another Java it is ignored. Run again: nothing is done.
# The environment is that of kafka-run.sh.
set -euo pipefail

bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
libs=$(cd "${KAFKA_LIBS:-$bin/../../build/kafka/libs}" && pwd)
archive=${KAFKA_CLASS_DATA:-$(dirname "$libs")/classes.jsa}
export KAFKA_LIBS=$libs KAFKA_CLASS_DATA=$archive

java=$("$bin/kafka-run.sh" --print-java)
made_by=$("$java" -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java\.vm\.version = //p' | head -n 1)
made_by+=" $(cd "$libs" && stat -c '%n %s %Y' -- *.jar | cksum)"
if [[ -r $archive && -r $archive.made-by && $(<"$archive.made-by") == "$made_by" ]]; then
    exit 0
fi

work=$(mktemp -d "$(dirname "$archive")/class-data.XXXXXX")
broker=
finish() {
    if [[ -n $broker ]]; then
        kill -KILL "$broker" 2>/dev/null || true
        wait "$broker" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT

listens() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

free_port() {
    local port
    while true; do
        port=$((20000 + RANDOM % 10000))
        listens "$port" || break
    done
    echo "$port"
}

# Run what a user runs, once, and note which classes that loads.
noted=0
note() {
    noted=$((noted + 1))
    KAFKA_CLASS_LIST=$work/$noted.classlist "$bin/$1" "${@:2}" >"$work/out" 2>&1 </dev/null || {
        cat "$work/out" >&2
        return 1
    }
}

export KAFKA_DATA_DIR=$work/data KAFKA_PORT KAFKA_CONTROLLER_PORT
export -n KAFKA_ADVERTISED_HOST KAFKA_NETWORK_HOST KAFKA_EXTRA_PROPERTIES
KAFKA_PORT=$(free_port)
KAFKA_CONTROLLER_PORT=$(free_port)
export ETL_BOOTSTRAP_SERVERS=127.0.0.1:$KAFKA_PORT
KAFKA_CLASS_LIST=$work/broker.classlist "$bin/kafka-appliance.sh" >"$work/broker.log" 2>&1 &
broker=$!
for ((tries = 0; ; tries++)); do
    listens "$KAFKA_PORT" && break
    if ((tries > 300)) || ! kill -0 "$broker" 2>/dev/null; then
        cat "$work/broker.log" >&2
        exit 1
    fi
    sleep 0.2
done
note kafka-topics.sh --create --topic sample --partitions 1
note kafka-topics.sh --describe
echo sample | KAFKA_CLASS_LIST=$work/producer.classlist "$bin/kafka-console-producer.sh" --topic sample >/dev/null
note kafka-console-consumer.sh --topic sample --group sample --from-beginning --max-messages 1
note kafka-consumer-groups.sh --describe --group sample
note kafka-configs.sh --describe --entity-type topics --entity-name sample
sed "s|^log.dirs=.*|log.dirs=$work/second|" "$work/data/server.properties" >"$work/second.properties"
note kafka-storage.sh format -t EAAAAAAAAAAAAAAAAAAAAA -c "$work/second.properties"
version=$(basename "$libs"/kafka_2.13-*.jar .jar)
cp "$work/second/bootstrap.checkpoint" "$(dirname "$libs")/bootstrap.checkpoint-${version#kafka_2.13-}"
kill -TERM "$broker"
wait "$broker" || true
broker=

# Classes of the jars and of Java itself; those made at run time (with a `source:`) cannot be archived.
cat "$work"/*.classlist | grep -v -e '^#' -e 'source:' | sed 's/ id: [0-9]*$//' | awk '!seen[$0]++' >"$work/classes"
"$java" -Xshare:dump -XX:SharedClassListFile="$work/classes" -XX:SharedArchiveFile="$work/classes.jsa" \
    -Xlog:disable -Xlog:all=error:stderr -cp "$libs/*" >/dev/null
mv "$work/classes.jsa" "$archive"
echo "$made_by" >"$archive.made-by"
