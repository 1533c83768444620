#!/bin/sh
# Starts Valkey in any of the chart's modes. MODE says which; CONF is the configuration from the chart.
#
# bundled: nothing to decide. cluster: the server finds its place by itself (valkey-tend.sh helps it).
# sentinel: a server may only begin as primary when no order can be lost by it. What decides is what the
# sentinels say, and they keep it on the volumes:
#   - a majority names a primary: be its replica, or be it
#   - all of them answer, and none ever heard of a primary: this is the first start; the first pod founds
#   - anything else: wait. An empty volume never begins as primary, whatever the sentinels say: its replicas
#     would empty theirs. They will elect one of themselves instead.
set -eu
umask 077
. "${0%/*}/valkey.sh"
read_password
end_when_told
conf=$RUN_DIR/valkey.conf

has_data() {
    [ -d "$DATA_DIR/appendonlydir" ]
}

# What the sentinels say, in variables: asked, answered, named (how many name a primary), primary (the one most
# name) and votes (how many name it).
ask_sentinels() {
    asked=0 answered=0 named=0 names=
    for host in $HOSTS; do
        asked=$((asked + 1))
        if said=$(ask "$host" "$SENTINEL_PORT" SENTINEL GET-MASTER-ADDR-BY-NAME "$MASTER_NAME"); then
            answered=$((answered + 1))
            name=$(echo "$said" | sed -n 1p)
            if [ -n "$name" ]; then
                named=$((named + 1))
                names="$names$name
"
            fi
        fi
    done
    most=$(printf %s "$names" | sort | uniq -c | sort -rn | sed -n 1p)
    votes=$(echo "$most" | sed 's/^ *\([0-9]*\) .*/\1/')
    primary=$(echo "$most" | sed 's/^ *[0-9]* //')
    votes=${votes:-0}
}

# Sets `primary` once it is certain, and leaves a word about each wait.
find_primary() {
    majority=$(($(echo "$HOSTS" | wc -w) / 2 + 1))
    last= patience=15
    while :; do
        ask_sentinels
        why=
        if [ "$votes" -lt "$majority" ] && { [ "$answered" -lt "$asked" ] || [ "$votes" -lt "$named" ]; }; then
            why="$answered of $asked sentinels answer, $votes agree on ${primary:-a primary}; $majority must"
        elif [ "$named" -eq 0 ] && [ "$(ordinal_of "$SELF")" -ne 0 ]; then
            why="the first pod has not founded yet"
        elif [ "$named" -eq 0 ]; then
            say "no sentinel knows a primary: this is the first start, and $SELF founds"
            touch "$DATA_DIR/founder"
            primary=$SELF
        elif [ "$primary" = "$SELF" ] && ! has_data && [ ! -e "$DATA_DIR/founder" ]; then
            why="the sentinels take this pod for the primary, but its volume is empty: another must take over"
        elif [ "$primary" = "$SELF" ] && [ "$votes" -lt "$named" ] && [ "$patience" -gt 0 ]; then
            # A failover may be under way, which not all of them have heard of yet.
            patience=$((patience - 1))
            why="$votes sentinels take this pod for the primary, and another does not"
        fi
        [ -z "$why" ] && return
        [ "$why" = "$last" ] || say "waiting: $why"
        last=$why
        sleep "${RETRY_SECONDS:-2}"
    done
}

# The pod's own sentinel watches the same primary, with the chart's present times and password.
teach_sentinel() {
    until known=$(ask "$SELF" "$SENTINEL_PORT" SENTINEL GET-MASTER-ADDR-BY-NAME "$MASTER_NAME"); do
        sleep "${RETRY_SECONDS:-2}"
    done
    if [ -z "$known" ]; then
        until ask "$SELF" "$SENTINEL_PORT" SENTINEL MONITOR "$MASTER_NAME" "$primary" "$PORT" "$majority"; do
            say "waiting: the sentinel can't find $primary yet"
            sleep "${RETRY_SECONDS:-2}"
        done
    fi
    ask "$SELF" "$SENTINEL_PORT" SENTINEL SET "$MASTER_NAME" quorum "$majority" \
        down-after-milliseconds "$((DOWN_AFTER_SECONDS * 1000))" \
        failover-timeout "$((FAILOVER_SECONDS * 1000))" parallel-syncs 1 auth-pass "$password" >/dev/null
}

{
    echo "include $CONF"
    echo "dir $DATA_DIR"
    echo "port $PORT"
    echo "bind $BIND"
    echo "requirepass $password"
    echo "masterauth $password"
} >"$conf"

# What valkey-restore.sh has unpacked takes its place; what was there stays beside it.
adopt_restored() {
    [ -d "$DATA_DIR/restore/appendonlydir" ] || return 0
    if has_data; then
        mv "$DATA_DIR/appendonlydir" "$DATA_DIR/appendonlydir.before-$(date -u +%Y%m%dT%H%M%SZ)"
    fi
    mv "$DATA_DIR/restore/appendonlydir" "$DATA_DIR/appendonlydir"
    rmdir "$DATA_DIR/restore"
    say "starting from the restored copy"
}

case $MODE in
bundled)
    adopt_restored
    ;;
sentinel)
    find_primary
    teach_sentinel
    {
        echo "replica-announce-ip $SELF"
        echo "replica-announce-port $PORT"
        [ "$primary" = "$SELF" ] || echo "replicaof $primary $PORT"
    } >>"$conf"
    say "starting; the primary is $primary"
    ;;
cluster)
    {
        echo "cluster-announce-hostname $SELF"
        echo "cluster-announce-ip $POD_IP"
    } >>"$conf"
    ;;
esac
exec valkey-server "$conf"
