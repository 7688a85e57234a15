#!/usr/bin/env bash
# What it costs to compile a program with sse.hpp: user seconds and bytes of text, beside an Asio
# echo server, and beside the header of another revision. Called by bench/run.sh --compile.
#   bench/compile.sh [REVISION]    such as HEAD~10 or v0.1; without one, only today's header
# Everything is compiled in turn, ROUNDS times (3 if not set); the table has the medians.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
cxx=${CXX:-g++} rounds=${ROUNDS:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/now"
cp sse.hpp "$work/now"
headers=now
if [ $# -gt 0 ]; then
    mkdir "$work/before"
    git show "$1:sse.hpp" >"$work/before/sse.hpp"
    headers="before now"
fi
cp examples/clock.cpp "$work"
cat >"$work/empty.cpp" <<'END'
#include "sse.hpp"
int main() {}
END
cat >"$work/client.cpp" <<'END'
#include "sse.hpp"
#include <cstdio>

asio::awaitable<void> print(std::string url) {
    const auto here = co_await asio::this_coro::executor;
    sse::client source(here, url);
    while (const auto event = co_await source.next()) std::puts(event->data.c_str());
}

int main(int argc, char** argv) {
    asio::io_context io;
    if (argc > 1) co_spawn(io, print(argv[1]), [](std::exception_ptr) {});
    io.run();
}
END
cat >"$work/user.cpp" <<'END'
#define SSE_SEPARATE_COMPILATION
#include "sse.hpp"

asio::awaitable<void> hello(sse::stream& client) { co_await client.send({.data = "hello"}); }

void add_routes(sse::server& server) { server.route("GET", "/hello", hello); }
END
cat >"$work/echo.cpp" <<'END'
#include <asio.hpp>

using asio::ip::tcp;

asio::awaitable<void> echo(tcp::socket socket) {
    char bytes[1024];
    for (;;) {
        const std::size_t size =
            co_await socket.async_read_some(asio::buffer(bytes), asio::use_awaitable);
        co_await asio::async_write(socket, asio::buffer(bytes, size), asio::use_awaitable);
    }
}

asio::awaitable<void> listen() {
    const auto here = co_await asio::this_coro::executor;
    tcp::acceptor acceptor(here, {tcp::v4(), 7777});
    for (;;) {
        co_spawn(here, echo(co_await acceptor.async_accept(asio::use_awaitable)), asio::detached);
    }
}

int main() {
    asio::io_context io;
    co_spawn(io, listen(), asio::detached);
    io.run();
}
END

# A line each: which header, program, flags.
steps() {
    local flags
    for flags in -O2 -O0; do
        printf '%s\n' "- echo $flags"
        for header in $headers; do
            for program in clock client empty user; do printf '%s\n' "$header $program $flags"; done
        done
    done
    for header in $headers; do printf '%s\n' "$header empty -fsyntax-only"; done
}

for round in $(seq "$rounds"); do
    while read -r header program flags; do
        printf '\rround %s of %s: %s %s %s          ' "$round" "$rounds" "$header" "$program" \
            "$flags" >&2
        object=$work/$program.o
        rm -f "$object"
        TIMEFORMAT=%U
        seconds=$({ time "$cxx" -std=c++20 "$flags" -DASIO_STANDALONE -I"$work/$header" -c \
            "$work/$program.cpp" -o "$object" >&2; } 2>&1) || {
            printf '%s\n' "$seconds" >&2
            exit 1
        }
        text=0
        [ "$flags" = -fsyntax-only ] || text=$(size "$object" | awk 'NR == 2 { print $1 }')
        printf '%s\t%s %s\t%s\t%s\n' "$header" "$program" "$flags" "${seconds##*$'\n'}" "$text"
    done < <(steps) >>"$work/results"
done
printf '\r%60s\r' '' >&2

# Medians by header and step; ratios to the echo server with the same flags, and to before.
sort -t "$(printf '\t')" -k 1,2 -k 3,3n "$work/results" | awk -F'\t' '
    { key = $1 "\t" $2; n[key]++; value[key, n[key]] = $3; text[key] = $4; if (!seen[key]++) order[++keys] = key }
    function median(key) { return value[key, int((n[key] + 1) / 2)] }
    function ratio(a, b) { return b > 0 ? sprintf("%.2f", a / b) : "-" }
    END {
        printf "%-22s %8s %8s %8s %10s %8s\n", "", "user s", "to echo", "before", "text", "before"
        for (i = 1; i <= keys; ++i) {
            split(order[i], part, "\t")
            if (part[1] == "before") continue
            split(part[2], word, " ")
            echo = "-\techo " word[2]; was = "before\t" part[2]
            printf "%-22s %8.1f %8s %8s %10d %8s\n", part[2], median(order[i]),
                ratio(median(order[i]), median(echo)), ratio(median(order[i]), median(was)),
                text[order[i]], ratio(text[order[i]], text[was])
        }
    }'
