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
# tsan      those of the tests that have threads, under g++'s ThreadSanitizer
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
jobs=()
builder= # the process that builds ahead
close() {
    [ -z "$builder" ] || kill -- "-$builder" 2>/dev/null || true
    if [ -z "$finished" ]; then
        failed=$((failed + 1))
        names+=$'not ok  the run itself: it ended early\n'
    fi
    printf '%s' "$failures" "$names"
    printf '%d passed, %d failed, %d not run\n' "$passed" "$failed" "$skipped"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ] || exit 1
}
trap close EXIT

# set_up: the folder of $variant, and the suites there, so many tests at a time. Tests wait for a third
# of their time: so many at a time fill two cores, and those with short deadlines keep them.
set_up() {
    local flags=("${unity[@]}" -Ddebug=false)
    folder=build at_a_time=2 suites=("$variant") environment=()
    case $variant in
    quick)
        folder=build-quick suites=(tests examples header hub)
        configure $folder "${flags[@]}" -Doptimization=0
        ;;
    release)
        at_a_time=3
        suites=(tests examples io_uring bus tls zlib faults network header format readme hub bench packaging)
        configure_release
        ;;
    asan) # and a second compiler's warnings; matrix has g++'s AddressSanitizer
        folder=build-asan at_a_time=3
        suites=(tests examples io_uring bus tls over_tls zlib by_gzip names)
        CXX=clang++-19 configure $folder "${flags[@]}" -Db_sanitize=address,undefined \
            -Db_lundef=false -Doptimization=0 -Dcpp_args='-g1 -D_GLIBCXX_ASSERTIONS'
        ;;
    tsan)
        folder=build-tsan suites=(tests bus tls) # over TLS they have no further thread
        configure $folder "${flags[@]}" -Db_sanitize=thread -Db_lundef=false -Doptimization=1 \
            -Dwarning_level=0 -Dcpp_args='-g1 -Wno-tsan'
        ;;
    interop | browser)
        at_a_time=1
        configure_release
        ;;
    fuzz)
        folder=build-fuzz
        CXX=clang++-19 configure $folder -Doptimization=1 -Ddebug=false
        ;;
    matrix)
        folder=build-matrix
        configure $folder # its own programs have flags of their own
        ;;
    coverage)
        folder=build-coverage
        suites=(tests examples io_uring bus tls over_tls zlib by_gzip faults fuzz coverage)
        environment=(LLVM_PROFILE_FILE="$PWD/build-coverage/%p-%m.profraw" FUZZ_SECONDS=0)
        CXX=clang++-19 LLVM_PROFILE_FILE=/dev/null configure $folder "${flags[@]}" \
            -Doptimization=0 -Db_lundef=false -Dcpp_link_args=-fprofile-instr-generate \
            "-Dcpp_args=-fprofile-instr-generate -fcoverage-mapping"
        rm -f build-coverage/*.profraw
        ;;
    *) # scripts, model, proxies, soak, judge; mutants, bare, valgrind
        configure_release
        ;;
    esac
}

# build: what these suites need.
build() {
    local targets
    ninja -C "$folder" --quiet build.ninja
    targets=$(tests/targets.py "$folder" "${suites[@]}")
    [ -z "$targets" ] || xargs ninja -C "$folder" --quiet "${jobs[@]}" <<<"$targets"
}

# build_ahead VARIANT...: while others are tested, with what their tests leave of the CPU. Says of each
# that it was done; whether it could be built is told when it is tested. Each has a folder of its own,
# since two ninjas in one get in each other's way.
build_ahead() {
    local variant
    renice -n 19 "$BASHPID"
    jobs=(-j "$(nproc)") # ninja would take more, and each has a gigabyte
    for variant; do
        (set_up && build) || true
        echo "$variant" >&"$done_with"
    done
}

run_variant() {
    local log status=0 counts lines why
    case $variant in
    interop | browser) why=$(tests/node.sh "$variant") || { not_run "$variant" "$why"; return; } ;;
    esac
    if [[ " ${ahead[*]} " = *" $variant "* ]]; then
        renice -n "$(nice)" -g "$builder" >/dev/null 2>&1 || true # we wait for it; root may
        read -r _ <&"$built" || true
        renice -n 19 -g "$builder" >/dev/null 2>&1 || true
    fi
    set_up
    say "building in $folder: ${suites[*]}"
    build
    say "testing"
    log=$folder/meson-logs/$variant.json
    rm -f "$log"
    env "${environment[@]}" meson test -C "$folder" --no-rebuild --num-processes $at_a_time \
        --print-errorlogs --logbase "$variant" $(printf ' --suite %s' "${suites[@]}") || status=$?
    [ -f "$log" ] || exit 1
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

# What mostly waits comes early, while the others are still compiled ahead.
known=(scripts release interop browser proxies soak judge asan tsan model matrix fuzz)
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
ahead=()
for variant in "${variants[@]:1}"; do
    missing=()
    needs "$variant"
    case $variant in
    "${variants[0]}") ;;
    quick | asan | tsan | matrix | fuzz | coverage) [ ${#missing[@]} -gt 0 ] || ahead+=("$variant") ;;
    esac
done
if [ ${#ahead[@]} -gt 0 ]; then
    set -m # a process group, to end it
    coproc { exec {done_with}>&1; build_ahead "${ahead[@]}" >/dev/null 2>&1; }
    set +m
    builder=$COPROC_PID
    exec {built}<&"${COPROC[0]}"
fi
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
