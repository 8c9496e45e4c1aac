#!/bin/sh
# Submits a segmentation to a running Ray cluster and follows it; ends with the job's exit code.
#   RAY_ADDRESS=http://HEAD:8265 RAY_AUTH_TOKEN_PATH=~/.ray/auth_token sh submit.sh ARCHIVE MODEL OUTPUT WORKERS
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${RAY_ADDRESS:?the address of the cluster, like http://head:8265}"
archive=${1:?archive} model=${2:?model} output=${3:?output folder} workers=${4:?workers}
export RAY_AUTH_MODE=token
exec ray job submit --runtime-env "$here/runtime_env.yaml" -- \
    unetpp segment "$archive" --model "$model" --output "$output" \
    --executor ray --workers "$workers" --set executor.address=auto
