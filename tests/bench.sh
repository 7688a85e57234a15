#!/usr/bin/env bash
# The benchmarks' commands, as short as they can be.
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit
command -v valgrind >/dev/null || { echo "no valgrind"; exit 77; }
bench/run.sh --quick --clients 20 --burst 1000 --seconds 0.2 && exec bench/run.sh --bus --quick
