#!/usr/bin/env bash
# Builds a part of the tests in another way, and runs it.
#   tests/matrix.sh                     lists the ways, the longest first
#   tests/matrix.sh DIRECTORY ITEM      one of them
set -euo pipefail
cd "$(dirname "$0")/.."
items=(faults_asan asan_g++ windows macros 32_bit integer optimized shapes_asan std23_g++ std23_clang no_exceptions)
[ $# -gt 0 ] || { printf '%s\n' "${items[@]}"; exit; }
dir=$1/$2
mkdir -p "$dir"

warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wshadow)
not_there=(-Wno-restrict -Wno-subobject-linkage -Wno-mismatched-new-delete) # see tests/meson.build
sections=(message parser ring head body origin peer topic log feed)

# compile COMPILER FLAGS -- TEST...: these test files as one program, since each that stands alone
# costs the whole header once more.
compile() {
    local command=()
    while [ "$1" != -- ]; do command+=("$1"); shift; done
    shift
    printf '#include "tests/%s.cpp"\n' main "$@" >"$dir/all.cpp"
    "${command[@]}" -I. -Itests ${ASIO_DIR:+"-isystem$ASIO_DIR"} "$dir/all.cpp" -pthread \
        -o "$dir/all"
}

no_exceptions() { # said before all else
    g++ -std=c++20 -fno-exceptions -Wfatal-errors -fsyntax-only -I. tests/header_alone.cpp \
        2>"$dir/said" && return 1
    grep 'error: .*sse.hpp needs exceptions' "$dir/said"
}

std23_g++() {
    compile g++ -std=c++23 -fno-rtti "${warnings[@]}" "${not_there[@]}" -Werror -- shapes
    "$dir/all"
}

std23_clang() {
    compile clang++-19 -std=c++23 -fno-rtti "${warnings[@]}" -Werror -- shapes
    "$dir/all"
}

optimized() {
    compile g++ -std=c++20 -O3 -DNDEBUG "${not_there[@]}" -- ring topic log shapes
    "$dir/all"
}

shapes_asan() {
    compile g++ -std=c++20 -O2 -fsanitize=address -- shapes
    ASAN_OPTIONS=detect_stack_use_after_return=1 "$dir/all"
}

asan_g++() { # the variant asan is clang's; where coroutines are, g++ makes other code
    compile g++ -std=c++20 -g1 -fsanitize=address -D_GLIBCXX_ASSERTIONS -DSSE_INTERNALS -- \
        handlers body stream client jobs replay drain
    ASAN_OPTIONS=detect_stack_use_after_return=1 "$dir/all"
}

faults_asan() { # clang's AddressSanitizer does not leave malloc to this test
    compile g++ -std=c++20 -g1 -fsanitize=address -D_GLIBCXX_ASSERTIONS -fno-inline -rdynamic -- faults
    ASAN_OPTIONS=detect_stack_use_after_return=1 "$dir/all"
}

macros() { # each of those that need a library, alone
    local macro
    for macro in IO_URING TLS ZLIB REDIS NATS; do
        g++ -std=c++20 -DSSE_ENABLE_$macro "${warnings[@]}" "${not_there[@]}" -Werror -fsyntax-only \
            -I. ${ASIO_DIR:+"-isystem$ASIO_DIR"} tests/header_alone.cpp
    done
}

integer() { # as the fuzzers have it
    compile clang++-19 -std=c++20 -O1 -fsanitize=undefined,integer -fno-sanitize-recover=all \
        -fsanitize-ignorelist=tests/fuzz/meant.txt -- parser head body origin peer message
    "$dir/all"
}

# The kernel may know no 32-bit programs, so qemu runs it. The tests count places in 64 bits and
# may convert, the header not.
32_bit() {
    compile g++ -m32 -std=c++20 -O1 "${warnings[@]}" "${not_there[@]}" -- "${sections[@]}" \
        2>"$dir/warnings"
    if grep -E '^(\./)?sse\.hpp:.*warning' "$dir/warnings"; then return 1; fi
    qemu-i386 "$dir/all" -tce='*random*,*threads*'
}

# Linked, not run: under Wine 8 Asio got no thread for its timers. Asio comes from a folder of its
# own, since the compiler has other C headers than this system.
windows() {
    mkdir -p "$dir/asio"
    ln -sfn "${ASIO_DIR:-/usr/include}"/asio{,.hpp} "$dir/asio"
    local program
    for program in tests/header_alone examples/clock; do
        x86_64-w64-mingw32-g++-posix -std=c++20 "${warnings[@]}" "${not_there[@]}" -Werror \
            -Wa,-mbig-obj -D_WIN32_WINNT=0x0A00 -I. -isystem "$dir/asio" $program.cpp \
            -o "$dir/$(basename $program).exe" -lws2_32 -lmswsock
    done
}

# Not in the list: it is the variant valgrind of run.sh.
memcheck() {
    compile g++ -std=c++20 -O1 -g1 -- message parser head body shapes
    valgrind -q --error-exitcode=9 --leak-check=full "$dir/all" -tce='*random*'
}

"$2"
