#!/usr/bin/env bash
# Checks tests/nothing_lost.pml and tests/nothing_lost_bus.pml with Spin: that they hold, in every
# interleaving, and that they find each of the faults they can be planted with.
#   tests/model.sh DIRECTORY                         all runs, in this directory
#   tests/model.sh DIRECTORY KIND NAME DEFINE...     one of them; then, where it found something:
#   cd DIRECTORY/NAME && spin -t -p -g -DDEFINE... model.pml
set -euo pipefail
tests=$(cd "$(dirname "$0")" && pwd)

# holds NAME DEFINE...: no interleaving breaks the promise.
# ends NAME DEFINE...: none goes on for ever, so all reach the point where everything must be told.
# finds FAULT DEFINE...: one does, with this fault.
# bus_holds, bus_finds: the same, with a bus.
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
bus_holds bus
bus_holds bus_cuts LOSSES=1 CUTS=2
bus_holds bus_short HISTORY=1
bus_holds bus_loss LOSSES=1 HISTORY=1
bus_holds bus_loss_long LOSSES=1 HISTORY=3
bus_holds bus_loss_kept LOSSES=1 KEPT=1
bus_holds bus_loss_trim LOSSES=1 TRIMS=1
bus_holds bus_loss_start LOSSES=1 STARTS=1
bus_holds bus_loss_repeat LOSSES=1 REPEATS=1 MESSAGES=2
bus_holds bus_trim TRIMS=1
bus_holds bus_start STARTS=1
bus_holds bus_repeat REPEATS=1
bus_finds numbers_reused LOSSES=1
bus_finds name_reused LOSSES=1
bus_finds no_compare LOSSES=1
bus_finds loss_untold LOSSES=1
bus_finds no_token REPEATS=1
bus_finds lost_token_kept LOSSES=1 REPEATS=1 HISTORY=3
bus_finds split REPEATS=1 STARTS=1 HISTORY=1
bus_finds hole_untold TRIMS=1
bus_finds hole_too_short TRIMS=1
bus_finds ahead_clamped
bus_finds ahead_unknown
bus_finds newer_epoch_unknown LOSSES=1
bus_finds waits_for_ever LOSSES=1 STARTS=1 MESSAGES=1
bus_finds epoch_ignored LOSSES=1
bus_finds asks_too_soon LOSSES=1 TRIMS=1
bus_finds asks_for_it_alone TRIMS=1
bus_finds mark_walked_over LOSSES=1
bus_finds id_too_old KEPT=1 HISTORY=1
bus_finds forgotten_untold HISTORY=1
END
}

fail() {
    printf '%s\n' "$@"
    exit 1
}

run() { # KIND NAME DEFINE...
    local kind=$1 name=$2 log expected=0 states search=-DSAFETY options=(-m20000)
    local defines=("${@:3}") what="$*" model=nothing_lost
    [[ $kind = bus_* ]] && model=nothing_lost_bus
    kind=${kind#bus_}
    mkdir -p "$directory/$name"
    cd "$directory/$name"
    cp "$tests/$model.pml" model.pml
    if [ "$kind" = finds ]; then
        expected=1
        defines+=("FAULT=$name")
    fi
    if [ "$kind" = ends ]; then
        search=-DNP
        options+=(-l)
    fi
    log=$(spin -a "${defines[@]/#/-D}" model.pml 2>&1) || fail "$what: spin: $log"
    # A fault is found soon, so the compiler may be quick rather than the program.
    gcc "-O$((1 - expected))" -w $search -o pan pan.c
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
    "$tests"/nothing_lost{,_bus}.pml | grep -vx none)
run=$(runs | sed -n 's/^\(bus_\)*finds \([a-z_]*\).*/\2/p')
unplanted=$(comm -3 <(sort <<<"$planted") <(sort <<<"$run"))
[ -z "$unplanted" ] || fail "not both a fault and a run:" "$unplanted"
runs | xargs -L 1 -P "$(nproc)" "$tests/model.sh" "$directory"
