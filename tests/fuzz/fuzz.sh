#!/usr/bin/env bash
# Runs one target of fuzz.cpp: first what is known, its seeds and what earlier runs have found, then
# new inputs for FUZZ_SECONDS (10; 0: none). Shows the input that broke a rule; run the program on
# that file to see it again.
#   tests/fuzz/fuzz.sh                      lists the targets, by their seeds
#   tests/fuzz/fuzz.sh PROGRAM              whether these are the targets of the program
#   tests/fuzz/fuzz.sh PROGRAM TARGET
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || { ls "$here/seeds"; exit; }
program=$(realpath "$1")
[ $# -gt 1 ] || { diff <("$program" | sort) <(ls "$here/seeds" | sort); exit; }
target=$2 seconds=${FUZZ_SECONDS:-10}
folder=$(dirname "$program")/../fuzzing
mkdir -p "$folder/corpus/$target"
cd "$folder"
ln -sf "$program" "$target"
number=0
while IFS= read -r seed; do
    printf '%b' "$seed" >"corpus/$target/seed-$((number += 1))"
done <"$here/seeds/$target"

run() {
    "./$target" "corpus/$target" "$@" -dict="$here/http.dict" -artifact_prefix="$target-" \
        -max_len=2000 -timeout=60 -print_final_stats=1
}
run -runs=0
[ "$seconds" -eq 0 ] || run -max_total_time="$seconds"
