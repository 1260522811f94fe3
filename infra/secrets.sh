#!/usr/bin/env bash
# The secrets of compose.yaml: `secrets.sh [FOLDER]`, FOLDER being this one unless named otherwise.
#
# Out: FOLDER/.env, made of .env.example with random secrets where a value is empty, or left as it is where it exists;
# FOLDER/secrets/htpasswd for the proxy, always made anew from .env. The hash is readable for the proxy's user, its
# folder for the owner alone. FOLDER/secrets/kubernetes/NAME/ holds the same as files for `kubectl create secret generic
# NAME --from-file`. No secret is ever a command's argument, where `ps` would show it.
set -euo pipefail
umask 077
here=$(dirname "$(realpath "$0")")
folder=$(realpath -m "${1:-$here}")
mkdir -p "$folder/secrets"

if [[ ! -e $folder/.env ]]; then
    while IFS= read -r line; do
        [[ $line =~ ^[A-Z_]+=$ ]] && line+=$(openssl rand -hex 24)
        printf '%s\n' "$line"
    done < "$here/.env.example" > "$folder/.env.part"
    mv "$folder/.env.part" "$folder/.env"
    echo "made $folder/.env; user and password are in it"
fi

value() {
    sed -n "s/^$1=//p" "$folder/.env"
}
user=$(value GPTLOOM_USER) password=$(value GPTLOOM_PASSWORD)
if [[ -z $user || ${#password} -lt 12 ]]; then
    echo "error: $folder/.env needs GPTLOOM_USER, and a GPTLOOM_PASSWORD of 12 characters (MLflow's rule)" >&2
    exit 2
fi
hash=$(openssl passwd -6 -stdin <<< "$password")
printf '%s:%s\n' "$user" "$hash" > "$folder/secrets/htpasswd.part"
chmod 644 "$folder/secrets/htpasswd.part"
mv "$folder/secrets/htpasswd.part" "$folder/secrets/htpasswd"

key() {
    mkdir -p "$folder/secrets/kubernetes/$1"
    printf %s "$3" > "$folder/secrets/kubernetes/$1/$2"
}
key gptloom-prefect auth-string "$user:$password"
key gptloom-prefect postgres-password "$(value POSTGRES_PASSWORD)"
key gptloom-mlflow PGPASSWORD "$(value POSTGRES_PASSWORD)"
key gptloom-mlflow MLFLOW_AUTH_ADMIN_USERNAME "$user"
key gptloom-mlflow MLFLOW_AUTH_ADMIN_PASSWORD "$password"
key gptloom-mlflow MLFLOW_FLASK_SERVER_SECRET_KEY "$(value MLFLOW_FLASK_SERVER_SECRET_KEY)"
key gptloom-client PREFECT_API_AUTH_STRING "$user:$password"
key gptloom-client MLFLOW_TRACKING_USERNAME "$user"
key gptloom-client MLFLOW_TRACKING_PASSWORD "$password"
