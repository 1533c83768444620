#!/bin/sh
# Unpacks a copy of the log (stdin, from valkey-backup.sh) beside the present one; the next start of the pod begins
# from it. For valkey.mode bundled.
set -eu
umask 077
. "${0%/*}/valkey.sh"
[ "$MODE" = bundled ] || {
    say "this pod runs in mode $MODE: restore in mode bundled, then switch (docs/operations/backup.md)"
    exit 1
}
rm -rf "$DATA_DIR/restore.new" "$DATA_DIR/restore"
mkdir "$DATA_DIR/restore.new"
tar -C "$DATA_DIR/restore.new" -xf -
[ -d "$DATA_DIR/restore.new/appendonlydir" ] || {
    say "no copy of a log came on stdin"
    exit 1
}
sync
mv "$DATA_DIR/restore.new" "$DATA_DIR/restore"
say "unpacked; delete the pod, and it starts from this copy"
