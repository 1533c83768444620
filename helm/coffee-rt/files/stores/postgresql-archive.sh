#!/bin/sh
# archive_command: copies a finished segment of the write-ahead log (path $1, name $2) into the archive.
#
# PostgreSQL keeps the segment until this ends with 0: so it must be on the archive's disk, whole, under its
# name. Asked again for one that is there already (a crash in between), it compares.
set -eu
target=$ARCHIVE/wal/$2
if [ -e "$target" ]; then
    cmp -s "$1" "$target" && exit 0
    echo "$target is there already, with other contents" >&2
    exit 1
fi
dd if="$1" of="$target.new" bs=1048576 conv=fsync 2>/dev/null
mv "$target.new" "$target"
sync
