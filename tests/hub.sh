#!/usr/bin/env bash
# The command of the README, the way a user types it; curl as the client.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
command -v curl >/dev/null || { echo "no curl"; exit 77; }
log=$(mktemp)
trap 'cat "$log"; rm "$log"' EXIT
./examples/run.sh --port 0 >"$log" 2>&1 &
pid=$!
until url=$(grep -oE 'http://[^ ]+' "$log"); do
    kill -0 $pid
    sleep 0.1
done
page=$(curl -fsS "$url")
events=$(curl -sN --max-time 2 "$url"subscribe/ || true) # it would go on for ever
kill -INT $pid
wait $pid
grep -q 'disconnected' "$log"
grep -qi '<!doctype html>' <<<"$page"
grep -q '^data: ' <<<"$events"
