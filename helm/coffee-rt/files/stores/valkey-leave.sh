#!/bin/sh
# Before a Valkey pod stops: if it is a primary, a replica takes over first, with everything that was answered.
# Writes wait meanwhile. What doesn't come about in LEAVE_SECONDS is left to the failover after the stop.
set -eu
. "${0%/*}/valkey.sh"
read_password
LEAVE_SECONDS=${LEAVE_SECONDS:-45}

is_primary() {
    [ "$(ask "$SELF" "$PORT" INFO replication | field role)" = master ]
}

# The primary itself waits until the replica has everything (Valkey 9). An older one is told to hold its writes
# for as long as a failover may take.
hand_over_by_sentinel() {
    for host in $HOSTS; do
        # The pod's own sentinel is stopping too.
        [ "$host" = "$SELF" ] && continue
        if ask "$host" "$SENTINEL_PORT" SENTINEL FAILOVER "$MASTER_NAME" COORDINATED >/dev/null; then
            return 0
        fi
        ask "$SELF" "$PORT" CLIENT PAUSE "$((LEAVE_SECONDS * 1000))" WRITE >/dev/null || return 1
        if ask "$host" "$SENTINEL_PORT" SENTINEL FAILOVER "$MASTER_NAME" >/dev/null; then
            return 0
        fi
        ask "$SELF" "$PORT" CLIENT UNPAUSE >/dev/null || true
    done
    return 1
}

# The primary that the other sentinels name has a replica besides this pod: so it goes on taking orders.
is_handed_over() {
    for host in $HOSTS; do
        [ "$host" = "$SELF" ] && continue
        named=$(ask "$host" "$SENTINEL_PORT" SENTINEL GET-MASTER-ADDR-BY-NAME "$MASTER_NAME" | sed -n 1p)
        [ -n "$named" ] || continue
        [ "$named" != "$SELF" ] || return 1
        ask "$named" "$PORT" INFO replication | grep '^slave[0-9]' | grep -v "ip=$SELF," | grep -q 'state=online'
        return
    done
    return 1
}

hand_over_in_cluster() {
    mine=$(ask "$SELF" "$PORT" CLUSTER MYID) || return 1
    for host in $HOSTS; do
        [ "$host" = "$SELF" ] && continue
        state=$(ask "$host" "$PORT" CLUSTER NODES) || continue
        if echo "$state" | grep myself | grep -q "slave $mine "; then
            ask "$host" "$PORT" CLUSTER FAILOVER >/dev/null && return 0
        fi
    done
    return 1
}

is_primary || exit 0
case $MODE in
sentinel) hand_over_by_sentinel || exit 0 ;;
cluster) hand_over_in_cluster || exit 0 ;;
*) exit 0 ;;
esac
left=$LEAVE_SECONDS
while [ "$left" -gt 0 ]; do
    if [ "$MODE" = sentinel ]; then
        ! is_handed_over || exit 0
    else
        is_primary || exit 0
    fi
    sleep 1
    left=$((left - 1))
done
