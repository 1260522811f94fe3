#!/usr/bin/env bash
# PostgreSQL for this machine alone, without docker: `postgres.sh start DIR PORT`, `postgres.sh stop DIR`.
#
# In: Debian's PostgreSQL (apt-get install postgresql). Out: a server on 127.0.0.1:PORT with data checksums and
# scram-sha-256 passwords, its files in DIR; on stdout the address for GPTLOOM_DATABASE (`gptloom up --database`).
# The role `gptloom` may create databases and nothing more; the superuser has no password, so nobody can log in as it.
# PostgreSQL refuses to run as root: then it runs as the user `postgres`, or `nobody`, who must be able to enter DIR.
set -euo pipefail
umask 077

die() {
    echo "error: $*" >&2
    exit 2
}

usage="usage: postgres.sh start DIR PORT | stop DIR"
[[ $# -ge 2 ]] || die "$usage"
action=$1 dir=$(realpath -m "$2")
bin=$(find /usr/lib/postgresql -name initdb -printf '%h\n' 2> /dev/null | sort -V | tail -1) || true
[[ -n $bin ]] || bin=$(dirname "$(command -v initdb)") || die "no PostgreSQL here; apt-get install postgresql"

owner=$(id -un)
[[ $owner != root ]] || owner=$(id -un postgres 2> /dev/null || echo nobody)
as_owner() {
    if [[ $(id -u) == 0 ]]; then
        (cd / && setpriv --reuid "$owner" --regid "$(id -g "$owner")" --clear-groups -- "$@")
    else
        "$@"
    fi
}

# A cluster made aside and renamed: a killed start leaves none behind that is half made.
create() {
    local fresh=$dir/data.part
    rm -rf "$fresh"
    (set +o pipefail && tr -dc 'a-zA-Z0-9' < /dev/urandom | head -c 32) > "$dir/password"
    as_owner "$bin/initdb" --pgdata "$fresh" --username postgres --auth-local reject --auth-host scram-sha-256 \
        --data-checksums --encoding UTF8 --locale C.UTF-8 > /dev/null
    as_owner tee -a "$fresh/postgresql.conf" > /dev/null <<< "listen_addresses = '127.0.0.1'
unix_socket_directories = ''"
    as_owner "$bin/postgres" --single -c log_checkpoints=off -D "$fresh" postgres > /dev/null <<< \
        "CREATE ROLE gptloom LOGIN CREATEDB PASSWORD '$(< "$dir/password")'"
    mv -T "$fresh" "$dir/data"
}

case $action in
    start)
        [[ ${3:-} =~ ^[0-9]+$ ]] || die "$usage"
        mkdir -p "$dir"
        chown "$owner" "$dir"
        as_owner test -w "$dir" || die "the user $owner cannot enter $dir; name a folder whose parents all may enter"
        [[ -d $dir/data ]] || create
        as_owner "$bin/pg_ctl" status -D "$dir/data" > /dev/null && running=yes || running=no
        if [[ $running == no ]]; then
            as_owner "$bin/pg_ctl" start -w -D "$dir/data" -l "$dir/log" -o "-p $3" > /dev/null ||
                die "PostgreSQL did not start; $dir/log says why: $(tail -1 "$dir/log" 2> /dev/null)"
        fi
        port=$(sed -n 4p "$dir/data/postmaster.pid")
        [[ $port == "$3" ]] || die "it already runs at port $port; stop it first: postgres.sh stop $dir"
        echo "postgresql://gptloom:$(< "$dir/password")@127.0.0.1:$port"
        ;;
    stop) as_owner "$bin/pg_ctl" stop -w -m fast -D "$dir/data" > /dev/null 2>&1 || die "no server runs in $dir" ;;
    *) die "$usage" ;;
esac
