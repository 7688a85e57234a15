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
expect 'cannot be included in one source file' -std=c++20 -DBOOST_ASIO_VERSION=101801 \
    <<<'#include "sse.hpp"'

# A file of a program that is compiled separately reads the interface alone, which makes it quick.
reads() { # ARGUMENT...: whether it then reads what is in namespace detail
    "${CXX:-g++}" -std=c++20 -I. -E -DSSE_SEPARATE_COMPILATION "$@" -x c++ - <<<'#include "sse.hpp"' |
        grep -c 'class head_parser' || true
}
[ "$(reads)" = 0 ] || { echo 'a file compiled separately reads all of the header'; exit 1; }
for macro in SSE_INTERNALS SSE_SOURCE; do
    [ "$(reads -D$macro)" = 1 ] || { echo "with $macro the machine room is missing"; exit 1; }
done

# Files that differ in what changes the header's classes.
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
compile() { "${CXX:-g++}" -std=c++20 -I. -DSSE_SEPARATE_COMPILATION -x c++ -c -o "$folder/$1" "${@:2}" -; }
compile one.o <<<'#include "sse.hpp"
    void run(sse::server&);
    int main() { run(*static_cast<sse::server*>(nullptr)); }'
for macro in SSE_ENABLE_IO_URING:liburing.h SSE_ENABLE_TLS:openssl/provider.h SSE_ENABLE_ZLIB:zlib.h \
    SSE_TESTING:errno.h; do
    [ -e "/usr/include/${macro#*:}" ] || continue
    compile other.o "-D${macro%:*}" <<<'#include "sse.hpp"
        void run(sse::server&) {}'
    said=$("${CXX:-g++}" "$folder"/*.o -o "$folder/all" 2>&1) && { echo 'a mix of macros links'; exit 1; }
    grep -q 'undefined reference to .run(sse::server&)' <<<"$said" || { echo "$said"; exit 1; }
done
