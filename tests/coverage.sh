#!/usr/bin/env bash
# The lines of the header that the tests and what the fuzzers know reach: 95 of 100, or it fails.
#   tests/coverage.sh BUILD_DIRECTORY        where they have left *.profraw
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
objects=()
for object in tests_testing tests_io_uring tests_hub tests_over tests_faults fuzz; do
    objects+=(-object "$1/tests/$object")
done
llvm-profdata-19 merge -sparse "$1"/*.profraw -o "$1/all.profdata"
llvm-cov-19 show "$1/tests/tests" "${objects[@]}" -instr-profile="$1/all.profdata" \
    -show-instantiations=false sse.hpp >"$1/sse.hpp.txt"
awk -F'|' '$2 ~ /[0-9]/ { ++lines; if ($2 + 0 > 0) ++reached; else print }
    END { printf "coverage: %.2f %% of %d lines\n", 100 * reached / lines, lines }' \
    "$1/sse.hpp.txt" | tee "$1/missed.txt"
awk '/^coverage/ { exit $2 < 95 }' "$1/missed.txt"
