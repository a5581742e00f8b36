#!/usr/bin/env bash
# The entrypoint of the image. A first word that is a command's name is that command; anything else is for the
# appliance: `broker`, or the topic, the group and the bootstrap servers as options or in this order.
set -euo pipefail

home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
case ${1:-} in
    consume | api | submit | dlq | offsets | servers | config | status | jobs | acknowledge | hold | release | cancel | drain | try-now | verify | -h | --help | --version) exec "$home/bin/etl" "$@" ;;
    etl | kafka-*.sh) exec "$home/bin/$1" "${@:2}" ;;
esac
# Empty until appliance.py has checked the settings: the health check takes it for "starting".
umask 077
{ mkdir -p "$APPLIANCE_RUN_DIR" && [[ -O $APPLIANCE_RUN_DIR && ! -L $APPLIANCE_RUN_DIR ]] &&
    : >"$APPLIANCE_RUN_DIR/environment"; } 2>/dev/null || {
    echo "appliance: user $(id -u) cannot write to a $APPLIANCE_RUN_DIR of its own; a read-only container needs" \
        "--tmpfs /tmp" >&2
    exit 2
}
umask 022
exec "$home/.venv/bin/python" "$home/docker/appliance.py" "$@"
