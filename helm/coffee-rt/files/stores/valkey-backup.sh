#!/bin/sh
# Copies the log of a running server: a tar of its append-only files on stdout.
#
# The files are not rewritten meanwhile, so they belong together. The last entry may be cut off; the server that
# starts from the copy drops it.
set -eu
. "${0%/*}/valkey.sh"
read_password
usual=$(ask "$SELF" "$PORT" CONFIG GET auto-aof-rewrite-percentage | sed -n 2p)
trap 'ask "$SELF" "$PORT" CONFIG SET auto-aof-rewrite-percentage "$usual" >/dev/null' EXIT
ask "$SELF" "$PORT" CONFIG SET auto-aof-rewrite-percentage 0 >/dev/null
while [ "$(ask "$SELF" "$PORT" INFO persistence | field aof_rewrite_in_progress)" != 0 ]; do
    sleep 1
done
code=0
tar -C "$DATA_DIR" -cf - appendonlydir || code=$?
# 1: a file grew while it was read, as it should.
[ "$code" -le 1 ]
