#!/usr/bin/env bash
# Sets up and runs the tests. What they are is in tests/meson.build; meson builds and runs them.
#   ./tests/run.sh                 the variant quick: what is needed to trust the build here, in minutes
#   ./tests/run.sh all             all variants but quick and those marked (*): hours on a small machine
#   ./tests/run.sh VARIANT...      these:
# quick     the test program and the examples without optimization; the hub with curl. The other
#           variants of all have the same tests under other flags.
# scripts   these scripts themselves: stale and half build folders, missing programs and packages
# release   the test programs optimized, by io_uring too, the README's programs, the benchmarks, packages
# asan      the test programs and the examples by clang, with its warnings, under its sanitizers
# tsan      the test programs under g++'s ThreadSanitizer
# model     the protocol as a model, by spin
# interop   clients and servers of other people     (npm)
# browser   the pages in a real browser             (npm, chromium)
# proxies   the configurations of examples/proxies, each with its proxy
# matrix fuzz soak   other builds, the fuzzers, a long storm and hand-overs under load
# judge     nodes on each kind of bus, both killed and frozen: nothing lost, doubled or out of order
# coverage valgrind mutants bare (*)    bare is both README commands, in both orders, in a Debian with
#           nothing installed (root, debootstrap)
# What cannot run here for want of a program, a package or the network is named and counted apart.
# SOAK_DURATION_SEC is how long the soak goes on: 30. SOAK_CLIENTS, SOAK_MSG_PER_SEC and
# SOAK_REPORT_SEC are its others: 200, 300, 10. SOAK=0 leaves it out.
# HAND_OVER_CLIENTS, HAND_OVER_TIMES are how many clients see how many hand-overs: 500, 2. The others
# are HAND_OVER_MSG_PER_SEC, HAND_OVER_TOPICS and HAND_OVER_SEC, the time before each: 1000, 50, 2.
# HAND_OVER=0 leaves it out.
# JUDGE_DURATION_SEC is how long the judge looks at each bus: 10. JUDGE_BUS_SEC, JUDGE_NODE_MS are
# how often it is harmed, and a node: 3, 1000. JUDGE_CLIENTS, JUDGE_MSG_PER_SEC: 300, 150. JUDGE=0
# leaves it out.
# FUZZ_SECONDS is how long each of the fuzzers goes on: 10, or 0 for what is known already.
# ASIO_DIR=/path/to/asio/include takes another Asio than the system's. CXX is the compiler.
# One test again: meson test -C build-asan feed. What they said: build*/meson-logs/VARIANT.txt
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
. examples/setup.sh
. tests/needs.sh

passed=0
failed=0
skipped=0
failures= # what is said of them, for the end: a long log is read from there
names=    # of what failed, a line each: the last ones

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
        names+=$'not ok  the run itself: it ended early\n'
    fi
    printf '%s' "$failures" "$names"
    printf '%d passed, %d failed, %d not run\n' "$passed" "$failed" "$skipped"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ] || exit 1
}
trap close EXIT

# test_suites DIRECTORY AT_A_TIME SUITE...: builds what they need there, and runs them. Tests wait for
# a third of their time: so many at a time fill two cores, and those with short deadlines keep them.
test_suites() {
    local log=$1/meson-logs/$variant.json options=() status=0 counts lines
    case $3 in
    scripts | model | matrix | valgrind | mutants | bare) options=(--no-rebuild) ;; # they need nothing
    esac
    say "testing in $1: ${*:3}"
    rm -f "$log"
    meson test -C "$1" --num-processes "$2" --print-errorlogs --logbase "$variant" "${options[@]}" \
        $(printf ' --suite %s' "${@:3}") || status=$?
    [ -f "$log" ] || exit 1 # it could not be built
    { read -r -a counts && lines=$(cat); } < <(tests/count.py "$log")
    grep '^not run' <<<"$lines" || true
    if [ "$status" -ne 0 ] && [ "${counts[1]}" -eq 0 ]; then
        counts[1]=1
        lines="not ok  meson test: its status is $status"
    fi
    passed=$((passed + counts[0]))
    failed=$((failed + counts[1]))
    skipped=$((skipped + counts[2]))
    if [ "${counts[1]}" -gt 0 ]; then
        failures+="== $variant"$'\n'$(grep -v '^not run' <<<"$lines")$'\n'
        names+=$(grep '^not ok' <<<"$lines" | sed "s/^not ok/& $variant/")$'\n'
    fi
}

run_variant() {
    local flags=("${unity[@]}" -Ddebug=false)
    case $variant in
    quick)
        configure build-quick "${flags[@]}" -Doptimization=0
        test_suites build-quick 2 tests examples header hub
        ;;
    release)
        configure_release
        test_suites build 3 tests examples io_uring bus tls zlib faults network header format readme hub bench packaging
        ;;
    asan) # and a second compiler's warnings; matrix has g++'s AddressSanitizer
        CXX=clang++-19 configure build-asan "${flags[@]}" -Db_sanitize=address,undefined \
            -Db_lundef=false -Doptimization=0 -Dcpp_args='-g1 -D_GLIBCXX_ASSERTIONS'
        test_suites build-asan 3 tests examples io_uring bus tls over_tls zlib by_gzip names
        ;;
    tsan)
        configure build-tsan "${flags[@]}" -Db_sanitize=thread -Db_lundef=false -Doptimization=1 \
            -Dwarning_level=0 -Dcpp_args='-g1 -Wno-tsan'
        test_suites build-tsan 2 tests bus tls # over TLS they have no further thread
        ;;
    interop | browser)
        local why
        why=$(tests/node.sh "$variant") || { not_run "$variant" "$why"; return; }
        configure_release
        test_suites build 1 "$variant"
        ;;
    fuzz)
        CXX=clang++-19 configure build-fuzz -Doptimization=1 -Ddebug=false
        test_suites build-fuzz 2 fuzz
        ;;
    coverage)
        CXX=clang++-19 LLVM_PROFILE_FILE=/dev/null configure build-coverage "${flags[@]}" \
            -Doptimization=0 -Db_lundef=false -Dcpp_link_args=-fprofile-instr-generate \
            "-Dcpp_args=-fprofile-instr-generate -fcoverage-mapping"
        rm -f build-coverage/*.profraw
        LLVM_PROFILE_FILE=$PWD/build-coverage/%p-%m.profraw FUZZ_SECONDS=0 \
            test_suites build-coverage 2 tests examples io_uring bus tls over_tls zlib by_gzip faults fuzz coverage
        ;;
    *) # scripts, model, proxies, matrix, soak, judge; mutants, bare, valgrind
        configure_release
        test_suites build 2 "$variant"
        ;;
    esac
}

known=(scripts release asan tsan model interop browser proxies matrix fuzz soak judge)
variants=("${@:-quick}")
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

wishing=1
for variant in "${variants[@]}"; do needs "$variant"; done
install_missing || say "going on with what is here"
wishing=
hash -r
ulimit -n "$(ulimit -Hn)" # the tests open 10,000 connections
for variant in "${variants[@]}"; do # one after the other: side by side they starve each other
    missing=()
    needs "$variant"
    if [ ${#missing[@]} -gt 0 ]; then
        not_run "$variant" "these packages are missing: ${missing[*]}"
        continue
    fi
    SECONDS=0
    run_variant
    say "$variant took $((SECONDS / 60)) min $((SECONDS % 60)) s"
done
finished=1
