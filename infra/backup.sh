#!/usr/bin/env bash
# Back up all that a gptloom installation keeps, while its servers run: `backup.sh FOLDER`, a new one.
#
# In: see common.sh. Out: FOLDER with databases/*.dump (PostgreSQL), home/ (SQLite files, MLflow's artifacts, the
# credentials), store/ and SHA256SUMS. It is made aside and renamed: a FOLDER that exists is whole.
#
# The order makes it right without stopping anything: first how far each tracking journal was delivered, then the
# databases, then everything that they point to. So the databases never miss what the journals hold for delivered
# (`gptloom sync` sends the rest again, and MLflow takes each point once), nor the files what the databases name.
# Ports, pids, logs and the database's address (servers.json) belong to the machine, not to the backup.
# shellcheck source=infra/common.sh
source "$(dirname "$(realpath "$0")")/common.sh"

[[ $# == 1 ]] || die "usage: backup.sh FOLDER (a new one)"
out=$(realpath -m "$1")
[[ ! -e $out ]] || die "$out exists; name a new folder"
[[ $out/ != "$home"/* && $out/ != "$store"/* ]] || die "$out lies inside of what is backed up; name a folder elsewhere"
[[ -d $home || -d $store ]] || die "neither GPTLOOM_HOME ($home) nor GPTLOOM_STORE ($store) exists; set them"

if [[ -e $home/servers.json ]]; then # `up` was here: what it made must be found
    [[ -d $store ]] || die "there is no store at $store; set GPTLOOM_STORE"
    [[ -n $database || -f $home/mlflow.db ]] || die "$home has no mlflow.db; set GPTLOOM_DATABASE to PostgreSQL's address"
fi

mkdir -p "$(dirname "$out")"
part=$(mktemp -d "$out.XXXXXX.part")
trap 'rm -rf "$part"' EXIT
mkdir -p "$part/home" "$part/store/tracking"

if [[ -d $store/tracking ]]; then
    (cd "$store" && find tracking -name delivered.json -exec cp --parents -p -t "$part/store" {} +)
fi

if [[ -n $database ]]; then
    connect
    mkdir "$part/databases"
    for name in prefect mlflow mlflow_auth; do
        if ! has_database "$name"; then
            [[ $name == mlflow_auth ]] || die "the server has no database $name"
            continue  # it comes with `gptloom up --auth`
        fi
        pg_dump --no-password --format custom --file "$part/databases/$name.dump" "$name"
    done
else
    for file in prefect/prefect.db mlflow.db mlflow-auth.db; do
        [[ -f $home/$file ]] || continue
        mkdir -p "$(dirname "$part/home/$file")"
        python3 - "$home/$file" "$part/home/$file" <<'PYTHON' || exit 2
import sqlite3
import sys
from contextlib import closing

live, copy = sys.argv[1:]
try:  # one consistent state, also in the middle of a transaction
    with closing(sqlite3.connect(f"file:{live}?mode=rw", uri=True)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
        if (found := new.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            sys.exit(f"error: {live}: {found}")
except sqlite3.Error as error:
    sys.exit(f"error: {live}: {error}")
PYTHON
    done
fi

[[ ! -f $home/auth.json ]] || cp -p "$home/auth.json" "$part/home/"
[[ ! -d $home/mlartifacts ]] || copy "$home/mlartifacts" "$part/home/mlartifacts"
[[ ! -d $home/prefect ]] || copy "$home/prefect" "$part/home/prefect" --exclude='./prefect.db*'
[[ ! -d $store ]] || copy "$store" "$part/store" --exclude='./tracking/*/delivered.json'

sums "$part" > "$part/SHA256SUMS"
sync --file-system "$part"
mv -T "$part" "$out"
trap - EXIT
echo "$out: $(du -sh "$out" | cut -f1), $(wc -l < "$out/SHA256SUMS") files"
