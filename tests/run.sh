#!/usr/bin/env bash
# Sets up, builds and runs the tests.
#   ./tests/run.sh                 all tests in an optimized build, with curl and a real browser
#   ./tests/run.sh all             these, then the test program once more for each variant below
#   ./tests/run.sh VARIANT...      of: release asan tsan clang matrix fuzz soak, and of
#                                  coverage valgrind mutants, which are not among all
# SOAK_DURATION_SEC is how long the soak goes on: 30. SOAK_CLIENTS, SOAK_MSG_PER_SEC and
# SOAK_REPORT_SEC are its others: 200, 300, 10. SOAK=0 leaves it out.
# FUZZ_SECONDS is how long each of the fuzzers goes on: 60, or 0 for what is known already.
# ASIO_DIR=/path/to/asio/include takes another Asio than the system's. CXX is the compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/setup.sh

passed=0
failed=0
without=() # tests that a variant leaves out

# check NAME COMMAND...: one test; its output is shown when it fails.
check() {
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        passed=$((passed + 1))
        printf 'ok      %s\n' "$name"
    else
        failed=$((failed + 1))
        printf 'not ok  %s\n%s\n' "$name" "$output"
    fi
}

# check_log NAME FILE: one that ran beside others. The log of one that passed ends so.
check_log() {
    check "$1" sh -c 'tail -n 80 "$0" && tail -n 1 "$0" | grep -qx passed' "$2"
}

# Adds what a program's closing line counts: "N <word> passed", "N failed" in some form.
add_counts() {
    passed=$((passed + $1))
    failed=$((failed + $2))
}

# The cases of a test program in parts, two parts at a time: what most cases do is wait.
run_doctest() { # BUILD_DIRECTORY [PROGRAM]
    local program="$1/tests/${2:-tests}" log part found count bad=0
    local parts=6
    say "running $program"
    count=$("$program" "${without[@]}" --count | sed -n 's/.*filters: *//p')
    for part in $(seq $parts); do
        echo "$program.$part.log $program" "--first=$(((part - 1) * count / parts + 1))" \
            "--last=$((part * count / parts))" "${without[@]}"
    done | EXAMPLES=$PWD/$1/examples xargs -L 1 -P 2 sh -c \
        'log=$1; shift; "$@" >"$log" 2>&1 || echo "ended with $?" >>"$log"' sh
    for part in $(seq $parts); do # each of which counts the cases of the others as passed
        log="$program.$part.log"
        found=$(sed -n 's/^\[doctest\] test cases:.*| *\([0-9]*\) failed.*/\1/p' "$log")
        if grep -q '^ended with' "$log"; then
            cat "$log"
            [ "$found" != 0 ] || found=1 # a sanitizer's report, though every case passed
        fi
        bad=$((bad + ${found:-1}))
    done
    add_counts $((count - bad)) "$bad"
}

build() { # BUILD_DIRECTORY TARGET...
    say "building $1"
    ninja -C "$1" --quiet "${@:2}"
}

# run_node NAME ARGUMENT...: tests/NAME/NAME.mjs with what its package.json names, once installed.
run_node() {
    local name=$1 log=build/$1.log line
    (cd "tests/$name" && { [ -d node_modules ] || npm install --silent --no-audit --no-fund \
        --no-package-lock; })
    node "tests/$name/$name.mjs" "${@:2}" 2>&1 | tee "$log" || true
    line=$(grep -E "^$name: [0-9]+ passed, [0-9]+ failed\$" "$log" | tail -n 1 || true)
    if [ -z "$line" ]; then
        add_counts 0 1
    else
        add_counts "$(cut -d' ' -f2 <<<"$line")" "$(cut -d' ' -f4 <<<"$line")"
    fi
}

# The command of the README, the way a user types it; curl as the client.
run_script_starts_the_hub() {
    local log pid url page events
    log=$(mktemp)
    ./examples/run.sh --port 0 >"$log" 2>&1 &
    pid=$!
    while ! url=$(grep -oE 'http://[^ ]+' "$log"); do
        kill -0 $pid 2>/dev/null || { cat "$log"; return 1; }
        sleep 0.1
    done
    page=$(curl -fsS "$url")
    events=$(curl -sN --max-time 2 "$url"subscribe/ || true) # it would go on for ever
    kill -INT $pid
    wait $pid && grep -q 'let go of' "$log" && grep -qi '<!doctype html>' <<<"$page" &&
        grep -q '^data: ' <<<"$events"
}

