#!/usr/bin/env bash
# Three hubs on one Redis, behind an nginx that spreads the clients over them. Kill what you like: no
# client misses anything. All of it is on loopback, and its files are in a temporary folder.
#   ./examples/cluster.sh            sets up, builds, starts it and prints what to try; Ctrl-C ends it
#   ./examples/cluster.sh --demo     arguments go to each hub
#   ./examples/cluster.sh --check    tries it by itself, with curl, and ends
# Where EXAMPLES names the folder of the built examples, nothing is installed or built. It uses none of
# the services that Debian has for redis-server and nginx.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
. examples/setup.sh
PATH=$PATH:/usr/sbin

need redis-server have redis-server
need nginx have nginx
need curl have curl
if [ -n "${EXAMPLES:-}" ]; then
    [ ${#missing[@]} -eq 0 ] || { echo "these packages are missing: ${missing[*]}"; exit 77; }
    hub=$EXAMPLES/hub
else
    need libhiredis-dev test -e /usr/include/hiredis/hiredis.h
    need_to_build
    install_missing || exit 1
    hash -r
    configure_release
    say "building (the first time takes a minute)"
    ninja -C build --quiet examples/hub
    hub=build/examples/hub
fi

# ---- programs ------------------------------------------------------------------------------------

folder=$(mktemp -d "${TMPDIR:-/tmp}/sse-cluster-XXXXXX")
token=secret
more=() # flags of the hubs
declare -A pid port
SSE_HUB_REDIS_PASSWORD=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
export SSE_HUB_REDIS_PASSWORD REDISCLI_AUTH=$SSE_HUB_REDIS_PASSWORD # of the hubs, and of redis-cli

end_all() {
    trap - EXIT INT TERM HUP
    local name
    for name in "${!pid[@]}"; do kill "${pid[$name]}" 2>/dev/null || true; done
    for name in "${!pid[@]}"; do until_true "$name ends" ends "$name"; done
    rm -rf "$folder"
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

die() {
    say "$*" >&2
    tail -n 20 "$folder"/*.log >&2
    exit 1
}

# until_true WHAT COMMAND...: waits for up to 30 s.
until_true() {
    local end=$((SECONDS + 30))
    until "${@:2}"; do
        [ $SECONDS -lt $end ] || die "not within 30 s: $1"
        sleep 0.05
    done
}

# start NAME COMMAND...: what it says is in NAME.log of the folder, its number in NAME.pid. bash does
# not report its end.
start() {
    [ ! -e "$folder/$1.log" ] || cat "$folder/$1.log" >>"$folder/before"
    : >"$folder/$1.log" # at once: nobody must read there what it said before
    "${@:2}" >>"$folder/$1.log" 2>&1 &
    pid[$1]=$!
    disown
    echo "${pid[$1]}" >"$folder/$1.pid"
}
runs() { kill -0 "${pid[$1]}" 2>/dev/null; }
ends() { ! runs "$1"; }

# As start, but waits until the program is ready. Fails if it ends before.
start_until() { # READY NAME COMMAND...
    start "${@:2}"
    until_true "$2 starts" eval "$1 || ends $2"
    runs "$2"
}

# Most likely a free one. The system gives those from 32768 on to connections.
any_port() { echo $((20000 + RANDOM % 12000)); }

# What a bus needs of it: what was confirmed is on the disk, and nothing is evicted. Its password is
# not among the arguments of a program, which everyone sees.
start_redis() {
    cat >"$folder/redis.conf" <<END
bind 127.0.0.1
port ${port[redis]}
dir "$folder"
requirepass $SSE_HUB_REDIS_PASSWORD
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
END
    start_until is_redis_up redis redis-server "$folder/redis.conf"
}
is_redis_up() { [ "$(redis-cli -p "${port[redis]}" ping 2>/dev/null)" = PONG ]; }

start_hub() { # NAME
    start_until "[ -n \"\$(url_of $1)\" ]" "$1" "$hub" --name "$1" --port "${port[$1]:-$(any_port)}" \
        --redis "127.0.0.1:${port[redis]}" --redis-keeps-all --publish-token $token --trusted-proxy 127.0.0.1 "${more[@]}"
    port[$1]=$(url_of "$1" | grep -oE '[0-9]+$')
}
url_of() { grep -oE 'http://127\.0\.0\.1:[0-9]+' "$folder/$1.log"; }
at() { echo "http://127.0.0.1:${port[$1]}"; }
is_bus_up() { curl -sS "$(at "$1")/health" | grep '^Bus: up' >/dev/null; }

# What an event stream needs of it: no buffering, HTTP/1.1, a response that an EventSource survives
# while no hub is there. A hub that is gone is tried again after a second.
start_nginx() {
    cat >"$folder/nginx.conf" <<END
daemon off;
master_process off;
pid nginx.pid;
error_log nginx.errors;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream hubs {
        least_conn;
        server 127.0.0.1:${port[a]} fail_timeout=1s;
        server 127.0.0.1:${port[b]} fail_timeout=1s;
        server 127.0.0.1:${port[c]} fail_timeout=1s;
    }
    server {
        listen 127.0.0.1:${port[nginx]};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host \$http_host;
        proxy_set_header X-Forwarded-For \$proxy_add_x_forwarded_for;
        proxy_buffering off;
        proxy_connect_timeout 2s;
        location / { proxy_pass http://hubs; }
        location ~ ^/(subscribe|hub/) {
            proxy_pass http://hubs;
            error_page 502 504 =200 @away;
        }
        location @away {
            default_type text/event-stream;
            return 200 "retry: 1000\n\n";
        }
    }
}
END
    start_until is_nginx_up nginx nginx -p "$folder" -e nginx.errors -c nginx.conf
}
is_nginx_up() { (: <>"/dev/tcp/127.0.0.1/${port[nginx]}") 2>/dev/null; }

# On a port that is free; another program may take it meanwhile.
on_any_port() { # NAME
    for _ in {1..10}; do
        port[$1]=$(any_port)
        "start_$1" && return
    done
    die "$1 does not start"
}

start_all() {
    local name
    on_any_port redis
    for name in a b c; do # its port may be taken
        start_hub $name || start_hub $name || die "the hub $name does not start"
    done
    for name in a b c; do until_true "the hub $name finds Redis" is_bus_up $name; done
    on_any_port nginx
    balancer=$(at nginx)
}

start_again() { # NAME
    case $1 in
    redis | nginx) "start_$1" ;;
    *) start_hub "$1" ;;
    esac || die "$1 does not start again"
}

# ---- to try by hand ------------------------------------------------------------------------------

print_what_to_try() {
    cat <<END

Three hubs, a, b and c, on one Redis, behind nginx.

  $balancer/
        Open it in several windows. Each says at which hub it is.
  curl -N $balancer/subscribe/room
        The same in a terminal.
  i=0; while sleep 0.3; do curl -sS -H "Authorization: Bearer $token" \\
      -d data=\$((i += 1)) $balancer/publish/room; done
        Publishes numbers, each time at another hub. Whoever listens should get every one of them.
  kill -9 \$(cat '$folder/b.pid')
        Kills a hub. Its pages come back to another one, with the id of what they have, and get
        what they missed. The hub is started again after 5 s.
  kill -9 \$(cat '$folder/redis.pid')
        Kills Redis. All streams stay open, what is published is refused with 503 until it is
        back after 5 s, and what it had confirmed is still there.
  curl $(at a)/health $(at b)/health $(at c)/health
        Says how each hub is.

What they print is in $folder. Ctrl-C ends it all.

END
}

look_after_them() {
    local name
    while sleep 1; do
        for name in redis a b c nginx; do
            runs $name && continue
            say "$name has ended; it is started again in 5 s"
            sleep 5
            start_again $name
            say "$name is back"
        done
    done
}

# ---- to check ------------------------------------------------------------------------------------

listen() { # CLIENT URL ARGUMENT...: its events of the topic room, and of the hub that it is at
    start "$1" curl -sSN --max-time 300 "$2/hub/stats?topic=room" "${@:3}"
    until_true "$1 is served" hears "$1"
}
hears() { [ -n "$(hub_of "$1")" ]; }
hub_of() { sed -n '/^data: {"node":"/{s/^data: {"node":"\([^"]*\)".*/\1/p;q;}' "$folder/$1.log"; }
# Such as "1 2 gap rewound 3".
got() {
    sed -n '/^event: stats$/d; /^data: {"node"/d; s/^data: {"reason":"\([^"]*\)".*/\1/p; t
        s/^\(data\|event\): //p' "$folder/$1.log" | xargs
}
has_got() { [ "$(got "$1")" = "$2" ]; }
id_of() { sed -n 's/^id: //p' "$folder/$1.log" | tail -n 1; }

publish() { # URL TEXT...: each is confirmed by Redis when this returns
    local text
    for text in "${@:2}"; do
        curl -fsS -o "$folder/response" -H "Authorization: Bearer $token" -d "data=$text" \
            "$1/publish/room" || die "$text could not be published"
    done
}
is_refused() {
    [ "$(curl -sS -o "$folder/response" -w '%{http_code}' -H "Authorization: Bearer $token" \
        -d data=refused "$balancer/publish/room")" = 503 ]
}

# expect SENTENCE CLIENT TEXTS: it gets these, in this order, and nothing else.
expect() {
    local end=$((SECONDS + 30))
    until has_got "$2" "$3"; do
        [ $SECONDS -lt $end ] || die "not so: $1. The client $2 got '$(got "$2")', not '$3'"
        sleep 0.05
    done
    say "$1"
}

kill_it() { # NAME...
    local name
    for name in "$@"; do kill -9 "${pid[$name]}"; done
    for name in "$@"; do until_true "$name ends" ends "$name"; done
}

# check_after WHAT TEXTS NAME...: kills these, starts them again. A client that has the id $id gets the
# texts at each hub.
check_after() {
    local name
    kill_it "${@:3}"
    for name in "${@:3}"; do start_again "$name"; done
    for name in a b c; do
        until_true "the hub $name finds Redis" is_bus_up $name
        listen "after-$name" "$(at $name)" -H "Last-Event-ID: $id"
        expect "after $1 all is there at $name" "after-$name" "$2"
        kill_it "after-$name"
    done
}

check_all() {
    local name lost id other all
    listen at-b "$(at b)"
    listen at-c "$(at c)"
    listen mine "$balancer"
    publish "$(at a)" one
    for name in at-b at-c mine; do expect "what a publishes comes to $name" $name "one"; done

    lost=$(hub_of mine)
    kill_it "$lost"
    until_true "the balancer lets the client go" ends mine
    id=$(id_of mine)
    other=$([ "$lost" = a ] && echo b || echo a)
    all=({2..21})
    publish "$(at "$other")" "${all[@]}"
    listen back "$balancer" -H "Last-Event-ID: $id"
    [ "$(hub_of back)" != "$lost" ] || die "the balancer leads to a hub that is dead"
    expect "who was at $lost, which is killed, gets what it missed at $(hub_of back)" back "${all[*]}"
    start_again "$lost"
    until_true "$lost finds Redis" is_bus_up "$lost"
    listen at-lost "$(at "$lost")" -H "Last-Event-ID: $id"
    expect "$lost has it too when it is back" at-lost "${all[*]}"

    kill_it redis
    until_true "publishing is refused while Redis is away" is_refused
    start_again redis
    for name in a b c; do until_true "the hub $name finds Redis again" is_bus_up $name; done
    publish "$(at a)" 22
    publish "$(at b)" 23
    publish "$(at c)" 24
    expect "who stayed connected lost nothing by the restart of Redis" back "${all[*]} 22 23 24"
    expect "nor is anything lost in Redis" at-lost "${all[*]} 22 23 24"

    check_after "all hubs are killed" "${all[*]} 22 23 24" a b c
    check_after "Redis is killed with them" "${all[*]} 22 23 24" redis a b c

    kill "${pid[a]}" "${pid[b]}" "${pid[c]}"
    for name in a b c; do
        until_true "the hub $name ends" ends $name
        grep -q '^hub: disconnected' "$folder/$name.log" || die "the hub $name did not end well"
    done
    ! grep -hE 'Sanitizer|runtime error' "$folder"/*.log "$folder/before" || die "a sanitizer says so"
    say "all is as it should be"
}

if [ "${1:-}" = --check ]; then
    start_all
    check_all
else
    more=("$@")
    start_all
    print_what_to_try
    look_after_them
fi
