#!/usr/bin/env bash
# The benchmarks' command, as short as it can be.
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit
command -v valgrind >/dev/null || { echo "no valgrind"; exit 77; }
exec bench/run.sh --quick --clients 20 --burst 1000 --seconds 0.2
