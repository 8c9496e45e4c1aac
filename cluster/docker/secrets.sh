#!/bin/sh
# Makes the password files of compose.yaml, once; keeps those that exist. Readable by group 10001, the containers' own.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
for name in postgres_password s3_key s3_secret mlflow_password mlflow_session_key ray_token; do
    [ -s "secrets/$name" ] || head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "secrets/$name"
    chmod 0444 "secrets/$name" # in a folder of mode 0700: containers mount the files, other users cannot reach them
done
