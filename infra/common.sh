# shellcheck shell=bash disable=SC2034
# What backup.sh and restore.sh share: where an installation lies, and the digests of a folder. Sourced, not run.
#
# In: $GPTLOOM_HOME (.gptloom), $GPTLOOM_STORE (./store), and with PostgreSQL $GPTLOOM_DATABASE
# (postgresql://user:password@host:port) or libpq's own PGHOST, PGPORT, PGUSER, PGPASSWORD, PGPASSFILE beside it.
set -euo pipefail
umask 077
export LC_ALL=C

home=$(realpath -m "${GPTLOOM_HOME:-.gptloom}")

# What `gptloom up` was told and keeps, where the environment is silent.
told() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1])).get(sys.argv[2], ""))' "$home/servers.json" "$1" 2> /dev/null || true
}
store=${GPTLOOM_STORE:-$(told store)}
store=$(realpath -m "${store:-store}")
database=${GPTLOOM_DATABASE:-$(told database)}

die() {
    echo "error: $*" >&2
    exit 2
}

# What a folder holds: the digest of every file, the target of every link, in one order.
sums() (
    cd "$1"
    find . -type f ! -path ./SHA256SUMS -print0 | sort -z | xargs -0r sha256sum
    find . -type l -printf '%p -> %l\n' | sort
)

# Copy a folder as it is, hard links too. Files may grow, appear and vanish meanwhile: that is tar's status 1.
copy() {
    local from=$1 to=$2
    shift 2
    mkdir -p "$to"
    { tar -C "$from" --warning=no-file-changed --warning=no-file-removed "$@" -cf - . || [[ $? == 1 ]]; } |
        tar -C "$to" -xpf -
}

# Take the address apart for libpq, which reads the environment: every user of the machine sees a command's words.
connect() {
    local settings
    settings=$(GPTLOOM_DATABASE=$database python3 -c '
import os, shlex, sys
from urllib.parse import unquote, urlsplit

url = urlsplit(os.environ["GPTLOOM_DATABASE"])
if url.scheme != "postgresql" or not url.hostname or url.path.strip("/") or url.query:
    sys.exit("error: GPTLOOM_DATABASE must read postgresql://user:password@host:port, and nothing behind the port")
parts = {"PGHOST": url.hostname, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
print("export", *(f"{k}={shlex.quote(unquote(str(v)))}" for k, v in parts.items() if v))
') || exit 2
    eval "$settings"
    export PGCONNECT_TIMEOUT="${PGCONNECT_TIMEOUT:-10}"
}

# One value from a database, asked without a prompt for passwords.
ask() {
    psql --no-psqlrc --no-password --tuples-only --no-align --quiet --dbname "$1" --command "$2"
}

has_database() {
    [[ $(ask postgres "SELECT count(*) FROM pg_database WHERE datname = '$1'") == 1 ]]
}
