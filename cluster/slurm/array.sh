#!/bin/sh
# Submits an archive in parts: preparation, then the array, then the finish; prints the three job numbers.
#   sh array.sh PARTS ARCHIVE MODEL OUTPUT [option of sbatch ...]
# The finish waits until all parts have ended, well or not: it does what is missing, so that one bad node stops nothing.
# Each job waits for the lease of one that was killed on another node.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
parts=${1:?parts} archive=${2:?archive} model=${3:?model} output=${4:?output folder}
shift 4

first=$(sbatch --parsable --array=0 "$@" "$here/segment-array.sbatch" "$archive" "$model" "$output" "$parts")
array=$(sbatch --parsable --array="1-$parts" --dependency="afterany:$first" "$@" \
    "$here/segment-array.sbatch" "$archive" "$model" "$output" "$parts")
last=$(sbatch --parsable --dependency="afterany:$array" "$@" "$here/finish.sbatch" "$archive" "$model" "$output")
echo "$first $array $last"
