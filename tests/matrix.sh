#!/usr/bin/env bash
# Builds a part of the tests in another way, and runs it.
#   tests/matrix.sh                           lists the ways, the longest first
#   tests/matrix.sh DIRECTORY ITEM            one of them
#   tests/matrix.sh DIRECTORY ITEM build OUTPUT DEPFILE    builds it, as ninja wants it told
#   tests/matrix.sh DIRECTORY ITEM run        runs what was built
set -euo pipefail
from=$PWD
cd "$(dirname "$0")/.."
root=$PWD
items=(asan_g++ windows macros 32_bit integer optimized std23_g++ std23_clang no_exceptions)
[ $# -gt 0 ] || { printf '%s\n' "${items[@]}"; exit; }
dir=$1/$2
step=${3:-both}
mkdir -p "$dir"
noted=()
[ "$step" != build ] || noted=(-MD -MT "$4" -MF "$from/$5") # which files it was made of
# Without the second each thread begins with 11 MB for what its functions have left on the stack.
export ASAN_OPTIONS=detect_stack_use_after_return=1:max_uar_stack_size_log=16

warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wshadow)
not_there=(-Wno-restrict -Wno-subobject-linkage -Wno-mismatched-new-delete) # see tests/meson.build
sections=(message parser ring head body origin peer topic log feed)

# compile COMPILER FLAGS -- TEST...: these test files as one program, since each that stands alone
# costs the whole header once more.
compile() {
    [ "$step" != run ] || return 0
    local command=()
    while [ "$1" != -- ]; do command+=("$1"); shift; done
    shift
    printf '#include "tests/%s.cpp"\n' main "$@" >"$dir/all.cpp"
    "${command[@]}" -I"$root" -I"$root/tests" ${ASIO_DIR:+"-isystem$ASIO_DIR"} "${noted[@]}" "$dir/all.cpp" \
        -pthread -o "$dir/all"
}

run() {
    [ "$step" = build ] || "$@"
}

no_exceptions() { # said before all else
    [ "$step" != run ] || return 0
    g++ -std=c++20 -fno-exceptions -Wfatal-errors -fsyntax-only -I"$root" "${noted[@]}" \
        "$root/tests/header_alone.cpp" 2>"$dir/said" && return 1
    grep 'error: .*sse.hpp needs exceptions' "$dir/said"
}

# Optimized under the sanitizer, where coroutines have been miscompiled. Its checks are calls, since
# what is inline is optimized too, in twice the time.
std23_g++() {
    compile g++ -std=c++23 -fno-rtti -O2 -fsanitize=address --param asan-instrumentation-with-call-threshold=0 \
        "${warnings[@]}" "${not_there[@]}" -Werror -- shapes
    run "$dir/all"
}

std23_clang() {
    compile clang++-19 -std=c++23 -fno-rtti "${warnings[@]}" -Werror -- shapes
    run "$dir/all"
}

optimized() {
    compile g++ -std=c++20 -O3 -DNDEBUG "${not_there[@]}" -- ring topic log shapes
    run "$dir/all"
}

# The variant asan is clang's: where coroutines are, g++ makes other code, and clang's AddressSanitizer
# does not leave malloc to faults.cpp.
asan_g++() {
    compile g++ -std=c++20 -g1 -fsanitize=address -D_GLIBCXX_ASSERTIONS -DSSE_INTERNALS -fno-inline -rdynamic \
        -DSSE_ENABLE_ZLIB -Wl,--no-as-needed -lz -- faults handlers body stream client jobs replay drain
    run side_by_side # each takes minutes
}
side_by_side() {
    "$dir/all" --source-file='*/faults.cpp' &
    "$dir/all" --source-file-exclude='*/faults.cpp'
    wait $!
}

macros() { # each of those that need a library, alone
    [ "$step" != run ] || return 0
    local macro
    for macro in IO_URING TLS ZLIB REDIS NATS; do
        g++ -std=c++20 -DSSE_ENABLE_$macro "${warnings[@]}" "${not_there[@]}" -Werror -fsyntax-only \
            -I"$root" ${ASIO_DIR:+"-isystem$ASIO_DIR"} "${noted[@]}" "$root/tests/header_alone.cpp"
    done
}

integer() { # as the fuzzers have it
    compile clang++-19 -std=c++20 -O1 -fsanitize=undefined,integer -fno-sanitize-recover=all \
        -fsanitize-ignorelist=tests/fuzz/meant.txt -- parser head body origin peer message
    run "$dir/all"
}

# The kernel may know no 32-bit programs, so qemu runs it. The tests count places in 64 bits and
# may convert, the header not.
32_bit() {
    compile g++ -m32 -std=c++20 -O1 "${warnings[@]}" "${not_there[@]}" -- "${sections[@]}" \
        2>"$dir/warnings"
    if grep -E '/sse\.hpp:.*warning' "$dir/warnings"; then return 1; fi
    run qemu-i386 "$dir/all" -tce='*random*,*threads*'
}

# Linked, not run: under Wine 8 Asio got no thread for its timers. Asio comes from a folder of its
# own, since the compiler has other C headers than this system.
windows() {
    [ "$step" != run ] || return 0
    mkdir -p "$dir/asio"
    ln -sfn "${ASIO_DIR:-/usr/include}"/asio{,.hpp} "$dir/asio"
    x86_64-w64-mingw32-g++-posix -std=c++20 "${warnings[@]}" "${not_there[@]}" -Werror \
        -Wa,-mbig-obj -D_WIN32_WINNT=0x0A00 -I"$root" -isystem "$dir/asio" "${noted[@]}" \
        "$root/examples/clock.cpp" -o "$dir/clock.exe" -lws2_32 -lmswsock
}

# Not in the list: it is the variant valgrind of run.sh.
memcheck() {
    compile g++ -std=c++20 -O1 -g1 -- message parser head body shapes
    run valgrind -q --error-exitcode=9 --leak-check=full "$dir/all" -tce='*random*'
}

"$2"
[ "$step" != build ] || touch "$from/$4"
