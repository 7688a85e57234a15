#!/usr/bin/env bash
# The benchmarks' commands, as short as they can be.
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit
command -v valgrind >/dev/null || { echo "no valgrind"; exit 77; }
quick=(--quick --clients 20 --burst 1000 --seconds 0.2)
bench/run.sh "${quick[@]}" || exit
[ ! -e /usr/include/openssl/provider.h ] || bench/run.sh --tls "${quick[@]}" || exit
if [ -e /usr/include/zlib.h ]; then
    bench/run.sh --compress "${quick[@]}" || exit
else
    echo "no zlib1g-dev: not --compress"
fi
exec bench/run.sh --bus --quick
