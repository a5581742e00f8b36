#!/usr/bin/env bash
# Cuts a Java runtime for Kafka and its commands out of the development kit that is installed: `java.sh FOLDER`.
set -euo pipefail

target=${1:?folder of the runtime to make}
jlink=$(command -v jlink || compgen -G '/usr/lib/jvm/*/bin/jlink' | sort -V | tail -n 1)
# Found with the broker, its commands, SASL and TLS running: Kafka names no modules of its own.
modules=(
    java.base java.desktop java.logging java.management java.naming java.security.jgss java.security.sasl java.sql java.xml
    jdk.crypto.ec jdk.management jdk.unsupported jdk.zipfs
)
# Of java.desktop the logging library wants one class (java.beans): its native libraries stay out.
list=$(IFS=,; echo "${modules[*]}")
"$jlink" --output "$target" --add-modules "$list" --strip-debug --no-header-files --no-man-pages --compress=2 --vm=server \
    --exclude-files='/java.desktop/lib/**'
"$target/bin/java" -version
