#!/usr/bin/env bash
# A script that runs a command which its user may not run fails with an error that begins with ERR,
# though the same command by itself fails with NOPERM.
#
# Library    Redis 7.0.15, Debian 12's packages `redis-server` and `redis-tools` 5:7.0.15-1~deb12u10.
#            Needs apt-get.
# Guess      The first word of an error is its code. Since 7.0 redis.call() passes on the error of the
#            command, code and all: WRONGTYPE stays WRONGTYPE. So a missing permission is NOPERM, and a
#            client that tells "wrongly set up" from "try again" by the code is right.
# Behaviour  Permissions are checked before the command runs, by another text: "ERR The user executing
#            the script can't run this command or subcommand". For a key that the user may not touch it
#            is ERR as well.
# Seen       DEL: NOPERM
#            DEL in a script: ERR
#            GET of another's key: NOPERM
#            GET of another's key in a script: ERR
#            LPUSH to a string in a script: WRONGTYPE
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
for ((i = 0; i < 3000; ++i)); do
    if [[ $(redis ping 2>&1) == PONG ]]; then break; fi
    sleep 0.01
done
redis info server | grep redis_version | tr -d '\r'
redis acl setuser app on '>secret' '~app:*' +eval +get +set +lpush >/dev/null
app() { redis --no-auth-warning --user app --pass secret "$@"; }
app set app:text hello >/dev/null

right=true
check() { # what, expected code, command...
    local what=$1 expected=$2 answer
    shift 2
    answer=$(app "$@" 2>&1 | head -1)
    echo "$what: ${answer%% *}"
    [[ ${answer%% *} == "$expected" ]] || right=false
}
check "DEL" NOPERM del app:text
check "DEL in a script" ERR eval "return redis.call('del', KEYS[1])" 1 app:text
check "GET of another's key" NOPERM get other:text
check "GET of another's key in a script" ERR eval "return redis.call('get', 'other:text')" 0
check "LPUSH to a string in a script" WRONGTYPE eval "return redis.call('lpush', KEYS[1], 'x')" 1 app:text
$right || { echo "the behaviour has changed" >&2; exit 1; }
