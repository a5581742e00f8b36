#!/usr/bin/env bash
# Brings up what the container tests need on a machine where no image can be pulled: Docker Engine with compose, from
# Debian's packages, and a Debian base image made by debootstrap from this machine's own package source. Prints the
# name of the base image, and nothing else, on standard output. Needs root for what is missing. What is there is left alone: the second run
# takes a second. Several at once take turns.
#
#   docker/engine.sh            engine, compose and base image
#   docker/engine.sh --down     stop the engine, if this script started it
#
#   ENGINE_BASE_IMAGE   name of the base image    (default: etl-base:bookworm)
#   ENGINE_LOG          log of the engine         (default: /var/log/etl-engine.log)
set -euo pipefail

suite=bookworm
plugin_suite=trixie # bookworm has no compose 2; these two packages need only libc
plugins=/usr/libexec/docker/cli-plugins
image=${ENGINE_BASE_IMAGE:-etl-base:$suite}
log=${ENGINE_LOG:-/var/log/etl-engine.log}
started=/run/etl-engine.pid
export PATH=/usr/bin:/usr/sbin:/bin:/sbin:$PATH # the packaged client before any other: it speaks to this engine
export DEBIAN_FRONTEND=noninteractive

exec 3>&1 1>&2 # standard output is the answer alone
say() { echo "engine: $* (${SECONDS} s)"; }

fail() {
    echo "engine: $*"
    exit 1
}

answers() {
    timeout 10 docker info >/dev/null 2>&1 9>&- 3>&-
}

need_root() {
    [[ $EUID -eq 0 ]] || fail "$1, which needs root"
}

install_packages() {
    local name
    local -a missing=()
    for name in "$@"; do
        [[ $(dpkg-query -W -f '${Status}' "$name" 2>/dev/null) == *'ok installed' ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    apt-get -qq update
    apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "${missing[@]}" </dev/null >/dev/null
}

# The package source that this machine is configured with; no address is written here.
package_source() {
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v suite="$suite" '$1 == suite && $2 == "main" { print $3; exit }'
}

# The id files of a killed engine stop the next one; a zombie keeps its id where nobody reaps.
remove_stale_ids() {
    local file pid state name
    for file in /run/docker.pid /run/docker/containerd/containerd.pid; do
        [[ -s $file ]] || continue
        pid=$(<"$file")
        state=$(awk '/^State:/ { print $2 }' "/proc/$pid/status" 2>/dev/null || true)
        name=$(cat "/proc/$pid/comm" 2>/dev/null || true)
        if [[ -z $state || $state == Z || ($name != dockerd && $name != containerd) ]]; then
            say "removing $file of a dead process"
            rm -f "$file"
        fi
    done
}

start_engine() {
    local pid tries
    # Without the lock and the answer's descriptor: the engine outlives this script.
    setsid nohup dockerd >"$log" 2>&1 </dev/null 9>&- 3>&- &
    pid=$!
    for ((tries = 0; tries < 120; tries++)); do
        if answers; then
            echo "$pid" >"$started"
            say "Docker Engine started (process $pid, log $log)"
            return
        fi
        if ! kill -0 "$pid" 2>/dev/null; then
            tail -n 20 "$log"
            fail "Docker Engine does not start here: $(tail -n 1 "$log")"
        fi
        sleep 0.5
    done
    tail -n 20 "$log"
    fail "Docker Engine did not answer within 60 s"
}

ensure_engine() {
    answers && return
    need_root "Docker Engine does not answer and must be started"
    command -v apt-get >/dev/null || fail "Docker Engine does not answer, and only apt can install it here"
    install_packages docker.io iptables
    mountpoint -q /sys/fs/cgroup || fail "/sys/fs/cgroup is not mounted: no container can run here"
    remove_stale_ids
    start_engine
}

ensure_compose() {
    docker compose version >/dev/null 2>&1 && return
    local work package
    need_root "docker compose is missing and must be installed"
    say "fetching compose"
    work=$(mktemp -d)
    chmod 755 "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/packages"
    chmod 777 "$work/packages"
    # A private package source: the system's own stays as it is.
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(package_source) $plugin_suite main" \
        >"$work/sources.list"
    local -a options=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
    apt-get "${options[@]}" update
    (cd "$work/packages" && apt-get "${options[@]}" download "docker-compose/$plugin_suite" "docker-buildx/$plugin_suite")
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/unpacked"
    done
    install -D -m 755 -t "$plugins" "$work"/unpacked/usr/libexec/docker/cli-plugins/*
    rm -rf "$work"
}

ensure_base_image() {
    docker image inspect "$image" >/dev/null 2>&1 && return
    local work source variable
    local -a changes=(--change 'CMD ["bash"]' --change 'ENV LANG=C.UTF-8')
    need_root "there is no base image $image and one must be made"
    install_packages debootstrap ca-certificates
    source=$(package_source)
    [[ -n $source ]] || fail "this machine has no package source for $suite"
    say "making $image"
    work=$(mktemp -d /var/tmp/etl-base.XXXXXX)
    # shellcheck disable=SC2064 # expanded now
    trap "umount -l '$work/root/proc' '$work/root/sys' 2>/dev/null || true; rm -rf --one-file-system '$work'" EXIT
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/root" "$source" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log"
        fail "debootstrap failed"
    }
    # What reaches the package sources from here must reach them from inside: sources, freshness rules, authorities.
    rm -f "$work/root/etc/apt/sources.list"
    cp -L /etc/apt/sources.list "$work/root/etc/apt/" 2>/dev/null || true
    cp -L /etc/apt/sources.list.d/debian.sources "$work/root/etc/apt/sources.list.d/" 2>/dev/null || true
    apt-config dump | grep '^Acquire::Check-' >"$work/root/etc/apt/apt.conf.d/90host-checks" || true
    if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
        cp -L /usr/local/share/ca-certificates/*.crt "$work/root/usr/local/share/ca-certificates/"
        chroot "$work/root" update-ca-certificates >>"$work/log" 2>&1
        for variable in PIP_CERT REQUESTS_CA_BUNDLE SSL_CERT_FILE; do
            changes+=(--change "ENV $variable=/etc/ssl/certs/ca-certificates.crt")
        done
    fi
    rm -rf "$work"/root/var/lib/apt/lists/* "$work"/root/var/cache/apt/*.bin "$work"/root/var/cache/apt/archives/*.deb
    tar -C "$work/root" --numeric-owner --one-file-system -c . | docker import "${changes[@]}" - "$image" >/dev/null
}

stop_engine() {
    local pid tries
    [[ -s $started ]] || return 0
    pid=$(<"$started")
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null || true) == dockerd ]]; then
        kill "$pid"
        for ((tries = 0; tries < 60; tries++)); do
            answers || break
            sleep 0.5
        done
        say "Docker Engine stopped"
    fi
    rm -f "$started"
}

if [[ $EUID -eq 0 ]]; then
    exec 9>/run/lock/etl-engine.lock
    flock -w 900 9 || fail "another docker/engine.sh has been running for 15 minutes"
fi

if [[ ${1:-} == --down ]]; then
    stop_engine
    exit
fi
ensure_engine
ensure_compose
ensure_base_image
say "engine $(docker version -f '{{.Server.Version}}') with $(docker compose version --short), base image $image"
echo "$image" >&3
