# What the scripts of the PostgreSQL pod share; they read it with `.`.
#
# From the pod:  PGDATA         the data folder: below the volume, beside it what is being made
#                CONF           configuration from the chart
#                PASSWORD_FILE  password of the role coffee_rt
#                ARCHIVE        folder of the archive (`wal` and `base` in it), or empty
# Programs used: sh, coreutils (or busybox), sed, and PostgreSQL's own.

VOLUME=${PGDATA%/*}

say() {
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) ${0##*/}: $*"
}

stop_with() {
    say "$*"
    exit 1
}
