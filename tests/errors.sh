#!/usr/bin/env bash
# What the header says to a compiler that cannot have it: the cause, and little else.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."

expect() { # CAUSE ARGUMENT...: of a program on standard input
    local said
    said=$("${CXX:-g++}" -fsyntax-only -I. -x c++ "${@:2}" - 2>&1) && { echo "compiled: $1"; exit 1; }
    grep -qF "$1" <<<"$said" || { echo "does not say '$1':"; head -n 20 <<<"$said"; exit 1; }
    [ "$(wc -l <<<"$said")" -le 12 ] || { echo "says too much beside '$1':"; head -n 30 <<<"$said"; exit 1; }
}

expect 'compile with -std=c++20' -std=c++17 <<<'#include "sse.hpp"'
expect 'compile without -fno-exceptions' -std=c++20 -fno-exceptions <<<'#include "sse.hpp"'
expect 'SSE_SOURCE goes with' -std=c++20 -DSSE_SOURCE <<<'#include "sse.hpp"'
expect 'cannot stand in one source file' -std=c++20 -DBOOST_ASIO_VERSION=101801 \
    <<<'#include "sse.hpp"'
