#!/bin/sh
# Before PostgreSQL starts: makes its data folder the first time, restores one when that is asked for, and gives
# the role coffee_rt its present password.
#
# A folder is made beside its place and moved there when whole, so a start that was cut off leaves nothing that
# looks like data. Runs at each start, in an init container: nothing else has the volume.
set -eu
umask 077
. "${0%/*}/postgresql.sh"
password=$(cat "$PASSWORD_FILE")
case $password in
'' | *[!A-Za-z0-9._~-]*) stop_with "the password must be letters and digits (also . _ ~ -), at least one" ;;
esac
work=${RUN_DIR:-/tmp}

# run_single FOLDER DATABASE < statements, one a line. Ends with the first error. With the chart's configuration,
# so that no write-ahead log is thrown away that waits for the archive.
run_single() {
    postgres --single -D "$1" -c config_file="$CONF" -c exit_on_error=on "$2" >"$work/single.log" 2>&1 || {
        cat "$work/single.log"
        stop_with "PostgreSQL could not run the statements above"
    }
}

fingerprint() {
    printf %s "$password" | sha256sum | cut -d' ' -f1
}

make_folder() {
    staged=$PGDATA.new
    rm -rf "$staged"
    # PostgreSQL 17 and newer sort text by themselves; before, by the C library.
    locale=--locale=C.UTF-8
    if initdb --help | grep -q builtin-locale; then
        locale="--locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
    fi
    # shellcheck disable=SC2086
    initdb -D "$staged" -U postgres --auth-local=trust --auth-host=reject -E UTF8 $locale --data-checksums \
        --no-instructions
    {
        echo "CREATE ROLE coffee_rt LOGIN PASSWORD '$password'"
        echo "CREATE DATABASE coffee_rt OWNER coffee_rt"
    } >"$work/statements"
    run_single "$staged" postgres <"$work/statements"
    rm -f "$work/statements"
    fingerprint >"$staged/coffee-rt.password"
    sync
    mv "$staged" "$PGDATA"
    sync
    say "made $PGDATA"
}

check_folder() {
    [ -f "$PGDATA/PG_VERSION" ] && [ -f "$PGDATA/global/pg_control" ] ||
        stop_with "$PGDATA is no PostgreSQL data folder, or an incomplete one: restore a backup (docs/operations/backup.md)"
    has=$(cat "$PGDATA/PG_VERSION")
    runs=$(postgres --version | sed 's/.* \([0-9][0-9]*\).*/\1/')
    [ "$has" = "$runs" ] ||
        stop_with "the data is of PostgreSQL $has and this image brings $runs: set postgresql.image.tag back, or move the data with pg_dump"
    # The volume's group may have been given rights in it; PostgreSQL starts only without.
    chmod 0700 "$PGDATA"
}

restore_folder() {
    base=$ARCHIVE/base/$RESTORE_BASE
    [ -n "${ARCHIVE:-}" ] || stop_with "there is no archive to restore from (postgresql.archive.enabled)"
    [ -f "$base/backup_manifest" ] ||
        stop_with "no base backup $RESTORE_BASE; there are: $(ls "$ARCHIVE/base" 2>/dev/null | tr '\n' ' ')"
    verify_backup "$base" || stop_with "the base backup $RESTORE_BASE is damaged: choose another"
    staged=$PGDATA.restoring
    rm -rf "$staged"
    cp -a "$base" "$staged"
    chmod 0700 "$staged"
    touch "$staged/recovery.signal"
    {
        echo "restore_command = 'cp \"$ARCHIVE/wal/%f\" \"%p\"'"
        echo "recovery_target_action = 'promote'"
        # PostgreSQL knows no Z here yet: it reads its table of time zones later.
        [ -z "$RESTORE_TARGET_TIME" ] ||
            echo "recovery_target_time = '$(echo "$RESTORE_TARGET_TIME" | sed 's/T/ /; s/Z$/+00/')'"
    } >"$VOLUME/restore.conf"
    sync
    if [ -e "$PGDATA" ]; then
        aside=$PGDATA.before-$(date -u +%Y%m%dT%H%M%SZ)
        mv "$PGDATA" "$aside"
        say "the data that was there is now $aside"
    fi
    mv "$staged" "$PGDATA"
    echo "$wanted" >"$VOLUME/restored"
    sync
    say "put $RESTORE_BASE in place; the archive's log is read next"
}

# Reads the archive's log here, where there is no limit of time and before anybody can connect.
recover() {
    postgres -D "$PGDATA" -c config_file="$CONF" -c hba_file="${CONF%/*}/pg_hba.conf" -c listen_addresses= &
    server=$!
    until [ "$(psql -XAtq -d postgres -c 'SELECT pg_is_in_recovery()' 2>/dev/null)" = f ]; do
        kill -0 "$server" 2>/dev/null ||
            stop_with "PostgreSQL could not recover; its words above say why. Was the moment before the end of the base backup, or after the end of the archive?"
        sleep 1
    done
    kill -INT "$server"
    wait "$server" || true
    say "recovered up to ${RESTORE_TARGET_TIME:-the end of the archive}"
}

adopt_password() {
    [ "$(cat "$PGDATA/coffee-rt.password" 2>/dev/null)" != "$(fingerprint)" ] || return 0
    echo "ALTER ROLE coffee_rt PASSWORD '$password'" >"$work/statements"
    run_single "$PGDATA" postgres <"$work/statements"
    rm -f "$work/statements"
    fingerprint >"$PGDATA/coffee-rt.password"
    say "the role coffee_rt has the Secret's password now"
}

if [ -n "${ARCHIVE:-}" ]; then
    mkdir -p "$ARCHIVE/wal" "$ARCHIVE/base"
fi
wanted="${RESTORE_BASE:-} ${RESTORE_TARGET_TIME:-}"
if [ -n "${RESTORE_BASE:-}" ] && [ "$(cat "$VOLUME/restored" 2>/dev/null)" != "$wanted" ]; then
    restore_folder
elif [ ! -e "$PGDATA" ]; then
    make_folder
fi
check_folder
[ ! -e "$PGDATA/recovery.signal" ] || recover
adopt_password