run_release() {
    local program programs
    configure build "${unity[@]}" --buildtype=release
    build build
    { build/tests/tests_network && echo passed; } >build/network.log 2>&1 & # it only waits
    local network=$!
    run_doctest build
    run_doctest build tests_io_uring
    run_doctest build tests_faults
    say "running the rest"
    check "the header alone" build/tests/header_alone
    programs=$(tests/readme.sh build/readme)
    xargs -n 1 -P 2 sh -c "${CXX:-g++}"' -std=c++20 -Wall -Wextra -I. "$0" -o "${0%.cpp}" -pthread \
        >"$0.log" 2>&1 && echo passed >>"$0.log"' <<<"$programs" || true
    for program in $programs; do
        check_log "README: $(basename "$program") compiles as it stands there" "$program.log"
    done
    check "README: the first program is examples/clock.cpp" \
        diff build/readme/01.cpp examples/clock.cpp
    check "the model: no loss without a gap, no duplicate" tests/model.sh build/model
    check "examples/run.sh starts the hub, curl sees its page and events" run_script_starts_the_hub
    check "bench/run.sh runs every scenario and loses nothing" \
        bench/run.sh --quick --clients 20 --burst 1000 --seconds 0.2
    say "running clients and servers of other people"
    run_node interop build/examples
    wait "$network" || true
    check_log "network: a link that fails, loses and delays" build/network.log
    say "running a real browser"
    run_node browser build/examples/{hub,sysenv,chat}
}

# Sources of a program are compiled a few at a time, since each costs the whole header again.
unity=(--unity=on -Dunity_size=7)

run_sanitized() { # BUILD_DIRECTORY PROGRAM...
    local program programs=("${@:2}")
    build "$1" "${programs[@]/#/tests/}"
    for program in "${programs[@]}"; do
        ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=halt_on_error=1 \
            run_doctest "$1" "$program"
    done
}

run_asan() {
    configure build-asan "${unity[@]}" -Db_sanitize=address -Doptimization=0 -Ddebug=false \
        -Dcpp_args='-g1 -D_GLIBCXX_ASSERTIONS'
    local without=(--source-file-exclude='*examples.cpp') # clang's has them
    run_sanitized build-asan tests tests_io_uring tests_faults
}

run_tsan() { # g++ warns that it does not follow Asio's fences
    configure build-tsan "${unity[@]}" -Db_sanitize=thread -Db_lundef=false -Doptimization=1 \
        -Ddebug=false -Dcpp_args='-g1 -Wno-tsan'
    local without=(--source-file-exclude='*examples.cpp')
    run_sanitized build-tsan tests
}

run_clang() { # a second compiler's warnings and sanitizers
    CXX=clang++-19 configure build-clang "${unity[@]}" -Db_sanitize=address,undefined \
        -Db_lundef=false -Doptimization=0 -Ddebug=false -Dcpp_args='-g1 -D_GLIBCXX_ASSERTIONS'
    build build-clang examples
    run_sanitized build-clang tests
}

# Each target, two at a time.
run_fuzz() {
    local target targets
    CXX=clang++-19 configure build-fuzz -Doptimization=1 -Ddebug=false
    build build-fuzz tests/fuzz
    targets=$(build-fuzz/tests/fuzz)
    say "fuzzing"
    xargs -n 1 -P 2 sh -c 'tests/fuzz/fuzz.sh build-fuzz "$0" >"build-fuzz/$0.log" 2>&1' \
        <<<"$targets" || true
    for target in $targets; do
        check_log "fuzz: $target" "build-fuzz/$target.log"
    done
}

# Faults planted in the parsers. Not part of all: two thousand runs of their tests take long.
run_mutants() {
    say "looking for faults that no test notices"
    check "mutants: each fault is noticed, or known" tests/mutants.sh build-mutants
}

# Other languages, machines and settings, a part of the tests each, two at a time.
run_matrix() {
    local item items
    items=$(tests/matrix.sh build-matrix)
    mkdir -p build-matrix
    say "building and running the matrix"
    xargs -n 1 -P 2 sh -c 'tests/matrix.sh build-matrix "$0" >"build-matrix/$0.log" 2>&1' \
        <<<"$items" || true
    for item in $items; do
        check_log "matrix: $item" "build-matrix/$item.log"
    done
}

