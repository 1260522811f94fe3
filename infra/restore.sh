#!/usr/bin/env bash
# Restore what backup.sh has made: `restore.sh FOLDER`, into empty places, with the servers down.
#
# In: FOLDER, and the new places as in common.sh. Out: $GPTLOOM_HOME, $GPTLOOM_STORE and, from PostgreSQL's dumps, the
# databases. Nothing is touched before every digest of SHA256SUMS was compared, and nothing that exists is overwritten.
# shellcheck source=infra/common.sh
source "$(dirname "$(realpath "$0")")/common.sh"

[[ $# == 1 ]] || die "usage: restore.sh FOLDER (made by backup.sh)"
from=$(realpath -m "$1")
[[ -f $from/SHA256SUMS ]] || die "$from has no SHA256SUMS: it is no backup, or not a whole one"
found=$(mktemp)
part=
trap 'rm -rf "$found" ${part:+"$part"}' EXIT
sums "$from" > "$found"
cmp -s "$found" "$from/SHA256SUMS" ||
    die "$from is damaged, first at $(diff -a "$found" "$from/SHA256SUMS" |
        sed -nE '/^[<>] /{s/^[<>] ([0-9a-f]{64}  )?//p;q}'); take another backup"

empty() {
    [[ ! -e $1 ]] || { [[ -d $1 && -z $(ls -A "$1") ]]; }
}
empty "$home" || die "GPTLOOM_HOME ($home) is not empty; name a new folder, or move this one away"
empty "$store" || die "GPTLOOM_STORE ($store) is not empty; name a new folder, or move this one away"

if [[ -d $from/databases ]]; then
    [[ -n $database ]] || die "the backup is of PostgreSQL; set GPTLOOM_DATABASE to a server for it"
    connect
    tables="SELECT count(*) FROM pg_stat_user_tables"
    for dump in "$from"/databases/*.dump; do
        name=$(basename "$dump" .dump)
        has_database "$name" || continue
        [[ $(ask "$name" "$tables") == 0 ]] || die "the database $name is not empty; drop it, or name another server"
    done
    for dump in "$from"/databases/*.dump; do
        name=$(basename "$dump" .dump)
        has_database "$name" || createdb --no-password "$name"
        pg_restore --no-password --exit-on-error --single-transaction --no-owner --no-acl --dbname "$name" "$dump"
    done
elif [[ -n $database ]]; then
    die "the backup is of SQLite files; unset GPTLOOM_DATABASE"
fi

for place in home store; do # in this order: the store may lie inside of home
    mkdir -p "$(dirname "${!place}")"
    part=$(mktemp -d "${!place}.XXXXXX.part")
    copy "$from/$place" "$part"
    sync --file-system "$part"
    [[ ! -d ${!place} ]] || rmdir "${!place}"
    mv -T "$part" "${!place}"
done
echo "restored $home and $store; start the servers as before: gptloom up [--auth] [--database URL]"
