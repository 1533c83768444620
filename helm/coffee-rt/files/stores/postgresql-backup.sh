#!/bin/sh
# Takes a base backup into the archive: postgresql-backup.sh [KEEP]
#
# Run in the pod (kubectl exec). Prints its name. With KEEP, only the newest KEEP base backups stay, and of the
# write-ahead log what the oldest of them needs: earlier moments can't be restored any more.
set -eu
umask 077
. "${0%/*}/postgresql.sh"
keep=${1:-0}
[ -n "${ARCHIVE:-}" ] || stop_with "there is no archive (postgresql.archive.enabled)"
name=$(date -u +%Y-%m-%dT%H-%M-%SZ)
folder=$ARCHIVE/base
rm -rf "$folder"/*.new
pg_basebackup -h "${PGHOST:-/tmp}" -p "${PGPORT:-5432}" -U postgres -D "$folder/$name.new" \
    --checkpoint=fast --wal-method=fetch
verify_backup "$folder/$name.new" || stop_with "the base backup is damaged: look at the disks"
sync
mv "$folder/$name.new" "$folder/$name"
say "base backup $name, $(du -sh "$folder/$name" | cut -f1)"
[ "$keep" -gt 0 ] || exit 0
ls "$folder" | sort -r | tail -n "+$((keep + 1))" | while read -r old; do
    rm -rf "${folder:?}/$old"
    say "removed base backup $old"
done
oldest=$(ls "$folder" | sort | sed -n 1p)
first=$(sed -n 's/^START WAL LOCATION: .*(file \([0-9A-F]*\)).*/\1/p' "$folder/$oldest/backup_label")
pg_archivecleanup "$ARCHIVE/wal" "$first"
say "the archive begins with $oldest"
