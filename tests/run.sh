#!/usr/bin/env bash
# Sets up, builds and runs the tests.
#   ./tests/run.sh                 the variant quick: what is needed to trust the build here, in minutes
#   ./tests/run.sh all             all variants but quick and those marked (*): hours on a small machine
#   ./tests/run.sh VARIANT...      these:
# quick     the test program and the examples without optimization; the hub with curl. The other
#           variants of all have the same tests under other flags.
# scripts   these scripts themselves: stale and half build folders, missing programs and packages
# release   the test programs optimized, by io_uring too, the README's programs, the benchmarks
# asan tsan clang    the test programs under g++'s sanitizers, and clang's with the examples
# model     the protocol as a model, by spin
# interop   clients and servers of other people     (npm)
# browser   the pages in a real browser             (npm, chromium)
# matrix fuzz soak   other builds, the fuzzers, a long storm
# coverage valgrind mutants bare (*)    bare is both README commands, in both orders, in a Debian with
#           nothing installed (root, debootstrap)
# What cannot run here for want of a program, a package or the network is named and counted apart.
# SOAK_DURATION_SEC is how long the soak goes on: 30. SOAK_CLIENTS, SOAK_MSG_PER_SEC and
# SOAK_REPORT_SEC are its others: 200, 300, 10. SOAK=0 leaves it out.
# FUZZ_SECONDS is how long each of the fuzzers goes on: 60, or 0 for what is known already.
# ASIO_DIR=/path/to/asio/include takes another Asio than the system's. CXX is the compiler.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
. examples/setup.sh

passed=0
failed=0
skipped=0
without=() # tests that a variant leaves out

# not_run WHAT WHY: what cannot be tested on this machine.
not_run() {
    skipped=$((skipped + 1))
    printf 'not run %s: %s\n' "$1" "$2"
}

# The closing line, whatever happens: who does not get to the end has failed.
finished=
close() {
    if [ -z "$finished" ]; then
        failed=$((failed + 1))
        printf 'not ok  the run itself: it ended early\n'
    fi
    printf '%d passed, %d failed, %d not run\n' "$passed" "$failed" "$skipped"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ] || exit 1
}
trap close EXIT

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

# The cases of test programs in parts, some parts at a time: what most cases do is wait. Each program
# has a dozen parts, so that none is left to run alone for long.
run_doctest() { # BUILD_DIRECTORY PROGRAM...
    local program log part found bad
    local -A count parts
    say "running ${*:2} of $1"
    for program in "${@:2}"; do
        count[$program]=$("$1/tests/$program" "${without[@]}" --count | sed -n 's/.*filters: *//p')
        parts[$program]=$((count[$program] < 12 ? count[$program] : 12)) # none is empty
    done
    for program in "${@:2}"; do
        for part in $(seq "${parts[$program]}"); do
            echo "$1/tests/$program.$part.log $1/tests/$program" \
                "--first=$(((part - 1) * count[$program] / parts[$program] + 1))" \
                "--last=$((part * count[$program] / parts[$program]))" "${without[@]}"
        done
    done | EXAMPLES=$1/examples xargs -L 1 -P "${at_a_time:-2}" sh -c \
        'log=$1; shift; "$@" >"$log" 2>&1 || echo "ended with $?" >>"$log"' sh
    for program in "${@:2}"; do
        bad=0
        for part in $(seq "${parts[$program]}"); do
            # Each counts the cases of the others as passed.
            log=$1/tests/$program.$part.log
            found=$(sed -n 's/^\[doctest\] test cases:.*| *\([0-9]*\) failed.*/\1/p' "$log")
            if grep -q '^ended with' "$log"; then
                cat "$log"
                [ "$found" != 0 ] || found=1 # a sanitizer's report, though every case passed
            fi
            bad=$((bad + ${found:-1}))
        done
        add_counts $((count[$program] - bad)) "$bad"
    done
}

build() { # BUILD_DIRECTORY TARGET...
    say "building $1"
    ninja -C "$1" --quiet "${@:2}"
}

