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

# verify_backup FOLDER: every file against the checksums of its manifest. Fails for a bad one.
verify_backup() {
    code=0
    pg_verifybackup --no-parse-wal "$1" >/dev/null || code=$?
    # 126 and more: the image has no such program, or it crashed. That says nothing about the backup.
    [ "$code" -lt 126 ] || say "not verified: pg_verifybackup ended with $code"
    [ "$code" -eq 0 ] || [ "$code" -ge 126 ]
}
