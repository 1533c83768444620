#!/bin/sh
# Starts a sentinel. What it knows is kept on the volume, so that after a restart of everything at once the
# sentinels still know which server was the primary. On an empty volume it starts knowing none, and says so:
# valkey-start.sh tells it.
set -eu
umask 077
. "${0%/*}/valkey.sh"
read_password
folder=$DATA_DIR/sentinel
conf=$folder/sentinel.conf
mkdir -p "$folder"
{
    # The password and the names may have changed; the rest is the sentinel's own memory.
    if [ -s "$conf" ]; then
        grep -v -E '^(port|bind|dir|protected-mode|requirepass|sentinel (sentinel-pass|auth-pass|resolve-hostnames|announce-)) *' \
            "$conf" || true
    fi
    echo "port $SENTINEL_PORT"
    echo "bind $BIND"
    echo "protected-mode no"
    echo "dir $RUN_DIR"
    echo "requirepass $password"
    echo "sentinel sentinel-pass $password"
    echo "sentinel resolve-hostnames yes"
    echo "sentinel announce-hostnames yes"
    echo "sentinel announce-ip $SELF"
    echo "sentinel announce-port $SENTINEL_PORT"
    if grep -q "^sentinel monitor $MASTER_NAME " "$conf" 2>/dev/null; then
        echo "sentinel auth-pass $MASTER_NAME $password"
    fi
} >"$conf.new"
mv "$conf.new" "$conf"
exec valkey-server "$conf" --sentinel
