#!/usr/bin/env bash
# Sets up, builds optimized and runs the benchmarks.
#   ./bench/run.sh                     all, in about 15 minutes
#   ./bench/run.sh --quick             one short round, in about two minutes
#   ./bench/run.sh --rivals            beside nginx with nchan, better-sse and a Boost.Beast server too
#   ./bench/run.sh --scaling           instead: more workers, clients, bytes and topics
#   ./bench/run.sh --instructions      instead: instructions of each step, and what changed
#   ./bench/run.sh --record            the same, and keeps them as what later runs compare with
#   ./bench/run.sh --bus               instead: file_log, Redis and NATS beside none
#   ./bench/run.sh --tls               instead: TLS beside a bare loop over OpenSSL, and nginx
#   ./bench/run.sh --compress          instead: by gzip, beside none and a stream of zlib for each client
#   ./bench/run.sh --compile [REVISION]  instead: what a program costs to compile
# What bench/README.md shows: ./bench/run.sh --rivals --markdown --svg bench/results.svg
# --json FILE writes every figure of every round. --svg FILE draws the chart, --markdown prints the
# table. What else is given goes to build/bench/scenarios, or with --bus to build/bench/bus, which say
# by --help what they take; with --only nothing else runs.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
. examples/setup.sh

if [ "${1:-}" = --compile ]; then
    need_to_build
    install_missing || exit 1
    shift
    exec bench/compile.sh "$@"
fi

parts="scenarios ring publish instructions"
seconds=20 # of the ring, and of publish
record=
rivals=
json=
more=()
while [ $# -gt 0 ]; do
    case $1 in
    --quick)
        seconds=3
        more+=("$1")
        ;;
    --rivals) rivals=1 ;;
    --scaling | --only*)
        [[ $parts = bus || $parts = tls || $parts = zlib ]] || parts=scenarios
        more+=("$1")
        ;;
    --instructions) parts=instructions ;;
    --bus) parts=bus ;;
    --tls)
        parts=tls
        more+=("$1")
        ;;
    --compress)
        parts=zlib
        more+=("$1")
        ;;
    --help | -h)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit
        ;;
    --record)
        parts=instructions
        record=1
        ;;
    --json)
        json=${2:?--json wants a file}
        shift
        ;;
    *) more+=("$1") ;;
    esac
    shift
done

# Instructions of each operation, from the dumps of one run under callgrind: a line each.
count_instructions() {
    local dumps=build/callgrind.out
    valgrind -q --tool=callgrind --combine-dumps=yes --callgrind-out-file=$dumps \
        build/bench/instructions
    awk '/^desc: Trigger: Client Request:/ { sub(/.*Request: /, ""); split($0, step, "/") }
        /^summary:/ && step[1] != "" { printf "%s\t%.1f\n", step[1], $2 / step[2]; step[1] = "" }' \
        $dumps
}

show_instructions() {
    local recorded=bench/instructions.txt counts=build/instructions.txt
    count_instructions >$counts
    if [ -n "$record" ]; then
        printf '# Instructions of one operation, by %s, -O3; written by bench/run.sh --record\n' \
            "$("${CXX:-g++}" --version | head -n 1)" | cat - $counts >$recorded
    fi
    printf '\n%-12s %10s %10s %8s\n' instructions now recorded change
    awk -F'\t' '/^#/ { next }
        FNR == NR { was[$1] = $2; next }
        { change = was[$1] ? sprintf("%+.1f%%", ($2 / was[$1] - 1) * 100) : "-"
          printf "%-12s %10s %10s %8s\n", $1, $2, was[$1] ? was[$1] : "-", change }' \
        $recorded $counts
    awk -F'\t' '{ printf "%s\n  \"%s\": %s", NR == 1 ? "{" : ",", $1, $2 } END { print "\n}" }' \
        $counts >build/instructions.json
}

need_to_build
need liburing-dev test -e /usr/include/liburing.h
[[ $parts != *instructions* ]] || need valgrind test -e /usr/include/valgrind/callgrind.h
if [ "$parts" = bus ]; then
    need libhiredis-dev test -e /usr/include/hiredis/hiredis.h
    need redis-server have redis-server
    need libnats-dev test -e /usr/include/nats/nats.h
    need nats-server have nats-server
    install_missing || say "without those"
fi
if [ "$parts" = tls ]; then
    need nginx test -x /usr/sbin/nginx
    install_missing || say "without it"
    need libssl-dev test -e /usr/include/openssl/provider.h
fi
[[ $parts != zlib ]] || need zlib1g-dev test -e /usr/include/zlib.h
if [ -n "$rivals" ]; then
    need libboost-dev test -e /usr/include/boost/beast.hpp
    need nodejs have node
    need npm have npm
    need nginx test -x /usr/sbin/nginx
    need libnginx-mod-nchan test -e /usr/lib/nginx/modules/ngx_nchan_module.so
fi
install_missing || exit 1
configure_release
say "building (the first time takes some minutes)"
targets=(bench)
[[ $parts != *instructions* ]] || targets+=(bench/instructions)
[ -z "$rivals" ] || targets+=(bench/beast_server)
ninja -C build --quiet "${targets[@]}"
if [ -n "$rivals" ]; then
    [ -d bench/rivals/node_modules ] ||
        (cd bench/rivals && npm install --silent --no-audit --no-fund --no-package-lock)
    say "rivals: $(/usr/sbin/nginx -v 2>&1), node $(node --version), $(grep better-sse \
        bench/rivals/package.json | tr -d ' "'), Boost $(sed -n 's/^#define BOOST_LIB_VERSION //p' \
        /usr/include/boost/version.hpp)"
    beast=beast=build/bench/beast_server better="better-sse=node bench/rivals/better_sse.mjs"
    more+=(--rivals "$beast,nchan=node bench/rivals/nchan.mjs,$better")
    more+=(--rivals-each "$beast,$better")
fi
ulimit -n "$(ulimit -Hn)"

status=0
for part in $parts; do
    case $part in
    scenarios) build/bench/scenarios --json build/scenarios.json "${more[@]}" || status=1 ;;
    tls) build/bench/scenarios_hub --json build/tls.json "${more[@]}" || status=1 ;;
    zlib) build/bench/scenarios_hub --json build/zlib.json "${more[@]}" || status=1 ;;
    bus) build/bench/bus --json build/bus.json "${more[@]}" || status=1 ;;
    ring) build/bench/ring --json build/ring.json --seconds $seconds || status=1 ;;
    publish) build/bench/publish --json build/publish.json --seconds $seconds || status=1 ;;
    instructions) show_instructions ;;
    esac
done
if [ -n "$json" ]; then
    before='{'
    for part in $parts; do
        printf '%s\n"%s": ' "$before" "$part"
        cat "build/$part.json"
        before=','
    done >"$json"
    printf '}\n' >>"$json"
fi
exit $status
