#!/usr/bin/env bash
# Runs one target of fuzz.cpp: first what is known, its seeds and what earlier runs have found, then
# new inputs for FUZZ_SECONDS (60; 0: none). Says "passed" at the end, or shows the input that broke
# a rule; run the program on that file to see it again.
#   tests/fuzz/fuzz.sh BUILD_DIRECTORY TARGET
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$2 seconds=${FUZZ_SECONDS:-60}
mkdir -p "$1/fuzzing/corpus/$target"
cd "$1/fuzzing"
ln -sf ../tests/fuzz "$target"
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
echo passed