# install_node NAME DIRECTORY: the packages that tests/packages.txt names for this program and this
# Node, in a folder of its own with the program; another Node has another. Says why it cannot.
install_node() {
    local name=$1 directory=$2 node program package version lowest wanted
    node=$(node --version) && node=${node#v} || { echo "node does not run"; return 1; }
    wanted=$(while read -r program package version lowest; do
        [ "$program" = "$name" ] && at_least "$node" "$lowest" &&
            printf '"%s-%s": "npm:%s@%s"\n' "$package" "${version%%.*}" "$package" "$version"
    done <tests/packages.txt | awk '{ all[$1] = $0 } # the last one counts
        END { for (name in all) print all[name] }' | sort | paste -sd ,)
    [ -n "$wanted" ] || { echo "nothing in tests/packages.txt is for Node $node"; return 1; }
    wanted="{\"private\": true, \"type\": \"module\", \"dependencies\": {$wanted}}"
    mkdir -p "$directory"
    if [ "$(cat "$directory/installed" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$directory/node_modules" "$directory/installed"
        printf '%s\n' "$wanted" >"$directory/package.json"
        (cd "$directory" && npm install --silent --no-audit --no-fund --no-package-lock \
            --ignore-scripts >npm.log 2>&1) ||
            { echo "npm could not install its packages: $(tail -n 3 "$directory/npm.log")"; return 1; }
        printf '%s\n' "$wanted" >"$directory/installed"
    fi
    cp "tests/$name/$name.mjs" "$directory/"
}

at_least() { # VERSION LOWEST
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# run_node NAME ARGUMENT...: tests/NAME/NAME.mjs, once installed by install_node.
run_node() {
    local name=$1 line log=$node_directory/$1.log
    node "$node_directory/$name.mjs" "${@:2}" 2>&1 | tee "$log" || true
    line=$(grep -E "^$name: [0-9]+ passed, [0-9]+ failed(, [0-9]+ not run)?\$" "$log" |
        tail -n 1 || true)
    if [ -z "$line" ]; then
        add_counts 0 1
    else
        add_counts "$(cut -d' ' -f2 <<<"$line")" "$(cut -d' ' -f4 <<<"$line")"
        [[ $line != *"not run" ]] || skipped=$((skipped + $(cut -d' ' -f6 <<<"$line")))
    fi
}

# with_node NAME: installs first; where that is not possible nothing needs to be built.
with_node() {
    local why
    node_directory=build-npm/node-$(node --version)/$1
    if [ ! -w "${HOME:-/nowhere}" ]; then # npm and Chromium keep things there
        export HOME=$PWD/build-npm/home
        mkdir -p "$HOME"
    fi
    why=$(install_node "$1" "$node_directory") || { not_run "$1" "$why"; return 1; }
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
    wait $pid && grep -q 'disconnected' "$log" && grep -qi '<!doctype html>' <<<"$page" &&
        grep -q '^data: ' <<<"$events"
}

# The programs of the README, compiled with every file. One each, two at a time.
run_readme() {
    local program programs
    programs=$(tests/readme.sh build/readme)
    xargs -n 1 -P 2 sh -c "${CXX:-g++}"' -std=c++20 -Wall -Wextra -I. "$0" -o "${0%.cpp}" -pthread \
        >"$0.log" 2>&1 && echo passed >>"$0.log"' <<<"$programs" || true
    for program in $programs; do
        check_log "README: $(basename "$program") compiles as it stands there" "$program.log"
    done
    check "README: the first program is examples/clock.cpp" \
        diff build/readme/01.cpp examples/clock.cpp
}

check_hub() {
    local name="examples/run.sh starts the hub, curl sees its page and events"
    if have curl; then check "$name" run_script_starts_the_hub; else not_run "$name" "no curl"; fi
}

one_version() { # in the header, for Meson, and among the changes
    local version
    version=$(sed -n 's/^#define SSE_VERSION_STRING "\(.*\)"/\1/p' sse.hpp)
    head -n 1 sse.hpp | grep -q "Version $version\$" &&
        grep -q "^project('sse'.* version: '$version'" meson.build &&
        grep -q "^- $version:" README.md &&
        grep -q "^#define SSE_VERSION $(awk -F. '{ print $1 * 10000 + $2 * 100 + $3 }' \
            <<<"$version") " sse.hpp
}

# Each version of clang-format breaks lines in its own way: this is 14, of Debian 12.
check_format() {
    local name="the code is formatted as .clang-format says"
    if have clang-format && clang-format --version | grep -q 'version 14\.'; then
        check "$name" clang-format --dry-run -Werror sse.hpp tests/*.cpp tests/support/*.hpp \
            tests/fuzz/*.cpp examples/*.[ch]pp bench/*.[ch]pp bench/rivals/*.cpp
    else
        not_run "$name" "no clang-format 14"
    fi
}

configure_quick() {
    configure build-quick "${unity[@]}" -Doptimization=0 -Ddebug=false
}

run_quick() {
    configure_quick
    build build-quick tests/tests tests/header_alone examples
    run_doctest build-quick tests
    check "the header alone" build-quick/tests/header_alone
    check "the header stops a compiler that cannot have it with the cause" tests/errors.sh
    check "there is one version" one_version
    check "the banners of the header's sections are true" tests/banners.sh
    check_hub
}

run_scripts() {
    local bash=$BASH line
    say "trying the scripts"
    while read -r line; do
        case $line in
        'ok '*) add_counts 1 0 ;;
        'not ok '*) add_counts 0 1 ;;
        esac
        printf '%s\n' "$line"
    done < <("$bash" tests/scripts.sh build-scripts 2>&1 || echo "not ok  tests/scripts.sh: it ended early")
}

run_bare() {
    check "README: both commands on a bare Debian, in both orders" tests/bare.sh
}

run_release() {
    configure_release
    build build
    { build/tests/tests_network && echo passed; } >build/network.log 2>&1 & # it only waits
    local network=$!
    local at_a_time=3
    if [ -x build/tests/tests_io_uring ]; then
        run_doctest build tests_faults tests_io_uring tests
    else
        run_doctest build tests_faults tests
        not_run "the tests by io_uring" "no liburing-dev"
    fi
    say "running the rest"
    check "the header alone" build/tests/header_alone
    check "the header stops a compiler that cannot have it with the cause" tests/errors.sh
    check "there is one version" one_version
    check "the banners of the header's sections are true" tests/banners.sh
    check_format
    run_readme
    check_hub
    if have valgrind; then
        check "bench/run.sh runs every scenario and loses nothing" \
            bench/run.sh --quick --clients 20 --burst 1000 --seconds 0.2
    else
        not_run "bench/run.sh" "no valgrind"
    fi
    wait "$network" || true
    if grep -q '^network: skipped' build/network.log; then
        not_run "network: a link that fails, loses and delays" "$(head -n 1 build/network.log)"
    else
        check_log "network: a link that fails, loses and delays" build/network.log
    fi
}

run_model() {
    check "the model: no loss without a gap, no duplicate" tests/model.sh build-model
}

run_interop() {
    with_node interop || return 0
    configure_release
    build build examples
    say "running clients and servers of other people"
    run_node interop build/examples
}

run_browser() {
    with_node browser || return 0
    configure_release
    build build examples
    say "running a real browser"
    run_node browser build/examples/{hub,sysenv,chat}
}

run_sanitized() { # BUILD_DIRECTORY PROGRAM...
    local programs=("${@:2}")
    build "$1" "${programs[@]/#/tests/}"
    ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=halt_on_error=1 run_doctest "$@"
}

run_asan() {
    configure build-asan "${unity[@]}" -Db_sanitize=address -Doptimization=0 -Ddebug=false \
        -Dcpp_args='-g1 -D_GLIBCXX_ASSERTIONS'
    local without=(--source-file-exclude='*examples.cpp') # clang's has them
    local at_a_time=3
    run_sanitized build-asan tests_faults tests_io_uring tests
}

run_tsan() { # g++ warns that it does not follow Asio's fences
    configure build-tsan "${unity[@]}" -Db_sanitize=thread -Db_lundef=false -Doptimization=1 \
        -Ddebug=false -Dcpp_args='-g1 -Wno-tsan'
    local without=(--source-file-exclude='*examples.cpp')
    run_sanitized build-tsan tests
}

run_clang() { # a second compiler's warnings and sanitizers
    if have clang-tidy; then
        check "names are as .clang-tidy says" clang-tidy --quiet sse.hpp -- -std=c++20 -x c++ \
            -DSSE_SEPARATE_COMPILATION -DSSE_SOURCE
    else
        not_run "names are as .clang-tidy says" "no clang-tidy"
    fi
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
    configure_release
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
    run_doctest $out tests_faults tests_io_uring tests
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

known=(scripts release asan tsan clang model interop browser matrix fuzz soak)
variants=("$@")
[ ${#variants[@]} -eq 0 ] && variants=(quick)
[ "${variants[0]}" != all ] || variants=("${known[@]}")
for variant in "${variants[@]}"; do
    case " quick ${known[*]} coverage valgrind mutants bare " in
    *" $variant "*) ;;
    *)
        say "no variant '$variant'; give all, or some of:" \
            "quick ${known[*]} coverage valgrind mutants bare" >&2
        trap - EXIT
        exit 2
        ;;
    esac
done

# wish PACKAGE CHECK...: installed like what need names, but a variant runs without it too, and says
# what it leaves out.
wish() { [ -n "$wishing" ] && need "$@" || true; }

needs() { # VARIANT: what it cannot do without, and what it would like
    case $1 in
    bare)
        need debootstrap have debootstrap
        need curl have curl
        return
        ;;
    mutants) need perl have perl ;;
    model)
        need spin have spin
        need gcc have gcc
        return
        ;;
    esac
    need_to_build
    case $1 in
    quick) wish curl have curl ;;
    release | scripts | asan | tsan | clang | coverage)
        wish curl have curl
        wish iproute2 have ip
        ;;&
    release) wish clang-format have clang-format ;;&
    clang) wish clang-tidy have clang-tidy ;;&
    release | scripts) wish liburing-dev test -e /usr/include/liburing.h ;;&
    asan | coverage) need liburing-dev test -e /usr/include/liburing.h ;;&
    release | scripts) wish valgrind test -e /usr/include/valgrind/callgrind.h ;;&
    release | scripts | interop | browser | asan | tsan | clang | coverage | soak)
        wish libboost-dev test -e /usr/include/boost/beast.hpp
        ;;&
    interop | browser)
        need nodejs have node
        need npm have npm
        need curl have curl
        ;;&
    interop)
        need libboost-dev test -e /usr/include/boost/beast.hpp
        wish nginx test -x /usr/sbin/nginx
        wish libnginx-mod-nchan test -e /usr/lib/nginx/modules/ngx_nchan_module.so
        ;;
    browser) need chromium test -x "${CHROMIUM:-/usr/bin/chromium}" ;;
    clang | fuzz | matrix | coverage)
        need clang-19 have clang++-19
        need libclang-rt-19-dev test -e /usr/lib/llvm-19/lib/clang/19/lib/linux
        ;;&
    matrix)
        need g++-multilib sh -c 'echo "int main() {}" | g++ -m32 -x c++ - -o /dev/null'
        need qemu-user have qemu-i386
        need g++-mingw-w64-x86-64-posix have x86_64-w64-mingw32-g++-posix
        ;;
    coverage) need llvm-19 have llvm-cov-19 ;;
    valgrind) need valgrind have valgrind ;;
    esac
}

wishing=1
for variant in "${variants[@]}"; do needs "$variant"; done
install_missing || say "going on with what is here"
wishing=
hash -r
ulimit -n "$(ulimit -Hn)" # the tests open 10,000 connections
for variant in "${variants[@]}"; do
    missing=()
    needs "$variant"
    if [ ${#missing[@]} -gt 0 ]; then
        not_run "$variant" "these packages are missing: ${missing[*]}"
        continue
    fi
    SECONDS=0
    run_"$variant"
    say "$variant took $((SECONDS / 60)) min $((SECONDS % 60)) s"
done
finished=1
