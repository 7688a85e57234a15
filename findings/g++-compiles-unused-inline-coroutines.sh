#!/usr/bin/env bash
# In a debug build an inline Asio coroutine that nobody calls is compiled into every file that
# includes it; the same as a template is not.
#
# Library    standalone Asio 1.22.1 (`libasio-dev` 1:1.22.1-1 of Debian 12) with g++ 12 of Debian 12.
#            Needs apt-get, g++ 12, nm.
# Guess      An inline function that is not used leaves nothing in the object file, coroutine or not:
#            so a header-only library costs a program only what it calls.
# Behaviour  At -O0 g++ emits every inline coroutine that it has seen: the two functions that it splits
#            it into, resume and destroy, and with them all that they call. An unused plain
#            inline function, and an unused coroutine that is a template, leave nothing. At -O2 all
#            are gone from the object file.
# Seen       plain inline function at -O0: 0 functions
#            inline coroutine at -O0: 2 functions
#            coroutine template at -O0: 0 functions
#            inline coroutine at -O2: 0 functions
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install libasio-dev=1:1.22.1-1 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done
case $(g++ -dumpversion) in
12 | 12.*) ;;
*) echo "this is about g++ 12, not $(g++ -dumpversion)"; exit 1 ;;
esac

try() { # WHAT LEVEL DECLARATION EXPECTED
    printf '#include <asio/awaitable.hpp>\n#include <asio/use_awaitable.hpp>\n%s\nint main() {}\n' \
        "$3" >try.cpp
    g++ -std=c++20 "$2" -Iusr/include -c try.cpp -o try.o
    local count
    count=$(nm -C try.o | grep -c 'never_called' || true)
    echo "$1 at $2: $count functions"
    [ "$count" -eq "$4" ]
}
coroutine='inline asio::awaitable<int> never_called(int n) { co_return n + 1; }'
try 'plain inline function' -O0 'inline int never_called(int n) { return n + 1; }' 0
try 'inline coroutine' -O0 "$coroutine" 2
try 'coroutine template' -O0 \
    'template <class T> asio::awaitable<T> never_called(T n) { co_return n + 1; }' 0
try 'inline coroutine' -O2 "$coroutine" 0
