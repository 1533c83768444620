#!/bin/sh
# Forms a Valkey Cluster out of the pods and keeps it together; runs beside each server, for ever.
#
# Each round is safe to repeat and to be cut off anywhere:
#   meet    a pod that answers, but is not connected, is introduced by its present address (addresses change at
#           each start of a pod; after a restart of all of them nobody would find anybody)
#   create  only the first pod, only when ALL pods answer, none knows of all slots and none holds a key: slots are
#           given out in equal shares. So a pod that lost its volume never makes a second, empty cluster.
#   follow  a server without slots becomes a replica, once PRIMARIES servers have slots
#   forget  the ids of servers whose volume was lost
set -eu
. "${0%/*}/valkey.sh"
read_password
end_when_told
SLOTS=16384

own() {
    ask "$SELF" "$PORT" "$@"
}

# Lines `id host,flags,master,link,first-slot` of what a host sees.
nodes_seen_by() {
    ask "$1" "$PORT" CLUSTER NODES | while read -r id address flags master _ _ _ link slots; do
        case $address in
        *,*) name=${address#*,} ;;
        *) name=- ;;
        esac
        echo "$id ${name%%,*} $flags $master $link ${slots:--}"
    done
}

meet() {
    for host in $HOSTS; do
        [ "$host" = "$SELF" ] && continue
        echo "$seen" | grep -v -E ' [a-z,]*fail' | grep " $host " | grep -q ' connected ' && continue
        id=$(ask "$host" "$PORT" CLUSTER MYID) || continue
        if ! echo "$seen" | grep "^$id " | grep -q ' connected '; then
            address=$(ask "$host" "$PORT" CONFIG GET cluster-announce-ip | sed -n 2p)
            [ -n "$address" ] || continue
            own CLUSTER MEET "$address" "$PORT" >/dev/null && say "met $host at $address" || true
        fi
    done
}

create() {
    [ "$(own CLUSTER INFO | field cluster_slots_assigned)" != "$SLOTS" ] || return 0
    for host in $HOSTS; do
        assigned=$(ask "$host" "$PORT" CLUSTER INFO | field cluster_slots_assigned) || return 0
        keys=$(ask "$host" "$PORT" DBSIZE) || return 0
        if [ -z "$assigned" ] || [ "$assigned" -eq "$SLOTS" ]; then
            return 0
        fi
        if [ "$keys" -ne 0 ]; then
            say "slots are missing, and $host holds keys: that is for an administrator (docs/operations/stores.md)"
            return 0
        fi
    done
    part=0
    for host in $HOSTS; do
        [ "$part" -lt "$PRIMARIES" ] || break
        first=$((part * SLOTS / PRIMARIES)) last=$(((part + 1) * SLOTS / PRIMARIES - 1))
        if nodes_seen_by "$host" | grep myself | grep -q ' -$'; then
            ask "$host" "$PORT" CLUSTER ADDSLOTSRANGE "$first" "$last" >/dev/null &&
                say "$host has slots $first to $last"
        fi
        part=$((part + 1))
    done
}

# Id of the primary this server should follow: its planned one, else the one with the fewest replicas.
choose_primary() {
    planned=$(($(ordinal_of "$SELF") % PRIMARIES)) position=0 fewest=
    for host in $HOSTS; do
        [ "$position" -eq "$planned" ] && break
        position=$((position + 1))
    done
    echo "$owners" | grep " $host " | cut -d' ' -f1 | grep . && return
    echo "$owners" | while read -r id _; do
        replicas=$(echo "$seen" | grep -c " [a-z,]*slave[a-z,]* $id " || true)
        echo "$replicas $id"
    done | sort -n | sed -n '1s/.* //p'
}

follow() {
    echo "$seen" | grep ' myself,master ' | grep -q ' -$' || return 0
    owners=$(echo "$seen" | grep ' [a-z,]*master ' | grep -v -E ' (fail|[a-z,]*,fail) ' | grep -v ' -$' || true)
    [ "$(echo "$owners" | grep -c .)" -ge "$PRIMARIES" ] || return 0
    [ "$(own CLUSTER INFO | field cluster_slots_assigned)" = "$SLOTS" ] || return 0
    [ "$(own DBSIZE)" = 0 ] || return 0
    chosen=$(choose_primary)
    [ -n "$chosen" ] || return 0
    own CLUSTER REPLICATE "$chosen" >/dev/null && say "follows $chosen"
}

forget() {
    echo "$seen" | while read -r id name flags _ _ slots; do
        case ,$flags, in *,fail,*) ;; *) continue ;; esac
        [ "$slots" = - ] || continue
        present=$(ask "$name" "$PORT" CLUSTER MYID) || continue
        [ "$present" = "$id" ] && continue
        own CLUSTER FORGET "$id" >/dev/null && say "forgot $id, which $name no longer is"
    done
}

while :; do
    if seen=$(nodes_seen_by "$SELF") && [ -n "$seen" ]; then
        meet || true
        if [ "$(ordinal_of "$SELF")" -eq 0 ]; then
            create || true
        fi
        seen=$(nodes_seen_by "$SELF") || seen=
        follow || true
        forget || true
    fi
    sleep "${TEND_SECONDS:-5}"
done