run_valgrind() { # slow, so not among all
    check "valgrind: memcheck" tests/matrix.sh build-matrix memcheck
}

run_soak() {
    configure build "${unity[@]}" --buildtype=release
    build build tests/soak examples/hub
    say "running build/tests/soak"
    if EXAMPLES=$PWD/build/examples build/tests/soak; then add_counts 1 0; else add_counts 0 1; fi
}

# The lines of the header that the tests and what the fuzzers know reach: 95 of 100, or it fails.
run_coverage() {
    local out=build-coverage objects=() object target
    export LLVM_PROFILE_FILE=/dev/null # what meson tries out is no test
    CXX=clang++-19 configure $out "${unity[@]}" -Doptimization=0 -Ddebug=false -Db_lundef=false \
        "-Dcpp_args=-fprofile-instr-generate -fcoverage-mapping" \
        -Dcpp_link_args=-fprofile-instr-generate
    build $out examples tests/tests tests/tests_io_uring tests/tests_faults tests/fuzz
    rm -f $out/*.profraw
    export LLVM_PROFILE_FILE=$PWD/$out/%p-%m.profraw
    for object in tests tests_io_uring tests_faults; do run_doctest $out $object; done
    for target in $($out/tests/fuzz); do
        check "what is known of $target" env FUZZ_SECONDS=0 tests/fuzz/fuzz.sh $out "$target"
    done
    unset LLVM_PROFILE_FILE
    llvm-profdata-19 merge -sparse $out/*.profraw -o $out/all.profdata
    for object in tests_io_uring tests_faults fuzz; do objects+=(-object "$out/tests/$object"); done
    llvm-cov-19 show $out/tests/tests "${objects[@]}" -instr-profile=$out/all.profdata \
        -show-instantiations=false sse.hpp >$out/sse.hpp.txt
    awk -F'|' '$2 ~ /[0-9]/ { ++lines; if ($2 + 0 > 0) ++reached; else print }
        END { printf "coverage: %.2f %% of %d lines\n", 100 * reached / lines, lines }' \
        $out/sse.hpp.txt | tee $out/missed.txt
    check "95 of 100 lines are reached" \
        awk '/^coverage/ { exit $2 < 95 }' $out/missed.txt
}

variants=("$@")
[ ${#variants[@]} -eq 0 ] && variants=(release)
[ "${variants[0]}" = all ] && variants=(release asan tsan clang matrix fuzz soak)

need_to_build
need curl have curl
need liburing-dev test -e /usr/include/liburing.h
for variant in "${variants[@]}"; do
    case $variant in
    release)
        need nodejs have node
        need npm have npm
        need chromium test -x /usr/bin/chromium
        need spin have spin
        need valgrind test -e /usr/include/valgrind/callgrind.h
        need libboost-dev test -e /usr/include/boost/beast.hpp
        need nginx test -x /usr/sbin/nginx
        need libnginx-mod-nchan test -e /usr/lib/nginx/modules/ngx_nchan_module.so
        ;;
    clang | fuzz)
        need clang-19 have clang++-19
        need libclang-rt-19-dev test -e /usr/lib/llvm-19/lib/clang/19/lib/linux
        ;;
    matrix)
        need clang-19 have clang++-19
        need libclang-rt-19-dev test -e /usr/lib/llvm-19/lib/clang/19/lib/linux
        need g++-multilib sh -c 'echo "int main() {}" | g++ -m32 -x c++ - -o /dev/null'
        need qemu-user have qemu-i386
        need g++-mingw-w64-x86-64-posix have x86_64-w64-mingw32-g++-posix
        ;;
    coverage)
        need clang-19 have clang++-19
        need libclang-rt-19-dev test -e /usr/lib/llvm-19/lib/clang/19/lib/linux
        need llvm-19 have llvm-cov-19
        ;;
    valgrind) need valgrind have valgrind ;;
    asan | tsan | soak) ;;
    mutants) need perl have perl ;;
    *)
        say "no variant '$variant'; give all, or some of:" \
            "release asan tsan clang matrix fuzz soak coverage valgrind mutants" >&2
        exit 2
        ;;
    esac
done
install_missing
ulimit -n "$(ulimit -Hn)" # the tests open 10,000 connections
for variant in "${variants[@]}"; do run_"$variant"; done

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
