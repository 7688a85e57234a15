#!/usr/bin/env bash
# Checks tests/nothing_lost.pml with Spin: that it holds, in every interleaving, and that it finds
# each of the faults it can be planted with.
#   tests/model.sh DIRECTORY                         all runs, in this directory
#   tests/model.sh DIRECTORY KIND NAME DEFINE...     one of them; then, where it found something:
#   cd DIRECTORY/NAME && spin -t -p -g -DDEFINE... nothing_lost.pml
set -euo pipefail
tests=$(cd "$(dirname "$0")" && pwd)

# holds NAME DEFINE...: no interleaving breaks the promise.
# ends NAME DEFINE...: none goes on for ever, so all reach the point where everything must be told.
# finds FAULT DEFINE...: one does, with this fault.
runs() {
    cat <<'END'
holds skip POLICY=skip_ahead
holds disconnect POLICY=disconnect
holds conflate POLICY=conflate HISTORY=1 AGE=1
holds hold_back POLICY=hold_back MESSAGES=3 HISTORY=1
holds topics TOPICS=1 MESSAGES=3 POLICY=disconnect
holds two_on_their_way SOCKET=2 MESSAGES=3 CUTS=2
holds oldest OLDEST=1
holds age AGE=1 MESSAGES=3
holds handlers_publish HANDLER=1 MESSAGES=3
holds held HELD=1 MESSAGES=3
holds on_gap ON_GAP=1
holds restart RESTART=1 MESSAGES=3
holds restart_on_gap RESTART=1 ON_GAP=1 MESSAGES=3
holds fine_first_worker FINE=1 ONLY=0 MESSAGES=3 SOCKET=2
holds fine_second_worker FINE=1 ONLY=1 MESSAGES=3 SOCKET=2
holds fine_both FINE=1 MESSAGES=2 CUTS=0
ends skip_ends POLICY=skip_ahead MESSAGES=3
ends hold_back_ends POLICY=hold_back MESSAGES=3
finds gate_too_far
finds no_second_look FINE=1 ONLY=0 MESSAGES=3 CUTS=0
finds claimed_ignored
finds pass_forgotten HANDLER=1
finds now_from_log
finds no_first_id
finds replay_late
finds replay_early
finds replay_settled
finds replay_left
finds replay_left_in_pass
finds ahead_unknown
finds ahead_clamped
finds epoch_ignored RESTART=1
finds past_unknown
finds block_over_position
finds gap_forgotten
finds gap_too_short
finds gap_id_too_far
finds heartbeat_behind
finds heartbeat_back
finds heartbeat_over_pass
finds held_ignored HELD=1
finds held_id_first HELD=1
finds snapshot_first HELD=1
finds key_ignored POLICY=conflate
finds held_back_forgotten POLICY=hold_back
finds hold_not_ended POLICY=hold_back
finds snapshot_exact HELD=1
END
}

fail() {
    printf '%s\n' "$@"
    exit 1
}

run() { # KIND NAME DEFINE...
    local kind=$1 name=$2 log expected=0 states search=-DSAFETY options=(-m20000)
    local defines=("${@:3}") what="$*"
    mkdir -p "$directory/$name"
    cd "$directory/$name"
    cp "$tests/nothing_lost.pml" .
    if [ "$kind" = finds ]; then
        expected=1
        defines+=("FAULT=$name")
    fi
    if [ "$kind" = ends ]; then
        search=-DNP
        options+=(-l)
    fi
    log=$(spin -a "${defines[@]/#/-D}" nothing_lost.pml 2>&1) || fail "$what: spin: $log"
    # A fault is found soon, so the compiler may be quick rather than the program.
    gcc "-O$((1 - expected))" -w $search -DCOLLAPSE -o pan pan.c
    ./pan "${options[@]}" >pan.log 2>&1 || fail "$what: $(cat pan.log)"
    log=$(cat pan.log)
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' <<<"$log")
    if ! grep -q " errors: $expected\$" <<<"$log"; then
        [ "$expected" = 1 ] && fail "$what: this fault is not found" "$log"
        fail "$what: see the trail in $PWD" "$log"
    fi
    if [ "$expected" = 0 ] &&
        { ! grep -q '^Full statespace search' <<<"$log" ||
            grep -qiE 'not completed|depth too small|out of memory|truncated' <<<"$log"; }; then
        fail "$what: the search was not exhaustive" "$log"
    fi
    printf '%-60s %9s states\n' "$what" "$states"
}

directory=$1
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
if [ $# -gt 1 ]; then
    run "${@:2}"
    exit
fi
planted=$(sed -n '/^\/\/ Planted faults/,/^$/s/^#define \([a-z_]*\) .*/\1/p' \
    "$tests/nothing_lost.pml" | grep -vx none)
unplanted=$(comm -3 <(sort <<<"$planted") <(runs | sed -n 's/^finds \([a-z_]*\).*/\1/p' | sort))
[ -z "$unplanted" ] || fail "not both a fault and a run:" "$unplanted"
runs | xargs -L 1 -P "$(nproc)" "$tests/model.sh" "$directory"
