#!/bin/sh
# Probes of a Valkey pod: valkey-probe.sh started | ready | alive
#
# started: its file is read. ready: it reads its keys, a replica is in step with its primary, a node of a cluster
# sees the cluster. Ready does NOT ask for a write: a full server refuses orders but must be reached by the
# workers, who make room. alive: it answers anything at all, an error too. A server with a full or slow disk
# answers errors, or late; killing it would only make it read its file again.
set -eu
. "${0%/*}/valkey.sh"
read_password

answer() {
    timeout "${ASK_SECONDS:-10}" valkey-cli -h "$SELF" -p "$PORT" "$@" 2>/dev/null
}

case ${1:-} in
alive)
    [ -n "$(answer PING)" ]
    ;;
started)
    ask "$SELF" "$PORT" DBSIZE >/dev/null
    ;;
ready)
    ask "$SELF" "$PORT" DBSIZE >/dev/null
    state=$(ask "$SELF" "$PORT" INFO replication)
    case $(echo "$state" | field role) in
    master) ;;
    *) [ "$(echo "$state" | field master_link_status)" = up ] ;;
    esac
    if [ "$MODE" = cluster ]; then
        [ "$(ask "$SELF" "$PORT" CLUSTER INFO | field cluster_state)" = ok ]
    fi
    ;;
*)
    say "started, ready or alive?"
    exit 2
    ;;
esac
