#!/usr/bin/env bash
# A client that waits in XREAD is not woken when its stream is deleted, and then goes past all that is
# added to the new one, until its ids are greater than those of the old.
#
# Library    Redis 7.0.15, Debian 12's packages `redis-server` and `redis-tools` 5:7.0.15-1~deb12u10.
#            Needs apt-get.
# Guess      DEL of a key for which clients wait wakes them: with nil or an error, as it does for
#            XREADGROUP, whose clients get "UNBLOCKED". Or else the first entry of the new stream does.
# Behaviour  XREAD waits on for ids above the one that it has. What is added below is not delivered, by
#            no error and no nil. Only a look at the stream itself (XINFO STREAM) shows it.
# Seen       XREADGROUP, the stream is deleted: UNBLOCKED the stream key no longer exists
#            XREAD, the stream is deleted: it waits on
#            XREAD after 100-0, 5-0 is added to the new stream: it waits on
#            XREAD after 100-0, 101-0 is added as well: got 101-0 only
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install redis-server=5:7.0.15-1~deb12u10 redis-tools=5:7.0.15-1~deb12u10 \
    >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done
multi=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo "$(uname -m)-linux-gnu")
export LD_LIBRARY_PATH=$PWD/usr/lib/$multi:$PWD/lib/$multi

usr/bin/redis-server --port 0 --unixsocket "$PWD/socket" --save '' --dir "$PWD" >log &
redis() { usr/bin/redis-cli -s socket "$@"; }
until_it() { # ... until a command prints a text
    local text=$1
    shift
    for ((i = 0; i < 3000; ++i)); do
        if [[ $("$@" 2>&1) == *"$text"* ]]; then return; fi
        sleep 0.01
    done
    echo "it took too long: $*" >&2
    exit 1
}
until_it PONG redis ping
redis info server | grep redis_version | tr -d '\r'

right=true
said() { # what, seen, expected
    echo "$1: $2"
    [[ $2 == "$3" ]] || right=false
}

redis xgroup create orders readers '$' mkstream >/dev/null
redis xreadgroup group readers me block 20000 streams orders '>' >group 2>&1 &
until_it blocked_clients:1 redis info clients
redis del orders >/dev/null
until_it blocked_clients:0 redis info clients
wait $!
said "XREADGROUP, the stream is deleted" "$(head -1 group)" "UNBLOCKED the stream key no longer exists"

redis xadd orders 100-0 name old >/dev/null
redis xread block 20000 streams orders '$' >plain 2>&1 &
reader=$!
waits() { # Redis serves those who wait before it takes the next command
    if [[ $(redis info clients) == *blocked_clients:1* ]]; then echo "it waits on"; else echo "it ended"; fi
}
until_it blocked_clients:1 redis info clients
redis del orders >/dev/null
said "XREAD, the stream is deleted" "$(waits)" "it waits on"
redis xadd orders 5-0 name new >/dev/null
said "XREAD after 100-0, 5-0 is added to the new stream" "$(waits)" "it waits on"
redis xadd orders 101-0 name newer >/dev/null
wait "$reader"
ids=$(grep -Eo '^[0-9]+-[0-9]+$' plain | paste -sd' ')
said "XREAD after 100-0, 101-0 is added as well" "got $ids only" "got 101-0 only"
$right || { echo "the behaviour has changed" >&2; exit 1; }
